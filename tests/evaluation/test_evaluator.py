"""The evaluator with the interface of `evaluate`."""

from functools import partial

import datasets
import pytest
from evaluated_digits import EPS, QUICK, images_of

from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.evaluation import (
    evaluate_robustness,
    load_metric,
)
from hf_robust_transfer.evaluation.evaluator import RobustnessEvaluator


def test_the_evaluator_computes_what_the_evaluation_does(trained, classifier, data):
    model, processor = trained
    evaluator = RobustnessEvaluator(EPS, "pgd-20", seed=2)
    result = evaluator.compute(model_or_pipeline=model, feature_extractor=processor, data=images_of(data), device=-1)
    rounded = [{**item, "pixel_values": (item["pixel_values"] * 255).round() / 255} for item in data]
    report = evaluate_robustness(classifier, rounded, EPS, ["pgd-20"], seed=2, **QUICK)
    assert result["robust_accuracy"] == report.worst_case.value < result["clean_accuracy"] == report.clean.value
    assert result["total_time_in_seconds"] > 0 and result["samples_per_second"] > 0


def test_the_evaluator_takes_other_metrics_columns_and_label_names(trained, data):
    model, processor = trained
    images = images_of(data[:30]).rename_columns({"image": "picture", "label": "kind"})
    shifted = images.map(lambda row: {"kind": 100 + row["kind"]})
    evaluator = RobustnessEvaluator(EPS, "fgsm")
    common = {"model_or_pipeline": model, "feature_extractor": processor, "input_column": "picture"}
    direct = evaluator.compute(**common, data=images, label_column="kind", metric="robustness_gap")
    mapping = {str(digit): 100 + digit for digit in range(10)}
    mapped = evaluator.compute(
        **common, data=shifted, label_column="kind", label_mapping=mapping, metric=load_metric("robustness_gap")
    )
    assert direct["robustness_gap"] == mapped["robustness_gap"] > 0
    with pytest.raises(ValueError, match="label_mapping does not lead to the labels"):
        evaluator.compute(**common, data=images, label_column="kind", label_mapping=mapping)
    with pytest.raises(ValueError, match="Invalid `label_column` label"):
        evaluator.compute(**common, data=images)


def test_the_evaluator_bootstraps_intervals(trained, data):
    model, processor = trained
    evaluator = RobustnessEvaluator(EPS, "fgsm")
    result = evaluator.compute(
        model_or_pipeline=model,
        feature_extractor=processor,
        data=images_of(data[:30]),
        metric=load_metric("robustness_gap", keep_in_memory=True),
        strategy="bootstrap",
        n_resamples=20,
        random_state=0,
    )
    low, high = result["robustness_gap"]["confidence_interval"]
    assert low <= result["robustness_gap"]["score"] <= high


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_or_pipeline": None}, "model_or_pipeline is missing"),
        ({"feature_extractor": None}, "comes without its image processor"),
        ({"tokenizer": "bert"}, "an image classifier has no tokenizer"),
        ({"data": None}, "valid `data` object"),
    ],
)
def test_the_evaluator_refuses_what_it_cannot_evaluate(trained, data, arguments, message):
    model, processor = trained
    given = {"model_or_pipeline": model, "feature_extractor": processor, "data": images_of(data[:4]), **arguments}
    with pytest.raises(ValueError, match=message):
        RobustnessEvaluator(EPS).compute(**given)


def test_the_evaluator_takes_the_test_split_whatever_its_format(trained, data):
    model, processor = trained
    images = images_of(data[:20])
    splits = datasets.DatasetDict(train=images.select([0]), test=images.with_format("torch"))
    evaluator = RobustnessEvaluator(EPS, "fgsm")
    alone, of_splits = (evaluator.compute(model, each, feature_extractor=processor) for each in (images, splits))
    for name in ("clean_accuracy", "robust_accuracy"):
        assert alone[name] == of_splits[name]


def test_the_evaluator_matches_labels_by_name(trained, data):
    model, processor = trained
    images = images_of(data[:30])
    compute = partial(RobustnessEvaluator(EPS, "fgsm").compute, model_or_pipeline=model, feature_extractor=processor)
    expected = compute(data=images)["clean_accuracy"]
    backwards = datasets.ClassLabel(names=[str(digit) for digit in reversed(range(10))])
    named = images.map(lambda row: {"label": 9 - row["label"]}).cast_column("label", backwards)
    assert compute(data=named)["clean_accuracy"] == expected > 0.5
    assert compute(data=images.cast_column("label", datasets.Value("string")))["clean_accuracy"] == expected
    words = named.cast_column("label", datasets.ClassLabel(names=list("abcdefghij")))
    with pytest.raises(UsageError, match=r"no label is named a, b, .*; say which they are with label_mapping"):
        compute(data=words)
    with pytest.raises(UsageError, match="data= csv is a format"):
        compute(data="csv")
