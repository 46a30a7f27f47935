"""Attacks by name, as evaluations list them: ``fgsm``, ``pgd-20``, ``pgd-100:restarts=5``, ``autoattack``, …"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..attacks import LOSSES, early_stopping_pgd, fgsm, pgd
from ..attacks.eval_mode import Classifier
from ..errors import UsageError
from ..threat_model import ThreatModel, parse_eps
from .autoattack import MEMBERS, STANDARD, autoattack


class Target(NamedTuple):
    """What an attack of an evaluation is given: samples that the model classifies correctly, and how to reach it.

    ``images`` are (B, C, H, W) pixels in [0, 1], ``labels`` and ``indices`` (in the data set) int64 of shape (B,).
    ``classifier`` is to be attacked, as fast as it can be had in ``precision``; ``exact`` is the same as it is, in
    float32; ``surrogate`` is another model of the same labels, for black-box attacks. ``seed`` belongs to the
    evaluation, ``chunk_seed`` to these samples. ``tell`` shows a line of text beside the evaluation's progress.
    """

    classifier: Classifier
    exact: Classifier
    surrogate: Classifier | None
    precision: str
    images: Tensor
    labels: Tensor
    indices: Tensor
    threat_model: ThreatModel
    seed: int
    chunk_seed: int
    tell: Callable[[str], object]


class Attacked(NamedTuple):
    """Adversarial images of a target's shape, which samples the attack holds for fooled and therefore left, (B,), and
    what it had to say about how it ran.
    """

    images: Tensor
    claimed: Tensor
    remarks: list[str]


def _all_steps(attack: Callable[..., Tensor], classifier: Classifier, target: Target, **options: Any) -> Attacked:
    keyed = {"seed": target.seed, "indices": target.indices}
    adversarial = attack(classifier, target.images, target.labels, target.threat_model, **keyed, **options)
    return Attacked(adversarial, torch.zeros_like(target.labels, dtype=torch.bool), [])


def _fgsm(target: Target, **options: Any) -> Attacked:
    return _all_steps(fgsm, target.classifier, target, **options)


def _transfer(target: Target, **options: Any) -> Attacked:
    assert target.surrogate is not None
    return _all_steps(pgd, target.surrogate, target, **options)


# A little more than logits differ by between this precision and float32, as a share of the largest.
_LEAD = {"float32": 0.0, "bf16": 2**-7, "fp16": 2**-10}


def _pgd(target: Target, **options: Any) -> Attacked:
    keyed: dict[str, Any] = {"seed": target.seed, "indices": target.indices, "lead": _LEAD[target.precision]}
    found = early_stopping_pgd(target.classifier, target.images, target.labels, target.threat_model, **keyed, **options)
    return Attacked(*found, [])


def _autoattack(target: Target, **options: Any) -> Attacked:
    # Its own losses are not scaled against fp16's range.
    classifier = target.exact if target.precision == "fp16" else target.classifier
    images, labels, threat_model = target.images, target.labels, target.threat_model
    told: dict[str, Any] = {"seed": target.chunk_seed, "tell": target.tell}
    adversarial, remarks = autoattack(classifier, images, labels, threat_model, **told, **options)
    with torch.no_grad():
        left_out = classifier(images).argmax(1) != labels  # right only in float32: AutoAttack saw nothing left to fool
    return Attacked(adversarial, left_out | (adversarial != images).flatten(1).any(1), remarks)


class _Kind(NamedTuple):
    run: Callable[..., Attacked]
    number: str | None  # the option that a number after the name sets
    defaults: dict[str, Any]
    summary: str


_PGD = {"steps": 20, "restarts": 1, "step_size": None, "loss": "cross_entropy"}
KINDS: dict[str, _Kind] = {
    "noise": _Kind(partial(_pgd, steps=0), "restarts", {"restarts": 1}, "uniform noise in the ball, N draws: a floor"),
    "fgsm": _Kind(_fgsm, None, {"random_start": False}, "one gradient step of length ε"),
    "pgd": _Kind(_pgd, "steps", _PGD, "N steps of projected gradient ascent from a random start, step size ε/4"),
    "cw": _Kind(_pgd, "steps", {**_PGD, "steps": 100, "loss": "margin"}, "PGD on the margin between the logits"),
    "transfer": _Kind(
        _transfer, "steps", {"steps": 20, "step_size": None, "loss": "cross_entropy"}, "PGD on a surrogate model: black box"
    ),
    "autoattack": _Kind(partial(_autoattack, members=STANDARD), None, {}, f"the standard ensemble: {', '.join(STANDARD)}"),
    **{
        member: _Kind(partial(_autoattack, members=(member,)), None, {}, f"AutoAttack's {member} alone")
        for member in MEMBERS
        if member != "square"
    },
    "square": _Kind(
        partial(_autoattack, members=("square",)), "queries", {"queries": 5000}, "AutoAttack's black box with N queries"
    ),
}


@dataclass(frozen=True)
class Attack:
    """An attack with its parameters.

    Args:
        name: as it was asked for and is reported.
        kind: one of the keys of `KINDS`.
        options: all its parameters.
    """

    name: str
    kind: str
    options: dict[str, Any] = field(hash=False)

    def __call__(self, target: Target) -> Attacked:
        """Craft adversarial images of the target's."""
        return KINDS[self.kind].run(target, **self.options)


