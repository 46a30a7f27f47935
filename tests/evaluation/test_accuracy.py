"""Accuracies counted in NumPy, against SciPy and against the metric that users load."""

import numpy as np
import pytest
from scipy.stats import binomtest

from hf_robust_transfer.evaluation import load_metric
from hf_robust_transfer.evaluation.accuracy import Accuracy, accuracies, by_class, counted, wilson


@pytest.mark.parametrize("confidence_level", [0.95, 0.8])
def test_the_wilson_interval_is_scipys(confidence_level):
    totals = np.array([1, 1, 3, 7, 20, 1000, 10_000])
    counts = np.array([0, 1, 2, 7, 0, 931, 5000])
    low, high = wilson(counts, totals, confidence_level)
    for count, total, lower, upper in zip(counts, totals, low, high, strict=True):
        interval = binomtest(int(count), int(total)).proportion_ci(confidence_level, method="wilson")
        assert (lower, upper) == pytest.approx((interval.low, interval.high), abs=1e-14)


def test_of_no_samples_nothing_is_known():
    assert accuracies([0, 3], [0, 3]) == [Accuracy(0.0, 0.0, 1.0), accuracies([3], [3])[0]]


@pytest.mark.parametrize("right_share", [0.0, 0.6, 1.0])
def test_the_metric_computes_the_same(right_share):
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 60)
    clean = np.where(random.random(60) < right_share, labels, labels + 1)
    attacked = np.where(random.random(60) < 0.5, clean, labels + 2)
    metric = load_metric("robust_accuracy", keep_in_memory=True)

    def expected(rows):
        columns = {"predictions": clean[rows], "adversarial_predictions": attacked[rows], "references": labels[rows]}
        scores = metric.compute(**columns)
        return [
            pytest.approx((scores[name], scores[f"{name}_lower"], scores[f"{name}_upper"]), abs=1e-14)
            for name in ("clean_accuracy", "robust_accuracy", "attack_success_rate")
        ]

    right = clean == labels
    robust = right & (attacked == labels)
    ours = [Accuracy.of(right), *counted(right, robust)]
    assert [(each.value, each.lower, each.upper) for each in ours] == expected(slice(None))
    present = [3, 0, 1]
    classes = zip(present, by_class(right, labels, present), by_class(robust, labels, present), strict=True)
    for label, *of_class in classes:
        assert [(each.value, each.lower, each.upper) for each in of_class] == expected(labels == label)[:2]
