"""Attacks from elsewhere: functions of a user's own, and foolbox's."""

import hashlib
import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks.eval_mode import Classifier
from ..errors import UsageError
from ..functions import function_named, options_of, read_options, similar
from ..sharing import shown
from .target import Attack, Attacked, Target

_KEYED = ("seed", "indices")
_P_OF = {"linf": float("inf"), "l2": 2}


def own_attack(function: Callable[..., Tensor], name: str | None = None, given: Mapping[str, str] | None = None) -> Attack:
    """An attack of a user's own, to be called as this package's are.

    Args:
        function: ``function(classifier, images, labels, threat_model, *, seed, indices, **options)`` gives adversarial
            images of the images' shape; ``seed`` and ``indices`` may be missing. Its options are its keyword-only
            parameters with defaults. Global random state is seeded around it.
        name: what the report calls it, by default ``module:function`` and the options that a `functools.partial` binds.
        given: the values of options, as text.

    Raises:
        UsageError: an option that the function does not have, or a value that does not fit it.

    Example:
        >>> def nothing(classifier, images, labels, threat_model, *, steps: int = 3): return images
        >>> own_attack(nothing, "nothing", {"steps": "4"}).options
        {'steps': 4}
    """
    written = function.func if isinstance(function, partial) else function
    kind = f"{written.__module__}:{getattr(written, '__qualname__', type(written).__qualname__)}"
    bound = function.keywords if isinstance(function, partial) else {}
    settings = ",".join(f"{option}={value}" for option, value in bound.items())
    options = read_options(options_of(function, but=_KEYED), given or {}, name or kind)
    name = shown(name or (f"{kind}:{settings}" if settings else kind))

    def run(target: Target) -> Attacked:
        accepted = inspect.signature(function).parameters
        keyed = {"seed": target.subject.settings.seed, "indices": target.indices}
        attacked_as = target.subject.attacked
        with torch.inference_mode(False), torch.enable_grad(), target.global_randomness():
            adversarial = function(
                attacked_as,
                target.images,
                target.labels,
                target.threat_model,
                **{key: value for key, value in keyed.items() if key in accepted},
                **options,
            )
        if not isinstance(adversarial, Tensor) or adversarial.shape != target.images.shape:
            came = tuple(adversarial.shape) if isinstance(adversarial, Tensor) else type(adversarial).__name__
            raise UsageError(f"attack {name!r} must give images of shape {tuple(target.images.shape)}, not {came}")
        adversarial = adversarial.detach().to(target.images).clone()
        with torch.no_grad():
            claimed = attacked_as(adversarial).argmax(1) != target.labels
        return Attacked(adversarial, claimed, [])

    return Attack(name, kind, _shown(options), run, _source_hash(written))


def attack_of_module(text: str) -> Attack:
    """Read ``module:function`` or ``module:function:option=value,option=value``.

    Raises:
        UsageError: there is no such function, or whatever `own_attack` raises.
    """
    module, function, given = _parts(text)
    return own_attack(function_named(f"{module}:{function}", "attack"), text, given)


def foolbox_attack(text: str, norm: str | None = None) -> Attack:
    """Read ``foolbox:Name`` or ``foolbox:Name:option=value``, with a class of `foolbox.attacks` and its own options.

    What such an attack finds counts where it lies in the threat model. Attacks that look for the smallest perturbation
    are asked for one of at most ε.

    Args:
        text: the attack.
        norm: of the threat model, where it is known already.

    Raises:
        UsageError: foolbox is missing, it has no such attack, the options do not fit, or the attack is for another norm.

    Example:
        >>> foolbox_attack("foolbox:L2DeepFoolAttack:steps=10", "l2").options["steps"]
        10
    """
    _, name, given = _parts(text)
    try:
        foolbox: Any = importlib.import_module("foolbox")
    except ModuleNotFoundError:
        raise UsageError(f"attack {text!r}: foolbox is not installed: pip install foolbox") from None
    there = {each: kind for each, kind in vars(foolbox.attacks).items() if _keeps_to_a_norm(kind, foolbox)}
    if name not in there:
        raise UsageError(f"attack {text!r}: foolbox has no attack {name!r} that keeps to a norm{similar(name, there)}")
    signature = options_of(there[name])
    takes_distance = signature.pop("distance", None) is not None
    options = read_options(signature, given, f"attack {text!r}: {name}")
    options = {key: value for key, value in options.items() if value is not inspect.Parameter.empty}
    distance = getattr(foolbox.distances, norm) if norm is not None and takes_distance else None
    try:
        attack = there[name](**options, **({"distance": distance} if distance is not None else {}))
        meant_for = None if takes_distance else attack.distance.p
    except Exception as error:  # whatever a constructor of theirs may raise
        raise UsageError(f"attack {text!r} cannot be made: {error}") from error
    if None not in (norm, meant_for) and meant_for != _P_OF[str(norm)]:
        raise UsageError(f"attack {text!r} is for the norm l{meant_for}, not for {norm}")

    def run(target: Target) -> Attacked:
        subject = target.subject
        # Their losses are not scaled against fp16's range.
        network = _Network(subject.exact if subject.settings.precision == "fp16" else subject.attacked)
        with torch.inference_mode(False), torch.enable_grad(), target.global_randomness():
            model = foolbox.PyTorchModel(network.eval(), target.threat_model.bounds, target.images.device)
            criterion = foolbox.criteria.Misclassification(target.labels.clone())
            try:
                _, found, fooled = attack(model, target.images.clone(), criterion, epsilons=target.threat_model.eps)
            except (ValueError, TypeError, NotImplementedError) as error:
                raise UsageError(f"attack {text!r} cannot run: {error}") from error
        return Attacked(found.detach().clone(), fooled.bool(), [])

    return Attack(text, f"foolbox:{name}", _shown(options), run, f"foolbox {foolbox.__version__}")


def _keeps_to_a_norm(kind: Any, foolbox: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, foolbox.attacks.base.AttackWithDistance)


class _Network(nn.Module):
    """A function from images to logits, as the module that foolbox asks for."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images)


def _parts(text: str) -> tuple[str, str, dict[str, str]]:
    module, _, rest = text.partition(":")
    name, _, settings = rest.partition(":")
    pairs = [setting.partition("=") for setting in settings.split(",") if setting]
    return module, name, {option: value for option, _, value in pairs}


def _shown(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a report can hold them."""
    plain = (bool, int, float, str, type(None))
    return {name: value if isinstance(value, plain) else repr(value) for name, value in options.items()}


def _source_hash(function: Callable[..., Any]) -> str:
    """A hash over the file that a function is written in, so that an edited one is another attack."""
    try:
        return hashlib.sha256(Path(inspect.getfile(function)).read_bytes()).hexdigest()
    except (TypeError, OSError):
        return ""
