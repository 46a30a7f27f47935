"""The command that imports checkpoints, and real checkpoints imported."""

import argparse
import hashlib
import json
import pickle
import re
import runpy
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
from external_networks import (
    CIFAR_MEAN,
    CIFAR_STD,
    AttackerModel,
    Payload,
    TradesWideResNet,
    lively,
    prefixed,
)
from PIL import Image
from transformers import PreTrainedModel

from hf_robust_transfer.data import PixelDataset
from hf_robust_transfer.evaluation import evaluate_robustness
from hf_robust_transfer.hub import model_card, read_facts
from hf_robust_transfer.modeling import PixelClassifier, import_checkpoint, load_model, pixel_statistics
from hf_robust_transfer.provenance import TrainedFor
from hf_robust_transfer.threat_model import ThreatModel

REPOSITORY = Path(__file__).resolve().parents[2]
ANIMALS = {0: "cat", 1: "dog", 2: "eel"}
RESNET = {"architecture": "cifar_resnet18"}
WRN = {"architecture": "cifar_wrn", "model_args": {"depth": 16, "width": 2}}


# The recipe

TINY_WRN = ("--architecture", "cifar_wrn", "--model_args", '{"depth": 10, "width": 1}')


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A MadryLab checkpoint, and a test split of 40 images of which its network classifies 30 correctly.

    The files lie in the folder, the images in its ``images``; each class has at most half of them.
    """
    folder = tmp_path_factory.mktemp("task")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = lively(AttackerModel(TradesWideResNet(10, 1)))
        images = torch.randint(0, 256, (600, 3, 1, 1)) * torch.ones(32, 32) + torch.randint(-40, 40, (600, 3, 32, 32))
    images = images.clamp(0, 255).to(torch.uint8)
    with torch.no_grad():
        logits = network(images / 255)
        network.model.fc.bias -= logits.median(0).values  # else one class has nearly all
        predictions = network(images / 255).argmax(1)
    rows = torch.cat([(predictions == label).nonzero()[:count, 0] for label, count in ((0, 14), (1, 13), (2, 13))])
    assert len(rows) == 40
    torch.save({"model": prefixed(network), "epoch": 1}, folder / "robust.pt")
    labels = [int(label) if row % 4 else (int(label) + 1) % 3 for row, label in enumerate(predictions[rows])]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(ANIMALS.values()))})
    pixels = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images[rows]]
    (folder / "images").mkdir()
    split = datasets.Dataset.from_dict({"image": pixels, "label": labels}, features=features)
    split.to_parquet(folder / "images" / "test-00000-of-00001.parquet")
    return folder


@pytest.fixture
def run_here(monkeypatch, capsys):
    """A function (*arguments) -> what the recipe prints, run in this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(REPOSITORY / "recipes" / "import_checkpoint.py"), *map(str, arguments)])
        runpy.run_path(sys.argv[0], run_name="__main__")
        return capsys.readouterr().out

    return run


def wilson(share, count, z=1.959964):
    """The bounds of the 95 % score interval, as Wilson (1927) writes them."""
    middle = share + z**2 / (2 * count)
    half = z * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    return (middle - half) / (1 + z**2 / count), (middle + half) / (1 + z**2 / count)


