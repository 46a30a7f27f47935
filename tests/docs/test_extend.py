"""The lines of docs/how-to/extend.md do what the page says."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from tiny_models import PLAIN

from hf_robust_transfer import PixelClassifier, RobustTrainer, RobustTrainingArguments, ThreatModel, evaluate_robustness
from hf_robust_transfer.modeling import create_model, load_model
from hf_robust_transfer.modeling.layouts import RENAMINGS
from hf_robust_transfer.objectives import OBJECTIVES
from hf_robust_transfer.transfer import DISTANCES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "extend.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.S)
COMMANDS = [shlex.split(text.replace("\\\n", " ")) for text in re.findall(r"```bash\n(.*?)```", PAGE, re.S)]


def given(flag):
    """What the page's commands give this flag, the last value of several."""
    (command,) = [each for each in COMMANDS if flag in each]
    values = command[command.index(flag) + 1 :]
    return next(value for value, after in zip(values, [*values[1:], "--"], strict=True) if after.startswith("--"))


@pytest.fixture(autouse=True)
def _in_a_folder_with_the_pages_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file, code in re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", PAGE, re.S):
        Path(file).write_text(code)
    before = [(known, dict(known)) for known in (OBJECTIVES, DISTANCES, RENAMINGS)]
    yield
    for known, names in before:
        known.clear()
        known.update(names)


@pytest.fixture
def data(digit_batch):
    images, labels = digit_batch(count=16)
    return [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]


def train(tiny, data, **arguments):
    model, processor = tiny("timm-convnext")
    options = {**PLAIN, "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no"}
    options |= {"max_steps": 2, "use_cpu": True, "per_device_train_batch_size": 8, **arguments}
    args = RobustTrainingArguments("run", **options)
    teacher = PixelClassifier(*tiny("timm-convnext", seed=1)) if args.lwf_weight else None
    trainer = RobustTrainer(model, args, processing_class=processor, teacher=teacher, train_dataset=data)
    trainer.train()
    return trainer.state.log_history[0]


def test_each_piece_takes_about_fifteen_lines():
    assert len(CODE) == 4
    for code in CODE:
        assert len([line for line in code.splitlines() if line.strip()]) <= 15


def test_the_attack_runs_under_the_judge(tiny, data):
    classifier = PixelClassifier(*tiny("timm-convnext"))
    options = {"self_check_samples": 0, "curve_samples": 0, "progress": False}
    report = evaluate_robustness(classifier, data, ThreatModel("linf", "64/255"), [given("--attacks")], **options)
    assert report.attacks[0].options == {"draws": 30}
    assert report.attacks[0].remarks == [] and report.worst_case.value <= report.clean.value


def test_the_objective_trains(tiny, data):
    options = json.loads(given("--objective_options"))
    logged = train(tiny, data, objective=given("--objective"), objective_options=options, attack_steps=1)
    assert logged["loss"] == pytest.approx(logged["loss_adversarial"] + logged["loss_pairing"], abs=1e-3)


def test_the_distance_pulls_features_to_the_teachers(tiny, data):
    logged = train(tiny, data, lwf_distance=given("--lwf_distance"), lwf_weight=1.0)
    assert 0 < logged["loss_lwf"] < 3.2  # an angle


def test_the_importer_reads_a_file_with_other_names():
    model, _ = create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"})
    theirs = {
        "backbone." + name.replace(".downsample.", ".skip.").replace("fc.", "classifier."): value
        for name, value in model.timm_model.state_dict().items()
    }
    torch.save({name.replace("backbone.classifier", "classifier"): value for name, value in theirs.items()}, "theirs.pt")
    exec(CODE[3], {})
    images = torch.rand(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    imported = PixelClassifier(*load_model("source")).eval()
    model.eval()
    with torch.no_grad():
        assert torch.equal(imported(images), model(pixel_values=images).logits)
