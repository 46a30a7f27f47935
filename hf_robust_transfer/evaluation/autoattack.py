"""AutoAttack as its authors wrote it (the package `pyautoattack`), on the samples of one chunk."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from pyautoattack import AutoAttack
from torch import Tensor

from ..attacks.ascent import NO_GRADIENT, per_image
from ..attacks.eval_mode import Classifier, untouched
from ..attacks.inputs import checked_inputs
from ..errors import UsageError
from ..threat_model import ThreatModel

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
MEMBERS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
# The DLR losses compare with the third (targeted: fourth) largest logit.
_FEWEST_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}
# Square for l2 lays a grid of five squares over an image's side.
_SMALLEST_FOR_SQUARE = 5


def autoattack(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    threat_model: ThreatModel,
    *,
    members: Sequence[str] = STANDARD,
    queries: int = 5000,
    seed: int = 0,
    tell: Callable[[str], object] | None = None,
) -> tuple[Tensor, list[str]]:
    """AutoAttack (Croce & Hein, arXiv 2003.01690), the standard version or some of its members.

    All images are attacked as one batch, as ``AutoAttack(…, version="standard").run_standard_evaluation`` does it with
    a batch size of at least their number; its noise depends on the position in the batch. With fewer than ten classes
    there are as many target classes as remain. Global random state is left as it was.

    Args:
        classifier, images, labels: as for `hf_robust_transfer.attacks.pgd`. AutoAttack computes in float32.
        threat_model: linf or l2, over pixels in [0, 1].
        members: which attacks, each on the samples that those before it left unfooled.
        queries: of Square.
        seed: of all its noise.
        tell: called with what AutoAttack says as it goes: which member runs and how many images it fooled.

    Returns:
        Images of the same shape and dtype, adversarial where an attack succeeded and clean elsewhere, and remarks: members
        that cannot run with so few classes or pixels, and AutoAttack's own warnings.

    Raises:
        UsageError: pixel bounds other than [0, 1], which AutoAttack cannot have, a classifier without gradients for
            members that need them, or what `pgd` raises of its images and labels.

    Example:
        >>> classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
        >>> images, labels = torch.rand(2, 3, 2, 2), torch.tensor([0, 1])
        >>> _, remarks = autoattack(classifier, images, labels, ThreatModel(), members=["apgd-t"])
        >>> remarks
        ['apgd-t was not run: it needs at least 4 classes, and there are 3']
    """
    if threat_model.bounds != (0.0, 1.0):
        raise UsageError(f"AutoAttack knows pixels in [0, 1] only, not in {list(threat_model.bounds)}")
    images, labels, _, classify = checked_inputs(classifier, images, labels, threat_model)
    devices = [images.device] if images.device.type == "cuda" else []
    given = images.detach()
    with torch.inference_mode(False), untouched(classifier), torch.random.fork_rng(devices):
        images, labels = given.to(torch.float32, copy=True), labels.clone()  # AutoAttack knows no other type
        with torch.enable_grad():
            seen = classify(given[:1].clone().requires_grad_())
        classes = seen.shape[1]
        unable = {member: _missing(member, classes, images.shape, threat_model.norm) for member in members}
        remarks = [f"{member} was not run: it needs {missing}" for member, missing in unable.items() if missing]
        able = [member for member in members if not unable[member]]
        if not able:
            return given.clone(), remarks
        if seen.grad_fn is None and able != ["square"]:
            raise UsageError(NO_GRADIENT)

        def network(shown: Tensor) -> Tensor:
            return classify(shown.to(given.dtype)).float()

        norm = {"linf": "Linf", "l2": "L2"}[threat_model.norm]
        attack = AutoAttack(network, norm=norm, eps=threat_model.eps, seed=seed, version="standard", device=images.device)
        attack.attacks_to_run = able
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, classes - 1)
        attack.square.n_queries = queries
        with _warnings_of(attack.logger, tell) as warnings:
            adversarial, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
        if given.dtype != adversarial.dtype:  # rounding to it may lead out of the ball
            changed = per_image((adversarial != images).flatten(1).any(1), images)
            adversarial = torch.where(changed, threat_model.project(adversarial, given), given)
        return adversarial.detach(), remarks + [f"on {len(images)} images at a time: {warning}" for warning in warnings]


def _missing(member: str, classes: int, shape: Sequence[int], norm: str) -> str:
    """What a member needs of a classifier or its images and does not have; empty where it can run."""
    if classes < _FEWEST_CLASSES.get(member, 2):
        return f"at least {_FEWEST_CLASSES[member]} classes, and there are {classes}"
    if member == "square" and norm == "l2" and min(shape[-2:]) < _SMALLEST_FOR_SQUARE:
        return f"images of at least {_SMALLEST_FOR_SQUARE} pixels a side for l2, and they have {min(shape[-2:])}"
    return ""


@contextmanager
def _warnings_of(logger: logging.Logger, tell: Callable[[str], object] | None) -> Iterator[list[str]]:
    """Collect a logger's warnings, each once, and tell its other messages, instead of printing them."""
    warnings: list[str] = []

    class Listen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if record.levelno < logging.WARNING:
                if tell is not None:
                    tell(message)
            elif message not in warnings:
                warnings.append(message)

    handler, propagate, level = Listen(), logger.propagate, logger.level
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    try:
        yield warnings
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        logger.setLevel(level)
