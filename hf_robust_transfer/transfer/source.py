"""Whether a source is robust at all: refused where its name is known, and looked at on the user's own images."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..attacks import pgd
from ..attacks.eval_mode import untouched
from ..errors import UsageError
from ..modeling.classifier import PixelClassifier, full_precision
from ..modeling.sources import ADVISED, not_robust
from ..threat_model import ThreatModel
from .warm_start import HeadWarmStart

STEPS, IMAGES = 10, 64  # of the look that is taken
_CARRIES = ("frozen", "lwf")  # the presets in which all robustness is the source's
_AT_A_TIME = 16


def check_source(name: str, transfer: str | None, config: Mapping[str, Any] | None = None) -> None:
    """Refuse what is called adversarial and is not robust as the source of a transfer that adds no robustness of its own.

    Args:
        name: a Hub id, a timm name or a folder.
        transfer: the preset.
        config: what the model's ``config.json`` says, where that is at hand.

    Raises:
        UsageError: it is such a model.
    """
    if transfer in _CARRIES and (reason := not_robust(name, config)) is not None:
        raise UsageError(
            f"{name} is no robust source for --transfer {transfer}: {reason}. Use a robust one, such as {ADVISED}"
            " (`hf-robust-transfer sources` lists them), or train robustness into this one with --transfer fine_tuned"
            " --objective pgd"
        )


def accuracy_kept(
    classifier: PixelClassifier, images: Tensor, labels: Tensor, threat_model: ThreatModel
) -> tuple[float, float]:
    """The accuracy of a model on a few images, and what PGD leaves of it; the model is not changed.

    Args:
        classifier: the model.
        images: in [0, 1], (B, C, H, W).
        labels: integers (B,).
        threat_model: the attack's.

    Returns:
        The shares of images that are classified right as they are, and also after the attack.
    """
    clean, robust = 0, 0
    with full_precision(classifier), torch.no_grad(), untouched(classifier):
        for rows in torch.arange(len(images), device=images.device).split(_AT_A_TIME):
            right = rows[classifier(images[rows]).argmax(1) == labels[rows]]
            if len(right):  # the others are not robust, whatever an attack makes of them
                attacked = pgd(classifier, images[right], labels[right], threat_model, steps=STEPS, indices=right)
                robust += int((classifier(attacked).argmax(1) == labels[right]).sum())
            clean += len(right)
    return clean / len(images), robust / len(images)


class SourceCheck(TrainerCallback):
    """Have a look at the source, once the head has been trained on it and before anything else of it trains.

    That is after the head's warm start, or at the end where the head alone trains.

    Args:
        warm_start: knows when that is.
        look: is called once, on every process.
    """

    def __init__(self, warm_start: HeadWarmStart, look: Callable[[], None]) -> None:
        self._warm_start, self._look, self._looked = warm_start, look, False

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Look, in the first step after the warm start."""
        if 0 < self._warm_start.phases.head <= state.global_step < self._warm_start.phases.head + 1:
            self._once()

    def on_train_end(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Look, where the head alone was trained."""
        if args.freeze == "backbone":
            self._once()

    def _once(self) -> None:
        if not self._looked:  # a training that went back comes by again
            self._looked = True
            self._look()
