"""Metrics count class indices and nothing else."""

import numpy as np
import pytest
import torch

from hf_robust_transfer.evaluation import load_metric
from hf_robust_transfer.evaluation.metrics import METRICS

COLUMNS = {"predictions": [0, 1, 0], "adversarial_predictions": [0, 1, 0], "references": [0, 1, 0]}
NO_INDICES = {
    "probabilities": [0.9, 1.0, 0.0],
    "an array of them": np.array([0.2, 1, 0], np.float32),
    "a tensor of them": torch.tensor([0.5, 1, 0]),
    "NaN": [float("nan"), 1, 0],
    "infinity": [float("inf"), 1, 0],
    "nothing": [None, 1, 0],
    "unlabelled": [-1, 1, 0],
    "names": ["cat", "dog", "cat"],
    "logits": [[0.1, 0.9], [0.9, 0.1], [0.2, 0.8]],
    "one-hot": np.eye(3, dtype=int),
}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("values", NO_INDICES.values(), ids=list(NO_INDICES))
def test_what_is_no_class_index_is_refused_and_not_cut_to_one(name, column, values):
    metric = load_metric(name, keep_in_memory=True)
    with pytest.raises(ValueError, match=r"no class index|could not convert|don't match"):
        metric.compute(**{**COLUMNS, column: values})


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("kind", [float, np.float64, np.uint8, bool])
def test_whole_numbers_count_whatever_type_holds_them(name, kind):
    metric = load_metric(name, keep_in_memory=True)
    expected = metric.compute(**{**COLUMNS, "adversarial_predictions": [0, 0, 0]})
    metric = load_metric(name, keep_in_memory=True)
    assert metric.compute(**{**COLUMNS, "adversarial_predictions": [kind(0)] * 3}) == expected
