"""A fingerprint is that of a model in memory and on disk, and changes with whatever changes predictions."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_robust_transfer.hub import stand_alone
from hf_robust_transfer.modeling import load_model
from hf_robust_transfer.modeling.fingerprint import fingerprint, fingerprint_parts


@pytest.fixture
def saved(kind, tiny, tmp_path):
    model, processor = tiny(kind)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    stand_alone(tmp_path)
    return tmp_path, fingerprint(model, processor)


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_model_in_memory_and_its_folder_have_the_same(saved):
    folder, expected = saved
    assert fingerprint(*load_model(str(folder))) == expected
    again = folder / "again"
    for part in load_model(str(folder)):
        part.save_pretrained(again)
    assert fingerprint(*load_model(str(again))) == expected

    def note(config):
        config["robust_training"] = {"eps": "0.1"}
        config["transformers_version"] = "9.9"

    edit(folder / "config.json", note)
    assert fingerprint(*load_model(str(folder))) == expected


def test_whatever_changes_predictions_changes_it(saved):
    folder, expected = saved
    weights = load_file(folder / "model.safetensors")
    name = next(name for name, value in weights.items() if value.is_floating_point())
    save_file(
        {**weights, name: torch.nextafter(weights[name], torch.tensor(9.0))}, folder / "model.safetensors", {"format": "pt"}
    )
    model, processor = load_model(str(folder))
    assert fingerprint(model, processor) != expected
    save_file(weights, folder / "model.safetensors", {"format": "pt"})

    config, processing = folder / "config.json", folder / "preprocessor_config.json"
    before = {file: file.read_text() for file in (config, processing) if file.is_file()}

    def swap_labels(content):
        labels = content.get("id2label", None)
        if labels is None:
            content["label_names"] = content["label_names"][::-1]
        else:
            labels["0"], labels["1"] = labels["1"], labels["0"]

    edit(config, swap_labels)
    changed = fingerprint_parts(*load_model(str(folder)))
    config.write_text(before[config])
    whole = fingerprint_parts(*load_model(str(folder)))
    assert [part for part in whole if whole[part] != changed[part]] == ["labels"]

    timm_like = json.loads(before[config]).get("model_type") == "timm_wrapper"
    for place, key, value in (
        [(config, "mean", [0.1, 0.2, 0.3]), (config, "std", [0.51, 0.5, 0.5]), (config, "crop_pct", 0.7)]
        if timm_like
        else [(processing, "image_mean", [0.1, 0.2, 0.3]), (processing, "image_std", [0.5, 0.5, 0.4])]
    ):
        edit(
            place,
            lambda content, key=key, value=value: (content["pretrained_cfg"] if timm_like else content).update(
                {key: value}
            ),
        )
        if timm_like and processing.is_file():
            edit(processing, lambda content, key=key, value=value: content["pretrained_cfg"].update({key: value}))
        changed = fingerprint_parts(*load_model(str(folder)))
        assert [part for part in whole if whole[part] != changed[part]] == ["image processor"], key
        for file, text in before.items():
            file.write_text(text)