def test_the_recipe_writes_a_checkpoint_with_the_datas_labels_and_prints_its_accuracy(task, tmp_path, run_here):
    output = run_here(
        task / "robust.pt", *TINY_WRN, "--dataset_name", task / "images", "--output_dir", tmp_path / "new" / "source"
    )
    low, high = wilson(0.75, 40)
    assert f"clean accuracy 75.0% ({low:.1%} – {high:.1%}) on 40 images of the test split" in output
    assert f"mean {CIFAR_MEAN} (the file's own), std {CIFAR_STD} (the file's own)" in output
    assert "guessing" not in output and re.search(r"under PGD-10, linf ε = 8/255, on the first 40 of them", output)
    model, processor = load_model(str(tmp_path / "new" / "source"))
    known = TrainedFor.of(model.config)
    assert "eps" not in model.config.robust_training and known.origin.eps is None  # nobody said what it was trained for
    assert known.origin.sha256 == hashlib.sha256((task / "robust.pt").read_bytes()).hexdigest()
    assert model.config.id2label == ANIMALS and model.config.label2id == {"cat": 0, "dog": 1, "eel": 2}
    assert pixel_statistics(processor) == (CIFAR_MEAN, CIFAR_STD)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["source"]
    config = (tmp_path / "new" / "source" / "config.json").read_text()
    for own in (str(tmp_path), str(task), str(REPOSITORY), "robust.pt", str(Path.home())):
        assert own not in config
    assert sorted(path.name for path in (tmp_path / "new" / "source").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("given", ["labels", "json", "file"])
def test_labels_are_given_as_words_or_as_json(task, tmp_path, run_here, given):
    named = {"2": "eel", "0": "cat", "1": "dog"}
    (tmp_path / "labels.json").write_text(json.dumps(named))
    flags = {
        "labels": ("--labels", "cat", "dog", "eel"),
        "json": ("--id2label", json.dumps(named)),
        "file": ("--id2label", tmp_path / "labels.json"),
    }[given]
    output = run_here("--file", task / "robust.pt", *TINY_WRN, *flags, "--output_dir", tmp_path / "source")
    assert "accuracy" not in output and "cifar_wrn with 3 labels" in output
    assert load_model(str(tmp_path / "source"))[0].config.id2label == ANIMALS


def test_options_may_stand_in_a_file(task, tmp_path, run_here):
    options = {
        "file": str(task / "robust.pt"),
        "architecture": "cifar_wrn",
        "model_args": {"depth": 10, "width": 1},
        "id2label": {"0": "a", "1": "b", "2": "c"},
        "output_dir": str(tmp_path / "source"),
    }
    (tmp_path / "import.yaml").write_text(json.dumps(options))
    run_here(tmp_path / "import.yaml", "--mean", 0.5, 0.5, 0.5)
    model, processor = load_model(str(tmp_path / "source"))
    assert list(model.config.id2label.values()) == ["a", "b", "c"]
    assert pixel_statistics(processor) == ((0.5, 0.5, 0.5), CIFAR_STD)


def test_the_recipe_says_when_a_given_normalisation_displaces_the_files_own(task, tmp_path, run_here):
    output = run_here(
        task / "robust.pt", *TINY_WRN, "--labels", *"abc", "--std", 1, 1, 1, "--output_dir", tmp_path / "source"
    )
    assert f"std (1.0, 1.0, 1.0) (as given instead of the file's own {CIFAR_STD})" in output


def test_accuracy_at_chance_is_warned_of(task, tmp_path, run_here):
    arguments = (task / "robust.pt", *TINY_WRN, "--labels", "dog", "eel", "cat", "--dataset_name", task / "images")
    output = run_here(*arguments, "--output_dir", tmp_path / "source")
    share = float(re.search(r"clean accuracy (\d+\.\d)%", output)[1])
    assert share < 30  # the images of one class are taken for another's
    assert "WARNING" in output and "--mean" in output and "order of the labels" in output
    assert (tmp_path / "source" / "config.json").exists()


def test_an_empty_folder_is_used_and_a_used_one_is_left_alone(task, tmp_path, run_here, error_of):
    (tmp_path / "source").mkdir()
    arguments = (task / "robust.pt", *TINY_WRN, "--labels", *"abc", "--output_dir", tmp_path / "source")
    run_here(*arguments)
    before = {path.name: path.read_bytes() for path in (tmp_path / "source").iterdir()}
    assert "holds a model: choose a new or an empty folder" in error_of("import_checkpoint.py", *arguments)
    assert {path.name: path.read_bytes() for path in (tmp_path / "source").iterdir()} == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    assert "notes is not empty" in error_of("import_checkpoint.py", *arguments[:-1], tmp_path / "notes")
    assert "a.txt is a file" in error_of("import_checkpoint.py", *arguments[:-1], tmp_path / "notes" / "a.txt")
    assert "cannot be made in" in error_of("import_checkpoint.py", *arguments[:-1], tmp_path / "notes" / "a.txt" / "b")


def test_an_import_that_breaks_off_leaves_nothing_behind(task, tmp_path, run_here, monkeypatch):
    whole = PreTrainedModel.save_pretrained

    def breaks_off(self, folder, **options):
        whole(self, folder, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        run_here(task / "robust.pt", *TINY_WRN, "--labels", *"abc", "--output_dir", tmp_path / "new" / "source")
    assert not list((tmp_path / "new").iterdir())


def test_the_robust_accuracy_is_that_of_the_same_attack_on_the_imported_model(task, tmp_path, run_here):
    threat = ("--norm", "l2", "--eps", "0.25", "--attack_samples", 20, "--license", "cc-by-nc-4.0")
    arguments = (task / "robust.pt", *TINY_WRN, "--dataset_name", task / "images", *threat)
    output = run_here(*arguments, "--output_dir", tmp_path / "source")
    model, processor = load_model(str(tmp_path / "source"))
    assert model.config.robust_training["norm"] == "l2" and model.config.robust_training["eps"] == "0.25"
    card = model_card(read_facts(tmp_path / "source"), "me/mine")
    assert card.data.license == "cc-by-nc-4.0" and "trained for l2, ε = 0.25" in card.text
    assert "no commercial use" in card.text
    images = PixelDataset(datasets.load_dataset(str(task / "images"), split="test").select(range(20)), processor)
    options = {"self_check_samples": 0, "curve_samples": 0, "progress": False}
    report = evaluate_robustness(PixelClassifier(model, processor), images, ThreatModel("l2", 0.25), ["pgd-10"], **options)
    assert f"robust accuracy {report.attacks[0].accuracy} under PGD-10, l2 ε = 0.25, on the first 20" in output
    assert report.attacks[0].accuracy.value < report.clean.value


@pytest.mark.parametrize(
    ("place", "source", "told"),
    [
        (".", ("--source", "you/robust"), "base_model: you/robust\n"),
        (".", ("--source", "https://example.org/robust.pt"), "an imported file: https://example.org/robust.pt."),
        ("models--you--cached/snapshots/0a1b", (), "base_model: you/cached\n"),
        (".", (), "an imported file, sha256"),
    ],
)
def test_where_a_file_is_from_is_told_by_the_card(task, tmp_path, run_here, place, source, told):
    file = tmp_path / place / "robust.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(task / "robust.pt", file)
    run_here(file, *TINY_WRN, "--labels", *"abc", *source, "--output_dir", tmp_path / "source")
    card = model_card(read_facts(tmp_path / "source"), "me/mine").content
    assert told in card.replace("\\", "") and "The licence of that source is not known" in card


def test_robust_accuracy_far_below_clean_accuracy_is_warned_of(task, tmp_path, run_here):
    arguments = (task / "robust.pt", *TINY_WRN, "--dataset_name", task / "images", "--eps", "64/255")
    output = run_here(*arguments, "--output_dir", tmp_path / "source")
    assert re.search(r"WARNING: that is less than a third of their clean accuracy, 75\.0%: at this ε", output)


def test_no_names_are_needed_for_an_imagenet_head_and_its_normalisation_is_asked_for(tmp_path, run_here):
    network = timm.create_model("test_resnet")
    torch.save({"state_dict": network.state_dict(), "args": argparse.Namespace(lr=0.1)}, tmp_path / "a.pt")
    output = run_here(tmp_path / "a.pt", "--architecture", "test_resnet", "--output_dir", tmp_path / "source")
    assert "left aside in the file, as nothing in it is made or called: argparse.Namespace" in output
    assert "WARNING: nothing says what this network expects" in output and "--mean 0.5 0.5 0.5 --std 0.5 0.5 0.5" in output
    labels = load_model(str(tmp_path / "source"))[0].config.id2label
    assert len(labels) == 1000 and labels[1] == "goldfish, Carassius auratus"
    timm.create_model(f"local-dir:{tmp_path / 'source'}", pretrained=True)


def test_no_names_of_imagenet_are_given_to_other_classes(tmp_path, error_of):
    torch.save(timm.create_model("test_resnet", num_classes=7).state_dict(), tmp_path / "a.pt")
    arguments = (tmp_path / "a.pt", "--architecture", "test_resnet", "--output_dir", tmp_path / "source")
    assert "the names of the classes are missing" in error_of("import_checkpoint.py", *arguments)
    assert not (tmp_path / "source").exists()


BAD_INPUT = {
    "norm": (["--labels", *"abc", "--norm", "l1"], "--norm"),
    "l2 without a radius": (["--labels", *"abc", "--norm", "l2"], "--norm l2 needs --eps"),
    "eps": (["--labels", *"abc", "--eps", "8"], "--eps"),
    "attack samples": (["--labels", *"abc", "--attack_samples", "-1"], "--attack_samples -1 must be at least 0"),
    "no labels": ([], "the names of the classes are missing: give --labels, --id2label or --dataset_name"),
    "labels twice": (["--labels", *"abc", "--id2label", "{}"], "--labels and --id2label say the same"),
    "no JSON": (["--id2label", "{cat"], "--id2label is neither a JSON object"),
    "no JSON object": (["--id2label", "[1]"], "--id2label is neither a JSON object"),
    "no numbers": (["--id2label", '{"cat": "0"}'], "--id2label is neither a JSON object"),
    "a gap": (["--id2label", '{"0": "a", "2": "c"}'], "--id2label must give each of the classes 0, 1, 2, … a name"),
    "no names": (["--id2label", '{"0": ["a", "b"]}'], "--id2label must give each of the classes"),
    "two labels": (["--labels", *"ab"], "has weights for 3 classes, but there are 2 labels"),
    "units": (["--labels", *"abc", "--mean", "125", "123", "114"], "divide those of 0 … 255 by 255"),
    "model_args": (["--labels", *"abc", "--model_args", "{depth"], "--model_args {depth is not a JSON object"),
    "architecture": (["--labels", *"abc", "--architecture", "cifar_wrm"], "timm has no architecture 'cifar_wrm'"),
    "no data": (["--dataset_name", "no/such-data"], "the data set no/such-data cannot be loaded"),
    "other classes": (["--dataset_name", "IMAGES", "--classes", "cat", "dog"], "the data has the 2 classes cat, dog, but"),
    "split": (["--dataset_name", "IMAGES", "--split", "dev"], "--split dev: the data set has no such split, only test"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_leaves_nothing_behind(task, tmp_path, error_of, case):
    bad, message = BAD_INPUT[case]
    bad = [task / "images" if each == "IMAGES" else each for each in bad]
    arguments = (task / "robust.pt", *TINY_WRN, "--output_dir", tmp_path / "new" / "source", *bad)
    assert message in error_of("import_checkpoint.py", *arguments)
    assert not (tmp_path / "new").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_with_code_ends_the_recipe_with_one_line(tmp_path, error_of):
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"state_dict": Payload(f"touch '{tmp_path / 'ran'}'")}))
    arguments = (tmp_path / "evil.pt", *TINY_WRN, "--labels", *"abc", "--output_dir", tmp_path / "source")
    assert "run code from the file, which is refused" in error_of("import_checkpoint.py", *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pt"]


# Real checkpoints


@pytest.fixture(scope="module")
def cifar10(shared):
    test = datasets.load_dataset("parquet", data_files=str(shared / "data/cifar10/test-*.parquet"), split="train")
    test = test.select(range(200))
    images = torch.stack([torch.tensor(np.asarray(image)) for image in test["image"]]).permute(0, 3, 1, 2) / 255
    return images, torch.tensor(test["label"]), dict(enumerate(test.features["label"].names))


def accuracy(classifier, images, labels):
    with torch.inference_mode():
        return (torch.cat([classifier(part) for part in images.split(50)]).argmax(1) == labels).float().mean().item()


def robust_source(shared):
    file = shared / "models/cifar10_resnet18_linf8.pt"
    if not file.exists():
        pytest.skip(f"there is no source checkpoint at {file}")
    return file


def test_the_robust_source_keeps_its_accuracy_when_imported(shared, cifar10):
    images, labels, id2label = cifar10
    model, processor = import_checkpoint(robust_source(shared), id2label=id2label, **RESNET)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}  # the file's are float16
    assert not model.training
    assert accuracy(PixelClassifier(model, processor), images, labels) >= 0.72


def test_the_natural_source_of_pyautoattack_keeps_its_accuracy_when_imported(cifar10):
    package = find_spec("pyautoattack")
    file = Path(package.origin).parent / "examples/model_test.pt" if package else None
    if file is None or not file.exists():
        pytest.skip("the package pyautoattack, which carries the checkpoint, is absent or carries it no more")
    images, labels, id2label = cifar10
    model, processor = import_checkpoint(file, id2label=id2label, **RESNET)
    assert accuracy(PixelClassifier(model, processor), images, labels) >= 0.78


@pytest.mark.slow
def test_the_recipe_prints_the_accuracy_of_the_robust_source(shared, tmp_path, run_here):
    data = ("--dataset_name", shared / "data/cifar10", "--max_eval_samples", 200)
    output = run_here(robust_source(shared), "--architecture", "cifar_resnet18", *data, "--output_dir", tmp_path / "source")
    print(output)
    assert float(re.search(r"clean accuracy (\d+\.\d)% .* on 200 images of the test split", output)[1]) >= 70
    assert load_model(str(tmp_path / "source"))[0].config.id2label[9] == "truck"
    shutil.rmtree(tmp_path / "source")
