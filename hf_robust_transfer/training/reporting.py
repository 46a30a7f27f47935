"""What is reported during training: the terms of its loss, and metrics of evaluations."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from transformers.trainer_utils import EvalPrediction

METRICS = ("accuracy", "robust_accuracy", "loss", "robust_loss")


class LossTerms:
    """The means of a loss's terms over the steps since they were last asked for.

    Args:
        late: look whether they are finite one micro-batch later: a look at once would have the host wait for a GPU, which
            then would wait for the host.
    """

    def __init__(self, *, late: bool = False) -> None:
        self._late = late
        self._sums: dict[str, Tensor] = {}
        self._since = 0
        self._unseen: tuple[int, Tensor, Mapping[str, Tensor]] | None = None

    def add(
        self,
        terms: Mapping[str, Tensor],
        metrics: Mapping[str, Tensor],
        share: float | Tensor,
        step: int,
        accelerator: Accelerator,
    ) -> None:
        """Add a micro-batch's terms and metrics, of which a share counts, in the step of this number.

        Raises:
            FloatingPointError: as `check` does.
        """
        finite = torch.isfinite(torch.stack(list(terms.values())).sum())
        if accelerator.num_processes > 1:  # all go on or none does: they would wait for each other's gradients
            finite = accelerator.reduce(finite.float(), "sum") == accelerator.num_processes
        if self._late:
            self.check()
        self._unseen = step, finite, {name: value.detach() for name, value in terms.items()}
        if not self._late:
            self.check()
        if not self._sums:
            self._since = step
        for name, value in ({f"loss_{name}": value for name, value in terms.items()} | dict(metrics)).items():
            self._sums[name] = self._sums.get(name, 0) + value.detach() * share

    def check(self) -> None:
        """Look at the terms that were not looked at.

        Raises:
            FloatingPointError: one of them is NaN or infinite, on this process or on another.
        """
        if self._unseen is None:
            return
        (step, finite, terms), self._unseen = self._unseen, None
        if not finite:
            bad = [f"{name}={value.item()}" for name, value in terms.items() if not torch.isfinite(value)]
            raise FloatingPointError(
                f"step {step}: loss term {', '.join(bad) or 'of another process'}. Lower --learning_rate, or start from the"
                " last checkpoint with another --seed"
            )

    def means(self, accelerator: Accelerator, step: int) -> dict[str, float]:
        """``loss_natural``, …, and metrics by their names: means over processes and steps; start anew. Of none, nothing.

        Raises:
            FloatingPointError: as `check` does.
        """
        self.check()
        if not self._sums:
            return {}
        names, steps = list(self._sums), max(1, step - self._since)
        sums = accelerator.reduce(torch.stack(list(self._sums.values())).float(), "mean")
        self._sums = {}
        return {name: value / steps for name, value in zip(names, sums.tolist(), strict=True)}


def robustness_metrics(prediction: EvalPrediction, more: Any = None) -> dict[str, float]:
    """Accuracy and cross-entropy on clean and, where there are any, adversarial images.

    A sample that is misclassified as it is does not count as robust, whatever the attack made of it.

    Args:
        prediction: ``predictions`` is the clean logits (N, classes), or a pair of them and the adversarial ones.
        more: a further function from an `EvalPrediction` of clean logits to metrics.

    Returns:
        ``accuracy`` and ``loss``, and with adversarial logits ``robust_accuracy`` and ``robust_loss``.

    Raises:
        FloatingPointError: logits that are NaN or infinite, of which no class is predicted.

    Example:
        >>> clean, adversarial = np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([[0.0, 1.0], [1.0, 0.0]])
        >>> robustness_metrics(EvalPrediction((clean, adversarial), np.array([1, 0])))["robust_accuracy"]
        0.5
    """
    both = prediction.predictions if isinstance(prediction.predictions, tuple) else (prediction.predictions,)
    labels = np.asarray(prediction.label_ids)
    metrics: dict[str, float] = {}
    correct = np.ones(len(labels), dtype=bool)
    for prefix, logits in zip(("", "robust_"), both, strict=False):
        broken = int((~np.isfinite(np.asarray(logits))).any(1).sum())
        if broken:
            kind = "adversarial" if prefix else "clean"
            raise FloatingPointError(
                f"evaluation: the logits of {broken} of {len(labels)} {kind} images are not finite. Lower --learning_rate,"
                " or start from the last checkpoint with another --seed"
            )
        correct &= np.asarray(logits).argmax(1) == labels
        metrics[f"{prefix}accuracy"] = correct.mean().item()
        loss = F.cross_entropy(torch.as_tensor(logits).double(), torch.as_tensor(labels))
        metrics[f"{prefix}loss"] = loss.item()
    if more is not None:
        metrics |= more(EvalPrediction(predictions=both[0], label_ids=prediction.label_ids))
    return metrics


def random_state(device: torch.device) -> Callable[[], None]:
    """Note every global random state, on the CPU and on this device; what is returned brings it back."""
    python_state, numpy_state, state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    of_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore() -> None:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(state)
        if of_device is not None:
            torch.cuda.set_rng_state(of_device, device)

    return restore


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Leave every global random state, on the CPU and on this device, as it was before."""
    restore = random_state(device)
    try:
        yield
    finally:
        restore()
