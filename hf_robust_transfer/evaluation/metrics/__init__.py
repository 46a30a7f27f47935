"""Metrics of `evaluate`: each folder here loads as a local metric, and as it stands is a Space for the Hub."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluate import EvaluationModule

METRICS = ("robust_accuracy", "robustness_gap")


def load_metric(name: str, **options: Any) -> "EvaluationModule":
    """Load one of this package's metrics; no network is needed.

    Args:
        name: ``"robust_accuracy"`` or ``"robustness_gap"``.
        options: passed on to `evaluate.load`, such as ``keep_in_memory``, ``num_process`` and ``process_id``.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> metric = load_metric("robustness_gap")
        >>> scores = metric.compute(predictions=[0, 1], adversarial_predictions=[0, 0], references=[0, 1])
        >>> scores["robustness_gap"]
        0.5
    """
    if name not in METRICS:
        raise ValueError(f"metric {name!r} is unknown: use one of {', '.join(METRICS)}")
    import evaluate  # here, for importing it takes a second

    if not hasattr(evaluate, "EvaluationModule"):
        raise ImportError(f"{evaluate.__file__} hides the library `evaluate`: give that file another name")
    return evaluate.load(str(Path(__file__).with_name(name)), **options)


def compute_metric(name: str, **columns: Any) -> dict[str, float]:
    """Compute one of this package's metrics at once, in memory.

    Args:
        name: as for `load_metric`.
        columns: ``predictions``, ``adversarial_predictions`` and ``references``, of the same length.

    Raises:
        ValueError: an unknown name, no samples, or columns of different lengths.

    Example:
        >>> compute_metric("robustness_gap", predictions=[0], adversarial_predictions=[1], references=[0])["robustness_gap"]
        1.0
    """
    return dict(_loaded(name).compute(**columns) or {})


@cache
def _loaded(name: str) -> "EvaluationModule":
    return load_metric(name, keep_in_memory=True)
