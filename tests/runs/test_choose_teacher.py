"""Teachers compared on a user's images, and a student that learns from the one that is chosen."""

import copy
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from hf_robust_transfer.cli.main import run_command
from hf_robust_transfer.hub.card import model_card, read_facts
from hf_robust_transfer.modeling import PixelClassifier, load_model
from hf_robust_transfer.modeling.classifier import weights_sha256
from hf_robust_transfer.provenance import Provenance

STUDENT = ["--model_name_or_path", "cifar_wrn", "--model_args", '{"depth": 10, "width": 1}', "--image_size", "8"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, trained):
    """A folder with images, a teacher, and the same one with its labels in another order and ten times as sure."""
    folder = tmp_path_factory.mktemp("teachers")
    loaded = load_digits()
    for row in range(60):
        file = folder / "images" / str(loaded.target[row]) / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.repeat((loaded.images[row] * 255 / 16).astype(np.uint8)[:, :, None], 3, 2)).save(file)
    model, processor = trained
    order = [3, 1, 2, 0, *range(4, 10)]
    sure = copy.deepcopy(model)
    head = sure.timm_model.get_classifier()
    head.weight.data, head.bias.data = 10 * head.weight.data[order], 10 * head.bias.data[order]
    sure.config.id2label = {place: str(label) for place, label in enumerate(order)}
    sure.config.label2id = {str(label): place for place, label in enumerate(order)}
    for name, each in (("kind", model), ("sure", sure)):
        each.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return folder


def choose(place, output, *more):
    teachers = [str(place / "kind"), str(place / "sure")]
    data = ["--train_dir", str(place / "images"), "--train_val_split", "0.3", "--eps", "0.1", "--use_cpu"]
    words = ["--teachers", *teachers, *STUDENT, *data, "--pilot_epochs", "1", "--output_dir", str(output)]
    run_command("choose-teacher", [*words, *more])


def test_teachers_are_compared_once_for_a_pilot_that_is_kept(place, tmp_path, capsys, monkeypatch):
    choose(place, tmp_path / "out")
    shown = capsys.readouterr().out
    assert "transferable samples" in shown
    assert "Take " in shown
    content = json.loads((tmp_path / "out" / "teachers.json").read_text())
    assert [teacher["name"] for teacher in content["teachers"]] == ["kind", "sure"]
    kind, sure = content["teachers"]
    assert kind["clean"] == sure["clean"]  # its labels in another order are still its labels
    assert kind["entropy"] > sure["entropy"]
    assert content["recommended"] in ("kind", "sure")
    assert content["samples"] == 18
    assert str(place) not in json.dumps(content)
    pilot = weights_sha256(PixelClassifier(*load_model(str(tmp_path / "out" / "pilot"))))
    assert content["student_sha256"] == pilot

    with pytest.raises(SystemExit, match="holds a comparison: choose another, or give --overwrite_output_dir"):
        choose(place, tmp_path / "out")
    (tmp_path / "out" / "teachers.json").unlink()
    choose(place, tmp_path / "out", "--samples", "5")  # its pilot is there
    again = json.loads((tmp_path / "out" / "teachers.json").read_text())
    assert (again["student_sha256"], again["samples"]) == (pilot, 5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--teachers", "resnet18"], "--teachers resnet18 is an architecture without weights"),
        (["--samples", "0"], "--samples 0 must be at least 1"),
        (["--eps", "much"], "--eps"),
        (["--model_name_or_path", "no/such/thing"], "no/such/thing"),
        (["--pilot_epochs", "0"], "--num_train_epochs"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_the_pilot_trains(place, tmp_path, more, message):
    with pytest.raises(SystemExit) as caught:
        choose(place, tmp_path / "out", *more)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "pilot" / "model.safetensors").exists()


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_student_learns_from_a_teacher_and_its_card_says_so(place, tmp_path, command, capsys):
    student = STUDENT if command == "pretrain" else ["--model_name_or_path", str(place / "kind")]
    words = [*student, "--train_dir", str(place / "images"), "--objective", "saad", "--eps", "0.1", "--attack_steps", "2"]
    words += ["--teacher_name_or_path", str(place / "sure"), "--max_steps", "2", "--eval_attack_steps", "2", "--use_cpu"]
    run_command(command, [*words, "--output_dir", str(tmp_path / "out")])
    record = Provenance.from_dict(json.loads((tmp_path / "out" / "training.json").read_text()))
    assert record.options["averaging"] == "swa"
    assert record.teacher["name"] == "sure"
    assert record.teacher["sha256"] == weights_sha256(PixelClassifier(*load_model(str(place / "sure"))))
    assert 0 <= record.teacher["robust"] <= record.teacher["clean"] <= 1
    card = str(model_card(read_facts(tmp_path / "out"), "you/mine"))
    assert "adversarial distillation (saad)" in card
    assert f"Its teacher (sure; weights' sha256 {record.teacher['sha256'][:16]}…) classifies" in card
    if command == "finetune":  # not with LwF, unless it is asked for
        assert record.options["transfer"] == "fine_tuned"


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("pretrain", ["--objective", "rslad"], "rslad learns from a teacher: give --teacher_name_or_path"),
        ("finetune", ["--objective", "rslad"], "rslad learns from a teacher: give --teacher_name_or_path"),
        ("pretrain", ["--objective", "pgd", "--teacher_name_or_path", "kind"], "which learns from none"),
        ("finetune", ["--transfer", "frozen", "--teacher_name_or_path", "kind"], "has no effect without LwF"),
        ("pretrain", ["--objective", "rslad", "--teacher_name_or_path", "resnet18"], "architecture without weights"),
        ("pretrain", ["--objective", "rslad", "--teacher_name_or_path", "nowhere/at-all"], "nowhere/at-all"),
        (
            "pretrain",
            ["--objective", "rslad", "--objective_options", '{"clean_weight": 2}'],
            "must be a number from 0 to 1",
        ),
        ("pretrain", ["--objective", "saad", "--objective_options", '{"order": 0}'], "order"),
    ],
)
def test_teachers_that_cannot_be_are_refused_in_a_line(place, tmp_path, command, more, message, monkeypatch):
    monkeypatch.chdir(place)
    student = STUDENT if command == "pretrain" else ["--model_name_or_path", str(place / "kind")]
    with pytest.raises(SystemExit) as caught:
        words = [*student, "--train_dir", "images", "--use_cpu", "--output_dir", str(tmp_path / "out"), *more]
        run_command(command, words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_teacher_without_the_labels_is_refused_with_the_way(place, tmp_path):
    model, processor = load_model(str(place / "kind"), id2label={0: "cat", 1: "dog"})
    model.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    data = ["--train_dir", str(place / "images"), "--use_cpu", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=r"does not know the labels .*finetune --transfer frozen"):
        run_command("pretrain", [*STUDENT, *data, "--objective", "saad", "--teacher_name_or_path", str(tmp_path / "other")])
    with pytest.raises(SystemExit, match=r"--teachers .*other: the teacher does not know the labels"):
        run_command("choose-teacher", [*STUDENT, *data, "--teachers", str(place / "kind"), str(tmp_path / "other")])
