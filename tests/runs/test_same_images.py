"""The images of an evaluation: those of training's split, and found again by the command that the card prints."""

import shlex

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_robust_transfer.cli.main import run_command
from hf_robust_transfer.data import DataArguments, load_image_splits
from hf_robust_transfer.evaluation import RobustnessReport
from hf_robust_transfer.hub.card import evaluation_command

FAST = ["--attacks", "fgsm", "--self_check_samples", "0", "--curve_samples", "0", "--use_cpu"]


@pytest.fixture
def model(tiny, tmp_path, monkeypatch):
    """A function (data options of training) -> a folder with a model for the classes ant, bee and cow."""
    monkeypatch.chdir(tmp_path)

    def make(**options):
        made, processor = tiny("timm-convnext", {0: "ant", 1: "bee", 2: "cow"})
        made.config.robust_training = {"norm": "linf", "eps": "8/255", "seed": 7, "data": options}
        made.save_pretrained("model")
        processor.save_pretrained("model")
        return "model"

    return make


@pytest.fixture
def pets(tmp_path):
    """A folder of 20 shades of each of ant, bee and cow."""
    for number in range(60):
        folder = tmp_path / "pets" / ["ant", "bee", "cow"][number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(folder / f"{number}.png")
    return "pets"


def evaluated(*arguments, to):
    run_command("evaluate", [*map(str, arguments), *FAST, "--output_dir", to])
    return RobustnessReport.load(to)


def repeated(report, name):
    """The evaluation that a card's command starts, on a model that says nothing of its training."""
    _, _, _, module, *arguments = shlex.split(evaluation_command(report, name))
    assert module == "hf_robust_transfer.cli.evaluate"
    return evaluated(*arguments, "--self_check_samples", "0", to="again")


@pytest.mark.parametrize("options", ["", "--max_eval_samples 5 --seed 3 --classes cow bee"])
def test_a_cards_command_finds_a_part_of_the_training_images_again(model, pets, options):
    trained_on = {"train_dir": pets, "train_val_split": 0.3}
    report = evaluated("--model_name_or_path", model(**trained_on), *options.split(), to="first")
    command = evaluation_command(report, "model")
    assert "--train_dir pets" in command and "--train_val_split 0.3 --split_seed 7 --split validation" in command
    model()  # the same weights, without a word about their training
    again = repeated(report, "model")
    assert again.data["pixels_sha256"] == report.data["pixels_sha256"]
    assert again.predictions == report.predictions


def test_data_that_a_model_was_trained_on_are_split_as_they_were(model, pets):
    trained = load_image_splits(DataArguments(train_dir=pets, train_val_split=0.3), seed=7)
    name = model(train_dir=pets, train_val_split=0.3)
    report = evaluated("--model_name_or_path", name, "--train_dir", f"./{pets}", to="first")
    assert report.data["samples"] == len(trained.validation) == 18
    assert sorted(report.predictions["labels"]) == sorted(trained.validation["label"])


def test_labels_are_those_of_the_model_whatever_the_data_call_them(model, tmp_path):
    numbers = list(range(60))
    images = [np.full((8, 8), 4 * number, np.uint8) for number in numbers]

    def parquet(name, labels, feature):
        features = datasets.Features({"image": datasets.Image(), "label": feature})
        split = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        split.to_parquet(tmp_path / name / "test-00000-of-00001.parquet")
        return ["--dataset_name", name]

    truth = [number % 3 for number in numbers]
    names = datasets.ClassLabel(names=["cow", "bee", "ant"])
    words = datasets.Value("string")
    in_words = [["Ameise", "bee", "Kuh"][label] for label in truth]
    same = [
        parquet("names", [2 - label for label in truth], names),
        parquet("numbers", truth, datasets.Value("int64")),
        [*parquet("words", in_words, words), "--label_map", "Ameise=ant", "Kuh=cow"],
    ]
    name = model()
    reports = [evaluated("--model_name_or_path", name, *each, to=f"report{row}") for row, each in enumerate(same)]
    assert all(report.predictions["labels"] == truth for report in reports)
    assert len({report.clean.value for report in reports}) == 1
    assert [row.label for row in reports[0].per_class] == ["ant", "bee", "cow"]
    some = evaluated("--model_name_or_path", name, *same[0], "--classes", "bee", "cow", to="some")
    assert some.predictions["labels"] == [label for label in truth if label]
    assert some.predictions["clean"] == [c for c, t in zip(reports[0].predictions["clean"], truth, strict=True) if t]
    command = evaluation_command(reports[2], "model")
    assert "--label_map Ameise=ant Kuh=cow" in command
    assert repeated(reports[2], "model").predictions == reports[2].predictions
