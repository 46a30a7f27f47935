"""Accuracies with their Wilson intervals, counted from predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Accuracy:
    """A share of samples with its 95 % Wilson interval."""

    value: float
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.lower:.1%} – {self.upper:.1%})"

    @classmethod
    def of(cls, correct: Any) -> "Accuracy":
        """The share of samples that are true in a non-empty boolean array (N,).

        Example:
            >>> print(Accuracy.of([True, True, False, True]))
            75.0% (30.1% – 95.4%)
        """
        return accuracies([np.sum(correct)], [len(correct)])[0]


def wilson(counts: Any, totals: Any, confidence_level: float = 0.95) -> tuple[Array, Array]:
    """The Wilson score interval (Wilson 1927) of each count out of its total; all of [0, 1] where the total is 0.

    Args:
        counts, totals: whole numbers, of shapes that broadcast.
        confidence_level: how often the intervals are to cover the true shares.

    Returns:
        The lower and the upper ends.

    Example:
        >>> [end.round(3).tolist() for end in wilson([2, 0], [5, 0])]
        [[0.118, 0.0], [0.769, 1.0]]
    """
    counts, totals = np.broadcast_arrays(np.asarray(counts, float), np.asarray(totals, float))
    z = ndtri((1 + confidence_level) / 2)
    wrong = totals - counts
    centre = (counts + z**2 / 2) / (totals + z**2)
    half = z / (totals + z**2) * np.sqrt(counts * wrong / np.maximum(totals, 1) + z**2 / 4)
    return np.where(counts == 0, 0.0, centre - half), np.where(wrong == 0, 1.0, centre + half)


def accuracies(counts: Any, totals: Any) -> list[Accuracy]:
    """The share of each count in its total, with its interval; 0 where the total is 0: nothing is known about it.

    Args:
        counts, totals: whole numbers of shape (n,).

    Example:
        >>> [accuracy.value for accuracy in accuracies([3, 0], [4, 0])]
        [0.75, 0.0]
    """
    counts, totals = np.asarray(counts), np.asarray(totals)
    values = np.where(totals > 0, counts / np.maximum(totals, 1), 0.0)
    columns = (values, *wilson(counts, totals))
    return [Accuracy(*map(float, row)) for row in zip(*columns, strict=True)]


class Counted(NamedTuple):
    """What an attack left: the accuracy, and the share that it fooled of the samples that are right without it."""

    accuracy: Accuracy
    success_rate: Accuracy


def counted(right: Array, robust: Array) -> Counted:
    """The robust accuracy and the attack success rate.

    Args:
        right: whether each clean prediction is right, bool (N,).
        robust: whether it is and the prediction under attack is, too, bool (N,).
    """
    fooled = int(right.sum() - robust.sum())
    return Counted(*accuracies([robust.sum(), fooled], [len(right), right.sum()]))


def by_class(correct: Array, labels: Array, present: Sequence[int]) -> list[Accuracy]:
    """The accuracy on the samples of each class.

    Args:
        correct: whether each sample is, bool (N,).
        labels: the true classes, int (N,).
        present: the classes to look at.

    Example:
        >>> [accuracy.value for accuracy in by_class(np.array([True, False]), np.array([2, 2]), [2])]
        [0.5]
    """
    size = max(present, default=-1) + 1
    counts = np.bincount(labels[correct], minlength=size), np.bincount(labels, minlength=size)
    return accuracies(*(count[list(present)] for count in counts))
