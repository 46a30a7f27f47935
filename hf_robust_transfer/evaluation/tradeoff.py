"""Clean against robust accuracy, where one can be had for the other: points, choices and a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from ..errors import UsageError
from .accuracy import Accuracy
from .plots import BLUE, PLAIN, VERMILION

CHOICES = ("robust", "clean", "knee")


@dataclass(frozen=True)
class TradeoffPoint:
    """One model on the way between two.

    Args:
        alpha: where on the way, in [0, 1].
        clean: its accuracy.
        robust: its worst case under the attacks.
    """

    alpha: float
    clean: Accuracy
    robust: Accuracy


def parse_choice(text: str) -> str | float:
    """What is to be chosen: ``robust``, ``clean``, ``knee`` or a number in [0, 1].

    Raises:
        UsageError: it is none of these.

    Example:
        >>> parse_choice("knee"), parse_choice("0.75")
        ('knee', 0.75)
    """
    if text in CHOICES:
        return text
    try:
        alpha = float(text)
    except ValueError:
        alpha = -1.0
    if not 0 <= alpha <= 1:
        raise UsageError(f"--choose {text} is unknown: use {', '.join(CHOICES)} or a number in [0, 1]")
    return alpha


def choose_point(points: Sequence[TradeoffPoint], choice: str | float) -> TradeoffPoint:
    """One of the points.

    Args:
        points: of different α.
        choice: ``"robust"`` or ``"clean"``, the highest accuracy of that kind, of equal ones that with the higher other;
            ``"knee"``, the farthest from the diagonal once both accuracies are scaled to [0, 1] (Satopää et al. 2011), of
            equal ones the more robust; or an α.

    Example:
        >>> values = {0.0: (0.6, 0.2), 0.5: (0.75, 0.3), 1.0: (0.8, 0.1)}
        >>> points = [TradeoffPoint(alpha, *(Accuracy(value, 0, 1) for value in pair)) for alpha, pair in values.items()]
        >>> [choose_point(points, choice).alpha for choice in ("robust", "clean", "knee")]
        [0.5, 1.0, 0.5]
    """
    if isinstance(choice, float):
        return next(point for point in points if point.alpha == choice)
    clean, robust = ([getattr(point, name).value for point in points] for name in ("clean", "robust"))

    def scaled(value: float, values: Sequence[float]) -> float:
        width = max(values) - min(values)
        return (value - min(values)) / width if width else 0.0

    def rank(point: TradeoffPoint) -> tuple[float, float]:
        own = point.clean.value, point.robust.value
        if choice == "knee":
            return scaled(own[0], clean) + scaled(own[1], robust), own[1]
        return own if choice == "clean" else (own[1], own[0])

    return max(points, key=rank)


@matplotlib.rc_context(PLAIN)
def plot_tradeoff(points: Sequence[TradeoffPoint], chosen: TradeoffPoint, file: str | Path, *, title: str) -> None:
    """Draw robust against clean accuracy with 95 % intervals, each point with its α.

    Args:
        points: in the order of α.
        chosen: the one to mark.
        file: the PNG to write.
        title: above the picture.
    """
    figure = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    clean, robust = ([100 * getattr(point, name).value for point in points] for name in ("clean", "robust"))
    errors = [
        [[100 * (each.value - each.lower) for each in values], [100 * (each.upper - each.value) for each in values]]
        for values in ([point.robust for point in points], [point.clean for point in points])
    ]
    axes.errorbar(clean, robust, yerr=errors[0], xerr=errors[1], fmt="o-", color=BLUE, elinewidth=0.6, capsize=2)
    axes.plot(100 * chosen.clean.value, 100 * chosen.robust.value, "D", color=VERMILION, markersize=9, label="chosen")
    for point, x, y in zip(points, clean, robust, strict=True):
        axes.annotate(f"α = {point.alpha:g}", (x, y), xytext=(6, 6), textcoords="offset points")
    axes.set(xlabel="clean accuracy in %", ylabel="robust accuracy in %", title=title)
    axes.legend()
    figure.savefig(file)
