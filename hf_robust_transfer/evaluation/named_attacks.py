"""Attacks by name, as evaluations list them: ``fgsm``, ``pgd-20``, ``pgd-100:restarts=5``, ``autoattack``, …"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..attacks import early_stopping_pgd, fgsm, pgd
from ..attacks.eval_mode import Classifier
from ..errors import UsageError
from ..functions import Count, Length, options_of, read_options
from .autoattack import MEMBERS, STANDARD, autoattack
from .open_attacks import attack_of_module, foolbox_attack, own_attack
from .target import Attack, Attacked, Target

Loss = Literal["cross_entropy", "margin", "kl"]


def _all_steps(attack: Callable[..., Tensor], classifier: Classifier, target: Target, **options: Any) -> Attacked:
    keyed = {"seed": target.subject.settings.seed, "indices": target.indices}
    adversarial = attack(classifier, target.images, target.labels, target.threat_model, **keyed, **options)
    return Attacked(adversarial, torch.zeros_like(target.labels, dtype=torch.bool), [])


def _fgsm(target: Target, *, random_start: bool = False) -> Attacked:
    return _all_steps(fgsm, target.subject.attacked, target, random_start=random_start)


def _transfer(
    target: Target, *, steps: Count = 20, step_size: Length | None = None, loss: Loss = "cross_entropy"
) -> Attacked:
    assert target.subject.surrogate is not None
    return _all_steps(pgd, target.subject.surrogate, target, steps=steps, step_size=step_size, loss=loss)


# A little more than logits differ by between this precision and float32, as a share of the largest.
_LEAD = {"float32": 0.0, "bf16": 2**-7, "fp16": 2**-10}


def _pgd(
    target: Target,
    *,
    steps: Count = 20,
    restarts: Count = 1,
    step_size: Length | None = None,
    loss: Loss = "cross_entropy",
) -> Attacked:
    settings = target.subject.settings
    found = early_stopping_pgd(
        target.subject.attacked,
        target.images,
        target.labels,
        target.threat_model,
        steps=steps,
        restarts=restarts,
        step_size=step_size,
        loss=loss,
        lead=_LEAD[settings.precision],
        seed=settings.seed,
        indices=target.indices,
    )
    return Attacked(*found, [])


def _noise(target: Target, *, restarts: Count = 1) -> Attacked:
    return _pgd(target, steps=0, restarts=restarts)


def _members(target: Target, members: Sequence[str], **options: Any) -> Attacked:
    subject = target.subject
    # Its own losses are not scaled against fp16's range.
    classifier = subject.exact if subject.settings.precision == "fp16" else subject.attacked
    images, labels, threat_model = target.images, target.labels, target.threat_model
    told: dict[str, Any] = {"members": members, "seed": target.chunk_seed, "tell": target.tell}
    adversarial, remarks = autoattack(classifier, images, labels, threat_model, **told, **options)
    with torch.no_grad():
        left_out = classifier(images).argmax(1) != labels  # right only in float32: AutoAttack saw nothing left to fool
    return Attacked(adversarial, left_out | (adversarial != images).flatten(1).any(1), remarks)


def _autoattack(members: Sequence[str], target: Target) -> Attacked:
    return _members(target, members)


def _square(target: Target, *, queries: Count = 5000) -> Attacked:
    return _members(target, ["square"], queries=queries)


class _Kind(NamedTuple):
    run: Callable[..., Attacked]  # its options are the attack's
    number: str | None  # the option that a number after the name sets
    summary: str


KINDS: dict[str, _Kind] = {
    "noise": _Kind(_noise, "restarts", "uniform noise in the ball, N draws: a floor"),
    "fgsm": _Kind(_fgsm, None, "one gradient step of length ε"),
    "pgd": _Kind(_pgd, "steps", "N steps of projected gradient ascent from a random start, step size ε/4"),
    "cw": _Kind(partial(_pgd, steps=100, loss="margin"), "steps", "PGD on the margin between the logits"),
    "transfer": _Kind(_transfer, "steps", "PGD on a surrogate model: black box"),
    "autoattack": _Kind(partial(_autoattack, STANDARD), None, f"the standard ensemble: {', '.join(STANDARD)}"),
    **{
        member: _Kind(partial(_autoattack, (member,)), None, f"AutoAttack's {member} alone")
        for member in MEMBERS
        if member != "square"
    },
    "square": _Kind(_square, "queries", "AutoAttack's black box with N queries"),
}


_NAME = re.compile(r"([a-z][a-z-]*?)(?:-(\d+))?")


def attack_summaries() -> dict[str, str]:
    """What each kind of attack is, by the form of its name.

    Example:
        >>> attack_summaries()["fgsm"]
        'one gradient step of length ε'
    """
    return {
        **{f"{name}-N" if kind.number else name: kind.summary for name, kind in KINDS.items()},
        "foolbox:NAME": "an attack of foolbox's for the norm of the threat model, where it is installed",
        "MODULE:FUNCTION": "an attack of your own, called as hf_robust_transfer.pgd is",
    }


def named_kind(text: str) -> str | None:
    """The kind of an attack of this package that a name begins with; None for one from elsewhere.

    Example:
        >>> named_kind("pgd-20:restarts=2"), named_kind("mine:attack")
        ('pgd', None)
    """
    match = _NAME.fullmatch(text.partition(":")[0])
    return match[1] if match is not None and match[1] in KINDS else None


def parse_attack(text: str, norm: str | None = None) -> Attack:
    """Read an attack's name: ``kind``, ``kind-N`` or ``kind-N:option=value,option=value``.

    N is the number of steps, for ``noise`` of draws and for ``square`` of queries. ``foolbox:Name`` is an attack of
    foolbox's and ``module:function`` one of your own; both may have options after another colon.

    Args:
        text: the name.
        norm: of the threat model, where it is known already.

    Raises:
        UsageError: an unknown kind or option, or a value out of range; the message says what there is.

    Example:
        >>> parse_attack("pgd-100:restarts=5").options
        {'steps': 100, 'restarts': 5, 'step_size': None, 'loss': 'cross_entropy'}
    """
    name, _, settings = text.partition(":")
    if name == "foolbox":
        return foolbox_attack(text, norm)
    match = _NAME.fullmatch(name)
    if match is None or match[1] not in KINDS:
        if settings:
            return attack_of_module(text)
        raise UsageError(
            f"attack {text!r} is unknown: use {', '.join(KINDS)}, or with a number like pgd-100;"
            " foolbox:NAME, or MODULE:FUNCTION for one of your own"
        )
    kind = KINDS[match[1]]
    if match[2] is not None and kind.number is None:
        there = ", ".join(options_of(kind.run))
        raise UsageError(f"attack {text!r}: {match[1]} has no number" + (f", only {there}" if there else " and no options"))
    given = {} if match[2] is None else {str(kind.number): match[2]}
    given |= {option: value for option, _, value in (each.partition("=") for each in settings.split(",") if each)}
    options = read_options(options_of(kind.run), given, f"attack {text!r}: {match[1]}")
    return Attack(text, match[1], options, partial(kind.run, **options))


def parse_attacks(
    attacks: Sequence[str | Callable[..., Tensor] | Attack], *, surrogate: bool, norm: str | None = None
) -> list[Attack]:
    """Read the attacks of one evaluation.

    Args:
        attacks: names as for `parse_attack`, functions as for `own_attack`, or what either gave.
        surrogate: whether there is a model to craft the examples of ``transfer`` on.
        norm: of the threat model, where it is known already.

    Raises:
        UsageError: none, one twice, ``transfer`` without a surrogate, or whatever `parse_attack` raises.
    """
    read = [_read(attack, norm) for attack in attacks]
    names = [attack.name for attack in read]
    if not read or len(set(names)) < len(names):
        raise UsageError(f"attacks {', '.join(names) or '(none)'}: name at least one, and none twice")
    if not surrogate and any(attack.kind == "transfer" for attack in read):
        raise UsageError("the attack transfer crafts its examples on another model: give a surrogate of the same labels")
    return read


def _read(attack: str | Callable[..., Tensor] | Attack, norm: str | None) -> Attack:
    if isinstance(attack, Attack):
        return attack
    return parse_attack(attack, norm) if isinstance(attack, str) else own_attack(attack)
