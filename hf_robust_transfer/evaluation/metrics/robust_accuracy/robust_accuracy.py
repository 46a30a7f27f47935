"""Robust accuracy, clean accuracy and attack success rate of an image classifier, with Wilson intervals."""

import datasets
import evaluate
import numpy as np
import scipy.stats

_DESCRIPTION = """
Robust accuracy is the share of samples that a classifier labels correctly both as they are and after an attack. It is
reported with the clean accuracy, with the attack success rate, and with the Wilson score interval of each.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: the predicted class of each clean image.
    adversarial_predictions: the predicted class of each attacked image, in the same order.
    references: the true class of each image.
    confidence_level: how often the intervals are to cover the true rates, between 0 and 1. Default 0.95.

Returns:
    A dict of floats between 0 and 1; each of the three rates comes with its interval, in `_lower` and `_upper`.
    clean_accuracy: the share of samples with the right prediction.
    robust_accuracy: the share of samples with the right prediction and the right adversarial prediction.
    attack_success_rate: the share of the samples with the right prediction that have a wrong adversarial prediction.
        Where no prediction is right it is 0.0, with the interval from 0.0 to 1.0: nothing is known about it.

Raises:
    ValueError: values that are no class indices (probabilities, say), no samples, columns of different lengths, or a
        confidence level out of range.

Example:
    >>> from hf_robust_transfer.evaluation.metrics import load_metric
    >>> metric = load_metric("robust_accuracy")
    >>> scores = metric.compute(
    ...     predictions=[0, 1, 2, 2, 1],
    ...     adversarial_predictions=[0, 1, 1, 0, 0],
    ...     references=[0, 1, 2, 2, 0],
    ... )
    >>> scores["clean_accuracy"], scores["robust_accuracy"], scores["attack_success_rate"]
    (0.8, 0.4, 0.5)
    >>> round(scores["robust_accuracy_lower"], 3), round(scores["robust_accuracy_upper"], 3)
    (0.118, 0.769)
"""

_CITATION = """
@inproceedings{shafahi2020adversarially,
    title = {Adversarially Robust Transfer Learning},
    author = {Shafahi, Ali and Saadatpanah, Parsa and Zhu, Chen and Ghiasi, Amin and Studer, Christoph and Jacobs, David
        and Goldstein, Tom},
    booktitle = {International Conference on Learning Representations},
    year = {2020},
    eprint = {1905.08232},
    archivePrefix = {arXiv}
}
@article{wilson1927probable,
    title = {Probable Inference, the Law of Succession, and Statistical Inference},
    author = {Wilson, Edwin B.},
    journal = {Journal of the American Statistical Association},
    volume = {22},
    number = {158},
    pages = {209--212},
    year = {1927}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class RobustAccuracy(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            # Class indices; as int64, `datasets` would cut 0.9 down to 0 without a word.
            features=datasets.Features(
                {
                    "predictions": datasets.Value("float64"),
                    "adversarial_predictions": datasets.Value("float64"),
                    "references": datasets.Value("float64"),
                }
            ),
            reference_urls=["https://arxiv.org/abs/1905.08232"],
        )

    def _compute(
        self,
        predictions: list[float],
        adversarial_predictions: list[float],
        references: list[float],
        confidence_level: float = 0.95,
    ) -> dict[str, float]:
        if len(references) == 0:
            raise ValueError("robust_accuracy of no samples: pass at least one to compute, add or add_batch")
        if not 0 < confidence_level < 1:
            raise ValueError(f"confidence_level={confidence_level} must be between 0 and 1: 95 % is 0.95")
        columns = [np.asarray(column, float) for column in (predictions, adversarial_predictions, references)]
        for column in columns:
            classes = np.isfinite(column) & (column >= 0) & (column == np.floor(column))
            if not classes.all():
                raise ValueError(
                    f"{column[~classes][0]} is no class index: pass whole numbers from 0 on, of logits or probabilities the"
                    " argmax"
                )
        clean, attacked, truth = columns
        right = clean == truth
        robust = right & (attacked == truth)
        counts = {
            "clean_accuracy": (right.sum(), len(references)),
            "robust_accuracy": (robust.sum(), len(references)),
            "attack_success_rate": (right.sum() - robust.sum(), right.sum()),
        }
        scores = {}
        for name, (count, total) in counts.items():
            scores[name] = float(count / total) if total else 0.0
            scores[f"{name}_lower"], scores[f"{name}_upper"] = _wilson(int(count), int(total), confidence_level)
        return scores


def _wilson(count: int, total: int, confidence_level: float) -> tuple[float, float]:
    """The Wilson score interval of `count` out of `total`; all of [0, 1] where `total` is 0."""
    if total == 0:
        return 0.0, 1.0
    interval = scipy.stats.binomtest(count, total).proportion_ci(confidence_level, method="wilson")
    return float(interval.low), float(interval.high)
