"""One fingerprint: the same for the same predictions, wherever the model lies; another for any change of them."""

import json

import pytest
import torch

from hf_robust_transfer.hub import stand_alone
from hf_robust_transfer.modeling import load_model
from hf_robust_transfer.modeling.fingerprint import fingerprint, fingerprint_parts


@pytest.fixture
def saved(tiny, kind, tmp_path):
    """A tiny model of each kind in memory, its processor, and the folder that both were saved to."""
    model, processor = tiny(kind, {0: "cat", 1: "dog", 2: "frog"})
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    return model, processor, tmp_path / "saved"


def differing(parts, others):
    """The names of the parts in which two fingerprints differ."""
    return [name for name in parts if parts[name] != others[name]]


def edit(file, change):
    """Apply a change to the content of a JSON file."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def settings_file(folder):
    """Where a folder says how its images are prepared, and its field of them."""
    own = folder / "preprocessor_config.json"
    return (own, lambda content: content) if own.exists() else (folder / "config.json", lambda c: c["pretrained_cfg"])


def test_a_saved_model_keeps_its_fingerprint_wherever_it_lies(saved, tmp_path):
    model, processor, folder = saved
    expected = fingerprint_parts(model, processor)
    assert fingerprint_parts(*load_model(str(folder))) == expected
    stand_alone(folder)
    for part in load_model(str(folder)):
        part.save_pretrained(tmp_path / "again")
    assert fingerprint_parts(*load_model(str(tmp_path / "again"))) == expected
    folder.rename(tmp_path / "moved")
    assert fingerprint_parts(*load_model(str(tmp_path / "moved"))) == expected


def test_what_changes_no_prediction_changes_no_fingerprint(saved):
    _, _, folder = saved
    before = fingerprint(*load_model(str(folder)))

    def note(content):
        turned = dict(reversed(content.items()))
        content.clear()
        content.update(turned, transformers_version="4.99", robust_training={"norm": "l2", "data": {"dataset_name": "x"}})

    edit(folder / "config.json", note)
    assert fingerprint(*load_model(str(folder))) == before


def swap_labels(folder):
    def change(content):
        if "label_names" in content:
            content["label_names"].reverse()
        else:
            content["id2label"] = {"0": "frog", "1": "dog", "2": "cat"}
            content["label2id"] = {"frog": 0, "dog": 1, "cat": 2}

    edit(folder / "config.json", change)


def change_statistics(name, folder):
    file, field = settings_file(folder)
    key = name if file.name == "config.json" else f"image_{name}"
    edit(file, lambda content: field(content).update({key: [0.31, 0.32, 0.33], "do_normalize": True}))


def change_resizing(folder):
    file, field = settings_file(folder)

    def change(content):
        content = field(content)
        content.update({"crop_pct": 0.5} if "input_size" in content else {"resample": 0})

    edit(file, change)


def change_weight(folder):
    model, _ = load_model(str(folder))
    with torch.no_grad():
        last = list(model.parameters())[-1]
        last[-1] += 1e-3
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda folder: change_statistics("mean", folder), "image processor"),
        (lambda folder: change_statistics("std", folder), "image processor"),
        (change_resizing, "image processor"),
        (swap_labels, "labels"),
        (change_weight, "weights"),
    ],
    ids=["mean", "std", "resizing", "labels", "weight"],
)
def test_what_changes_predictions_changes_the_fingerprint_and_is_named(saved, change, part):
    model, processor, folder = saved
    change(folder)
    changed = load_model(str(folder))
    assert fingerprint(*changed) != fingerprint(model, processor)
    assert differing(fingerprint_parts(*changed), fingerprint_parts(model, processor)) == [part]


@pytest.mark.parametrize(("kind", "field", "value"), [("timm-vit", "model_args", None), ("hf-vit", "hidden_act", "relu")])
def test_arguments_of_the_architecture_count_where_the_weights_stay_the_same(tiny, tmp_path, kind, field, value):
    model, processor = tiny(kind)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)

    def change(content):
        content[field] = value or {**content[field], "num_heads": 4}

    edit(tmp_path / "config.json", change)
    changed = fingerprint_parts(*load_model(str(tmp_path)))
    assert differing(changed, fingerprint_parts(model, processor)) == ["architecture"]
