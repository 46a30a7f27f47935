"""What lies beside a model counts only for this very model, and the Hub loads what the folder loads."""

import hashlib
import io
import json
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import ModelCard
from PIL import Image

from hf_robust_transfer.cli.main import run_command
from hf_robust_transfer.data import DataArguments
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.evaluation import RobustnessReport, evaluate_robustness
from hf_robust_transfer.evaluation.accuracy import Accuracy
from hf_robust_transfer.evaluation.report import CurvePoint
from hf_robust_transfer.hub import files_to_publish, publish, read_facts
from hf_robust_transfer.modeling import PixelClassifier, load_model
from hf_robust_transfer.modeling.fingerprint import fingerprint
from hf_robust_transfer.runs.evaluate import EvaluationArguments, evaluate_checkpoint
from hf_robust_transfer.threat_model import ThreatModel


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer(tmp_path / "hub") as hub:
        hub.attach(monkeypatch)
        monkeypatch.setenv("HF_TOKEN", hub.write_token)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        yield hub


def save(made, folder):
    for part in made:
        part.save_pretrained(folder)
    return folder


def with_curve(folder):
    """The report of a folder with a curve of its first ten images."""
    report = RobustnessReport.load(folder)
    right = np.array(report.predictions["clean"][:10]) == report.predictions["labels"][:10]
    points = [CurvePoint(0.0, 10, Accuracy.of(right)), CurvePoint(0.1, 10, Accuracy.of(np.zeros(10, bool)))]
    return replace(report, curve=points)


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def logits(name, **options):
    """What a stranger gets for one photograph, by `transformers` alone."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    pixels = AutoImageProcessor.from_pretrained(name, **options)(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return AutoModelForImageClassification.from_pretrained(name, **options).eval()(pixel_values=pixels).logits


# ---- the Hub loads what the folder loads ----


def test_of_two_models_in_one_folder_in_turn_the_hub_gets_the_last_with_its_own_image_processor(hub, tiny, tmp_path):
    folder = save(tiny("hf-vit"), tmp_path / "mine")
    save(tiny("timm-convnext"), folder)
    assert (folder / "preprocessor_config.json").is_file()  # of the first one
    publish(folder, "user/mine")
    assert "preprocessor_config.json" not in hub.files("user/mine")
    assert torch.allclose(logits("user/mine", cache_dir=tmp_path / "cache"), logits(folder), atol=1e-5)


def test_of_two_models_in_one_repository_in_turn_the_last_has_its_own_image_processor(hub, tiny, tmp_path):
    publish(save(tiny("hf-vit"), tmp_path / "first"), "user/mine")
    assert "preprocessor_config.json" in hub.files("user/mine")
    folder = save(tiny("timm-convnext"), tmp_path / "second")
    publish(folder, "user/mine")
    assert torch.allclose(logits("user/mine", cache_dir=tmp_path / "cache"), logits(folder), atol=1e-5)


def test_what_does_not_load_alone_as_in_its_folder_is_not_published(tiny, tmp_path):
    folder = save(tiny("hf-vit"), tmp_path / "mine")
    (folder / "preprocessor_config.json").rename(folder / "processor_config.json")
    edit(folder / "processor_config.json", lambda content: content.update(image_processor=dict(content)))
    with pytest.raises(UsageError, match=r"cannot be loaded|is not the model that the folder gives"):
        files_to_publish(folder, "user/mine")
    assert not list(folder.glob("_publishing*"))


def test_what_an_earlier_model_had_beside_it_on_the_hub_goes_with_it(hub, published, tiny, tmp_path):
    Image.new("RGB", (4, 4)).save(published / "robustness_examples.png")
    with_curve(published).with_pictures(published, "robustness_examples.png").save(published)
    publish(published, "user/mine")
    ours = {"robustness.json", "robustness.md", "robustness_curve.png", "robustness_examples.png", "training.json"}
    assert ours <= set(hub.files("user/mine"))
    exported = {"model.onnx": b"of the model before", "clothes.pt2": b"likewise"}
    hub.commit("user/mine", {"notes.txt": b"kept", "more/training.json": b"kept", "onnx/model.onnx": b"kept", **exported})
    publish(save(tiny("timm-convnext", seed=1), tmp_path / "new"), "user/mine")
    theirs = {".gitattributes", "notes.txt", "more/training.json", "onnx/model.onnx"}
    assert set(hub.files("user/mine")) == {"README.md", "config.json", "model.safetensors", *theirs}


# ---- reports, pictures and records are of one model ----


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["pretrained_cfg"].update(mean=[0.1, 0.2, 0.3]),
        lambda content: content["pretrained_cfg"].update(std=[0.1, 0.2, 0.3]),
        lambda content: content["label_names"].reverse(),
        lambda content: content["model_args"].update(norm_eps=0.5),
    ],
    ids=["mean", "std", "labels", "arguments"],
)
def test_a_configuration_that_is_edited_leaves_no_evidence(published, change):
    before = read_facts(published)
    assert before.report is not None and before.training is not None
    edit(published / "config.json", change)
    facts = read_facts(published)
    assert facts.report is None and facts.training is None
    assert set(files_to_publish(published, "me/mine")) == {"README.md", "config.json", "model.safetensors"}


def test_a_record_of_another_training_does_not_describe_the_model(published, tiny):
    edit(published / "config.json", lambda content: content.update(robust_training={}))
    assert read_facts(published).training is not None
    model, processor = tiny("timm-convnext", seed=1)
    save((model, processor), published)
    assert read_facts(published).training is None and "training.json" not in files_to_publish(published, "me/mine")


def test_a_report_without_a_fingerprint_or_one_that_cannot_be_read_is_no_evidence(published):
    file = published / "robustness.json"
    edit(file, lambda content: (content.update(schema_version=1), content["model"].pop("fingerprint")))
    assert RobustnessReport.load(published).model["weights_sha256"] and read_facts(published).report is None
    file.write_text('{"schema_version": 2, "mod')
    assert read_facts(published).report is None


def test_a_picture_that_is_not_the_report_s_is_not_published(published):
    picture = published / "robustness_examples.png"
    Image.new("RGB", (4, 4)).save(picture)
    assert picture.name not in files_to_publish(published, "me/mine")
    RobustnessReport.load(published).with_pictures(published, picture.name).save(published)
    assert picture.name in files_to_publish(published, "me/mine")
    Image.new("RGB", (5, 5)).save(picture)
    assert picture.name not in files_to_publish(published, "me/mine")


def test_the_curve_is_drawn_from_the_report_whatever_picture_lies_there(published):
    Image.new("RGB", (4, 4)).save(published / "robustness_curve.png")
    with_curve(published).with_pictures(published, "robustness_curve.png").save(published)
    (published / "robustness.md").write_text("# 99.9 % robust")
    files = files_to_publish(published, "me/mine")
    drawn = files["robustness_curve.png"]
    assert min(Image.open(io.BytesIO(drawn)).size) > 500
    assert json.loads(files["robustness.json"])["pictures"] == {"robustness_curve.png": hashlib.sha256(drawn).hexdigest()}
    assert b"99.9" not in files["robustness.md"] and "robustness_curve.png" in files["README.md"].decode()


def test_a_curve_that_cannot_be_drawn_is_a_warning_and_no_part_of_the_card(published, monkeypatch):
    def fail(*args):
        raise RuntimeError("no font")

    with_curve(published).save(published)
    monkeypatch.setattr("hf_robust_transfer.hub.publishing.plot_curve", fail)
    files = files_to_publish(published, "me/mine")
    assert "robustness.json" in files and "robustness_curve.png" not in {*files} | {*files["README.md"].decode().split("(")}


def test_an_evaluation_that_goes_on_with_another_normalisation_starts_anew(tiny, digit_batch, tmp_path):
    folder = save(tiny("timm-convnext"), tmp_path / "mine")
    images, labels = digit_batch(count=30)
    data = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]
    options = {"self_check_samples": 0, "curve_samples": 0, "progress": False}

    def predictions(resume_folder):
        classifier = PixelClassifier(*load_model(str(folder)))
        report = evaluate_robustness(classifier, data, ThreatModel(), ["fgsm"], resume_folder=resume_folder, **options)
        return report.predictions

    first = predictions(tmp_path / "progress")
    edit(folder / "config.json", lambda content: content["pretrained_cfg"].update(mean=[9.0, 0, 0], std=[0.1, 0.3, 2]))
    assert predictions(tmp_path / "progress") == predictions(None) != first


# ---- whoever reads the card measures the same ----


@pytest.fixture
def pets(tmp_path, digits):
    """Digits with columns of other names, in a data set of two configurations."""
    renamed = digits.rename_columns({"image": "img", "label": "kind"})
    renamed.select(range(100, 150)).to_parquet(tmp_path / "work" / "pets" / "large" / "test.parquet")
    renamed.select(range(100)).to_parquet(tmp_path / "work" / "pets" / "small" / "test.parquet")
    configurations = [f"- config_name: {name}\n  data_files: {name}/test.parquet\n" for name in ("large", "small")]
    (tmp_path / "work" / "pets" / "README.md").write_text(f"---\nconfigs:\n{''.join(configurations)}---\n")
    return tmp_path / "work"


def test_the_command_in_the_card_measures_the_same_on_data_with_other_names(hub, tiny, pets, tmp_path, monkeypatch):
    folder = save(tiny("timm-convnext", {0: "3", 1: "1", 2: "4"}), tmp_path / "mine")
    data = DataArguments(
        dataset_name=str(pets / "pets"),
        dataset_config_name="small",
        image_column_name="img",
        label_column_name="kind",
        classes=["3", "1", "4"],
    )
    args = EvaluationArguments(attacks=["fgsm"], self_check_samples=0, curve_samples=12, use_cpu=True)
    expected = evaluate_checkpoint(str(folder), data, args)
    files = files_to_publish(folder, "user/mine")
    assert {"robustness_curve.png", "robustness_examples.png"} <= set(files)
    args.curve_samples = 0
    expected = evaluate_checkpoint(str(folder), data, args, overwrite=True)
    assert not (folder / "robustness_curve.png").exists()

    publish(folder, "user/mine")
    assert "robustness_curve.png" not in hub.files("user/mine")
    card = ModelCard(hub.files("user/mine")["README.md"].decode())
    (command,) = [line for line in card.text.splitlines() if "cli.evaluate" in line]
    start, flags = shlex.split(command)[:4], shlex.split(command)[4:]
    assert start == ["accelerate", "launch", "-m", "hf_robust_transfer.cli.evaluate"]
    monkeypatch.chdir(pets)
    flags += ["--output_dir", str(tmp_path / "again"), "--self_check_samples", "0", "--curve_samples", "0", "--use_cpu"]
    run_command("evaluate", [*flags, "--cache_dir", str(tmp_path / "cache")])
    again = RobustnessReport.load(tmp_path / "again")
    assert again.predictions == expected.predictions and again.data["pixels_sha256"] == expected.data["pixels_sha256"]
    assert again.model["fingerprint"] == expected.model["fingerprint"] == fingerprint(*load_model(str(folder)))


# ---- no secrets ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(note="hf_" + "aB3" * 11), "config.json would tell others a Hub token"),
        (lambda content: content["pretrained_cfg"].update(file="/srv/weights.bin"), "/srv/weights.bin, a place of this"),
    ],
)
def test_a_token_or_a_place_in_the_configuration_is_refused(published, change, message):
    edit(published / "config.json", change)
    with pytest.raises(UsageError, match=message):
        files_to_publish(published, "me/mine")