def parse_attack(text: str) -> Attack:
    """Read an attack's name: ``kind``, ``kind-N`` or ``kind-N:option=value,option=value``.

    N is the number of steps, for ``noise`` of draws and for ``square`` of queries.

    Raises:
        ValueError: an unknown kind or option, or a value out of range; the message says what there is.

    Example:
        >>> parse_attack("pgd-100:restarts=5").options
        {'steps': 100, 'restarts': 5, 'step_size': None, 'loss': 'cross_entropy'}
    """
    name, _, settings = text.partition(":")
    match = re.fullmatch(r"([a-z][a-z-]*?)(?:-(\d+))?", name)
    if match is None or match[1] not in KINDS:
        raise UsageError(f"attack {text!r} is unknown: use {', '.join(KINDS)}, or with a number like pgd-100")
    kind = KINDS[match[1]]
    options = dict(kind.defaults)
    given = [] if match[2] is None else [(kind.number, match[2])]
    given += [setting.partition("=")[::2] for setting in settings.split(",") if setting]
    for option, value in given:
        if option not in options:
            raise UsageError(
                f"attack {text!r}: {match[1]} has no "
                + ("number" if option is None else f"option {option!r}")
                + (f", only {', '.join(options)}" if options else " and no options")
            )
        options[option] = _read(text, option, value)
    return Attack(text, match[1], options)


def parse_attacks(names: Sequence[str], *, surrogate: bool) -> list[Attack]:
    """Read the attacks of one evaluation.

    Args:
        names: as for `parse_attack`.
        surrogate: whether there is a model to craft the examples of ``transfer`` on.

    Raises:
        ValueError: none, one twice, ``transfer`` without a surrogate, or whatever `parse_attack` raises.
    """
    attacks = [parse_attack(name) for name in names]
    if not attacks or len(set(names)) < len(names):
        raise UsageError(f"attacks {', '.join(names) or '(none)'}: name at least one, and none twice")
    if not surrogate and any(attack.kind == "transfer" for attack in attacks):
        raise UsageError("the attack transfer crafts its examples on another model: give a surrogate of the same labels")
    return attacks


def _read(text: str, option: str, value: str) -> Any:
    if option == "step_size":
        return parse_eps(value, f"attack {text!r}: step_size")
    if option == "loss":
        if value not in LOSSES:
            raise UsageError(f"attack {text!r}: loss={value!r} is unknown: use {', '.join(LOSSES)}")
        return value
    if option == "random_start":
        if value not in ("true", "false"):
            raise UsageError(f"attack {text!r}: random_start={value!r} must be true or false")
        return value == "true"
    if not value.isdecimal() or int(value) < 1:
        raise UsageError(f"attack {text!r}: {option}={value!r} must be a whole number of at least 1")
    return int(value)
