"""Checkpoints that stand alone, and model cards that claim what was measured."""

import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from hf_robust_transfer.evaluation import RobustnessReport
from hf_robust_transfer.hub import files_to_publish, model_card, read_facts, stand_alone
from hf_robust_transfer.modeling import create_model, load_model
from hf_robust_transfer.runs.record import command_line

MORE_TIMM = ("mobilenetv3_small_050", "regnetx_002", "cifar_resnet18")
LABELS = {0: "cat", 1: "dog", 2: "frog"}


@pytest.fixture(params=["timm-convnext", "timm-resnet", "timm-vit", *MORE_TIMM, "hf-resnet", "hf-convnext", "hf-vit"])
def saved(request, tiny, tmp_path):
    """A model of each kind as trained and as saved: the model, its processor, its folder."""
    if request.param in MORE_TIMM:
        model, processor = create_model(request.param, id2label=LABELS, image_size=32)
    else:
        model, processor = tiny(request.param, LABELS)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    stand_alone(tmp_path / "saved")
    return model, processor, tmp_path / "saved"


def test_one_folder_loads_everywhere_with_the_same_logits(saved):
    model, processor, folder = saved
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    inputs = processor(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model(pixel_values=inputs).logits
        loaded = AutoModelForImageClassification.from_pretrained(folder).eval()
        loaded_inputs = AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")["pixel_values"]
        assert torch.allclose(loaded(pixel_values=loaded_inputs).logits, expected, atol=1e-5)
        if model.config.model_type == "timm_wrapper":
            from_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
            assert torch.allclose(from_timm(inputs), expected, atol=1e-5)
            assert from_timm.pretrained_cfg["label_names"] == list(LABELS.values())
    scores = {each["label"]: each["score"] for each in pipeline("image-classification", model=str(folder))(picture)}
    assert [scores[label] for label in LABELS.values()] == pytest.approx(expected.softmax(1)[0].tolist(), abs=1e-5)


def test_standing_alone_is_done_once_and_for_all(saved):
    _, _, folder = saved
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    stand_alone(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert not any(name.startswith("timm_model.") for name in load_file(folder / "model.safetensors"))


LOAD_OWN = """
import sys
folder, how = sys.argv[1:]
import hf_robust_transfer
assert "timm" not in sys.modules
if how == "first":
    import hf_robust_transfer.modeling.cifar
    assert "transformers" not in sys.modules
import timm
if how == "last":
    import hf_robust_transfer.modeling.cifar
from transformers import AutoModelForImageClassification, pipeline
try:
    for load in (AutoModelForImageClassification.from_pretrained, lambda path: pipeline("image-classification", model=path),
                 lambda path: timm.create_model(f"local-dir:{path}", pretrained=True)):
        load(folder)
    assert "hf_robust_transfer.training.trainer" not in sys.modules
except (ImportError, RuntimeError) as error:
    print(error)
    try:
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    except RuntimeError as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("architecture", "how"),
    [
        pytest.param("cifar_resnet18", "first", marks=pytest.mark.slow),
        pytest.param("cifar_wrn", "last", marks=pytest.mark.slow),
        ("cifar_resnet18", "not"),
    ],
)
def test_one_import_registers_the_package_s_own_architectures(tmp_path, architecture, how):
    size = {"depth": 10, "width": 1} if architecture == "cifar_wrn" else None
    model, _ = create_model(architecture, id2label=LABELS, model_args=size)
    model.save_pretrained(tmp_path)
    stand_alone(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LOAD_OWN, str(tmp_path), how], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == (2 if how == "not" else 0)
    needed = "no version of timm has it; pip install hf-robust-transfer and import hf_robust_transfer.modeling.cifar"
    assert all(architecture in line and needed in line for line in lines)


# ---- the model card ----


def test_the_card_gives_back_what_was_measured(published):
    card = ModelCard(str(model_card(read_facts(published), "me/mine", license="apache-2.0")))
    report = RobustnessReport.load(published)
    results = {result.metric_name: result for result in card.data.eval_results}
    assert list(results) == [
        "Accuracy",
        "Robust accuracy (fgsm)",
        "Robust accuracy (pgd-5)",
        "Robust accuracy (worst case)",
    ]
    assert results["Accuracy"].metric_value == report.clean.value
    worst = results["Robust accuracy (worst case)"]
    assert (worst.metric_value, worst.metric_args["eps"]) == (report.worst_case.value, 8 / 255)
    assert worst.metric_args["attack"] == ["fgsm", "pgd-5"] and worst.dataset_name == "me/pets"
    assert (card.data.base_model, card.data.datasets, card.data.license) == ("you/source", "me/pets", "apache-2.0")
    assert card.data.pipeline_tag == "image-classification" and "adversarial-robustness" in card.data.tags
    for part in (
        str(report.worst_case),
        "LwF, λ_d = 0.5",
        "linf ε = 8/255",
        "--attacks fgsm pgd-5",
        "-m hf_robust_transfer.cli.finetune --transfer lwf",
        'timm.create_model("hf-hub:me/mine", pretrained=True)',
        "take the robust accuracies as upper bounds",
    ):
        assert part in card.text
    for warning in report.warnings:
        assert warning in card.text


def test_without_a_report_of_these_weights_no_robustness_is_claimed(published):
    model, _ = load_model(str(published))
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    model.save_pretrained(published)
    facts = read_facts(published)
    card = model_card(facts, "me/mine")
    assert facts.report is None and card.data.eval_results is None
    assert "so none is claimed" in card.text and "Its adversarial robustness was not measured." in card.text
    assert not any(name.startswith("robustness") for name in files_to_publish(published, "me/mine"))


def test_what_is_published_tells_nothing_of_this_machine(published, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    (published / "checkpoint-1").mkdir()
    (published / "optimizer.pt").write_bytes(b"state")
    files = files_to_publish(published, "me/mine")
    assert set(files) == {
        *("README.md", "config.json", "model.safetensors", "robustness.json", "robustness.md", "training.json")
    }
    for content in files.values():
        data = content if isinstance(content, bytes) else content.read_bytes()
        assert str(tmp_path).encode() not in data and b"hf_planted" not in data
    assert json.loads(files["config.json"])["robust_training"]["data"] == {"dataset_name": "pets"}
    (published / "training.json").write_text(
        json.dumps({**json.loads((published / "training.json").read_text()), "x": "hf_planted"})
    )
    with pytest.raises(ValueError, match=r"training.json would tell others your Hub token"):
        files_to_publish(published, "me/mine")


def test_the_command_of_training_is_shown_without_secrets_and_places(tmp_path):
    (tmp_path / "pets").mkdir()
    argv = [str(tmp_path / "recipes" / "finetune.py"), "--dataset_name", str(tmp_path / "pets"), "--hub_token", "hf_x"]
    argv += ["--eps=8/255", f"--output_dir={tmp_path}/out put", "--token=hf_y", "--model_name_or_path", "you/source"]
    assert command_line(argv) == (
        "accelerate launch -m hf_robust_transfer.cli.finetune --dataset_name pets --eps=8/255 '--output_dir=out put'"
        " --model_name_or_path you/source"
    )


def test_the_metadata_of_the_card_is_plain_yaml(published):
    text = str(model_card(read_facts(published), "me/mine"))
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert metadata["model-index"][0]["results"][0]["task"] == {"type": "image-classification"}
