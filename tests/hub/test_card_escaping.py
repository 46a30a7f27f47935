"""Whatever the names of classes, data and options are, a card and a report have the elements that the template made."""

from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings, strategies as st
from made_report import made_report
from test_markdown import NASTY, TEXTS, shown_by

from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.hub import model_card
from hf_robust_transfer.hub.card import CheckpointFacts
from hf_robust_transfer.markdown import one_line
from hf_robust_transfer.provenance import Provenance
from hf_robust_transfer.run_folder import RECORD_NAME

HARMLESS = "word"


def facts_with(text):
    """A checkpoint's facts with a text in every place that something from outside can get to."""
    report = made_report(names=(text, "bee", "cow"), data_name=text)
    report = replace(
        report,
        model={**report.model, "name": text},
        data={**report.data, "split": text, "options": {"dataset_name": text, "classes": [text, "bee"]}},
        attacks=[replace(attack, remarks=[text]) for attack in report.attacks],
        self_checks=[replace(check, name=text, detail=text) for check in report.self_checks],
        hardware=text,
        versions={text: text},
    )
    record = Provenance(
        command=f"finetune {text}",
        base_model=text,
        data={"dataset_name": text},
        images={"train": 3},
        options={"objective": text, "objective_options": {text: text}, text: text, "freeze": text},
        hardware=text,
        versions={text: text},
    )
    training = {**record.to_dict(), "seconds": 1.0}
    return CheckpointFacts(None, text, [text, "bee", "cow"], (3, 8, 8), {"weights": "w"}, report, training, [])


def body(text):
    card = str(model_card(facts_with(text), "me/mine", license=text))
    start, metadata, *rest = card.split("---\n", 2)
    assert start == "" and isinstance(yaml.safe_load(metadata), dict)
    return rest[0], yaml.safe_load(metadata)


def check(text):
    page, metadata = body(text)
    elements, words = shown_by(page)
    assert elements == shown_by(body(HARMLESS)[0])[0]
    if one_line(text) and one_line(text) == text.strip():
        assert text.strip() in words
    assert set(metadata) == set(body(HARMLESS)[1])
    report = facts_with(text).report.markdown()
    assert shown_by(report)[0] == shown_by(facts_with(HARMLESS).report.markdown())[0]


@pytest.mark.parametrize("text", NASTY)
def test_a_card_with_a_nasty_name_everywhere_has_the_same_elements(text):
    check(text)


@settings(max_examples=60)
@given(TEXTS.filter(lambda text: one_line(text) != "") | st.sampled_from(NASTY))
def test_a_card_with_any_name_everywhere_has_the_same_elements(text):
    check(text)


@pytest.mark.parametrize("repo_id", ["a/b/c", 'me/x"); evil("', "me/mine\n# Heading", "-x", "me/..", "", "me/a b"])
def test_what_is_no_name_of_a_repository_gets_no_card(repo_id):
    with pytest.raises(UsageError, match=r"^--repo_id "):
        model_card(facts_with(HARMLESS), repo_id)


def test_without_results_the_metadata_names_no_model_and_local_data_are_of_no_data_set_on_the_hub():
    facts = facts_with(HARMLESS)
    assert "model_name" not in yaml.safe_load(str(model_card(replace(facts, report=None), "me/mine")).split("---\n")[1])
    for name, hub_id, expected in (
        ("imagenet", None, "imagefolder"),
        ("cifar10", "cifar10", "cifar10"),
        ("me/x", None, "me/x"),
    ):
        report = made_report(data_name=name)
        report = replace(report, data={**report.data, "hub_id": hub_id})
        results = model_card(replace(facts, report=report), "me/mine").data.eval_results
        assert {(result.dataset_type, result.dataset_name) for result in results} == {(expected, name)}


def test_a_record_of_other_types_is_no_record(tmp_path):
    for name, value in {"seconds": "fast", "images": [3], "options": "x", "processes": 1.5}.items():
        with pytest.raises(UsageError, match=rf"{name} .* of a Provenance record is of the wrong type"):
            Provenance.from_dict({name: value})
    with pytest.raises(UsageError, match="is a JSON object"):
        Provenance.from_dict([RECORD_NAME])  # type: ignore[arg-type]
