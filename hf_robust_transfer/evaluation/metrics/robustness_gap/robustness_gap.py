"""Robustness gap: the accuracy that an image classifier loses to an attack, with its Wilson interval."""

import datasets
import evaluate
import numpy as np
import scipy.stats

_DESCRIPTION = """
The robustness gap is the accuracy that an attack takes away: clean accuracy minus robust accuracy, which is the share of
samples that a classifier labels correctly as they are but not after the attack. It is reported with its Wilson score
interval and with the relative robustness, the share of the clean accuracy that is left.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: the predicted class of each clean image.
    adversarial_predictions: the predicted class of each attacked image, in the same order.
    references: the true class of each image.
    confidence_level: how often the interval is to cover the true gap, between 0 and 1. Default 0.95.

Returns:
    A dict of floats between 0 and 1.
    robustness_gap: the share of samples with the right prediction and a wrong adversarial prediction.
    robustness_gap_lower, robustness_gap_upper: its Wilson score interval.
    relative_robustness: robust accuracy divided by clean accuracy; 0.0 where the clean accuracy is 0. A sample counts as
        robust if its prediction is right and its adversarial prediction too.

Raises:
    ValueError: values that are no class indices (probabilities, say), no samples, columns of different lengths, or a
        confidence level out of range.

Example:
    >>> from hf_robust_transfer.evaluation.metrics import load_metric
    >>> metric = load_metric("robustness_gap")
    >>> scores = metric.compute(
    ...     predictions=[0, 1, 2, 2, 1],
    ...     adversarial_predictions=[0, 1, 1, 0, 0],
    ...     references=[0, 1, 2, 2, 0],
    ... )
    >>> scores["robustness_gap"], scores["relative_robustness"]
    (0.4, 0.5)
    >>> round(scores["robustness_gap_lower"], 3), round(scores["robustness_gap_upper"], 3)
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
class RobustnessGap(evaluate.Metric):
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
            raise ValueError("robustness_gap of no samples: pass at least one to compute, add or add_batch")
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
        right = int((clean == truth).sum())
        robust = int(((clean == truth) & (attacked == truth)).sum())
        fooled = right - robust
        interval = scipy.stats.binomtest(fooled, len(references)).proportion_ci(confidence_level, method="wilson")
        return {
            "robustness_gap": fooled / len(references),
            "robustness_gap_lower": float(interval.low),
            "robustness_gap_upper": float(interval.high),
            "relative_robustness": robust / right if right else 0.0,
        }
