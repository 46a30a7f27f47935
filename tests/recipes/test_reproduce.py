"""The reproduction: its plan against the recipes' own options, and small ones carried out, interrupted and repeated."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from data_folders import write_splits
from PIL import Image

from hf_robust_transfer.cli.finetune import FinetuningArguments
from hf_robust_transfer.cli.options import CheckpointArguments, ModelArguments
from hf_robust_transfer.cli.parsing import parse_arguments
from hf_robust_transfer.data import DataArguments
from hf_robust_transfer.modeling import create_model, load_model
from hf_robust_transfer.runs.evaluate import EvaluationArguments
from hf_robust_transfer.training.arguments import RobustTrainingArguments

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture
def module(monkeypatch):
    """A function (name) -> a script of the recipes as a module; they do not hide libraries of the same name."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(RECIPES), str(RECIPES / "reproduce")])
    return importlib.import_module


@pytest.fixture
def start(tmp_path, folder, source):
    """A function (*flags) -> the finished process of a tiny reproduction from digits to digits."""

    def run(*flags):
        argv = [sys.executable, RECIPES / "reproduce" / "run.py", "--scale", "tiny", "--robust_source", source]
        argv += ["--natural_source", source, "--source_data", folder, "--target_data", folder]
        argv += ["--output_dir", tmp_path / "outputs", "--jobs", "2", *flags]
        return subprocess.run([str(each) for each in argv], capture_output=True, text=True, timeout=1200)

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits):
    """Digits in parquet files."""
    return write_splits(tmp_path_factory.mktemp("digits"), digits, train=range(120), test=range(120, 160))


@pytest.fixture(scope="module")
def source(tmp_path_factory, digits):
    """A narrow CIFAR network of nine blocks for 8×8 images, untrained: what it scores does not matter here.

    Its batch-norms have seen the images, without which LwF at a high rate diverges.
    """
    folder = tmp_path_factory.mktemp("source")
    labels = {index: str(index) for index in range(10)}
    torch.manual_seed(0)
    model, processor = create_model(
        "cifar_resnet18", id2label=labels, model_args={"channels": [8, 16, 32, 64]}, image_size=8
    )
    images = processor([image.convert("RGB") for image in digits["image"]], return_tensors="pt")
    model.train()
    with torch.no_grad():
        for _ in range(30):
            model(**images)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
def test_every_command_is_one_that_its_recipe_understands(module, scale, tmp_path):
    plan = module("plan")
    types = {
        "finetune.py": [ModelArguments, DataArguments, FinetuningArguments],
        "pretrain.py": [ModelArguments, DataArguments, RobustTrainingArguments],
        "evaluate.py": [CheckpointArguments, DataArguments, EvaluationArguments],
        "reproduce/features.py": [CheckpointArguments, DataArguments, module("features").FeaturesArguments],
    }
    inputs = plan.Inputs(
        {"robust": "you/robust", "natural": "you/natural", "sure": "you/sure"},
        {"source": ["cifar10", "--image_column_name", "img"], "target": ["you/pets"]},
    )
    folders = set()
    for experiment in (plan.SOURCES, *plan.EXPERIMENTS, *plan.MORE):
        runs = plan.plan(experiment, scale, inputs, tmp_path / experiment)
        assert runs and bool(runs[0].axes)
        assert len({run.folder for run in runs}) == len(runs)
        for run in runs:
            for command in (*run.commands, *run.checks):
                recipe, *flags = command.argv
                assert (RECIPES / recipe).is_file()
                parsed = parse_arguments(recipe, types[recipe], "", flags)
                assert Path(parsed[-1].output_dir) == command.done.parent
                if recipe.endswith(("finetune.py", "pretrain.py")):
                    assert parsed[1].dataset_name in ("cifar10", "you/pets")
                folders.add(command.done)
        checked = [run for run in runs if run.checks]
        assert bool(checked) == (scale != "tiny" and experiment not in ("features", "sources"))
        for command in (command for run in checked for command in run.checks):
            assert "autoattack" in command.argv and int(command.argv[command.argv.index("--max_eval_samples") + 1]) >= 200
            # The last of a flag that is given twice counts.
            assert command.argv.count("--max_eval_samples") == command.argv.count("--attacks") == 1
    assert len(folders) > 50 or scale == "tiny"


def test_what_a_run_starts_from_and_its_axes_are_in_its_command(module, tmp_path):
    plan = module("plan")
    inputs = plan.Inputs({"robust": "r", "natural": "n"}, {"source": ["s"], "target": ["t", "--classes", "a", "b"]})
    runs = {run.folder.name: run for run in plan.plan("freezing", "small", inputs, tmp_path)}
    assert runs["natural-4"].axes == {"source": "natural", "retrained_blocks": 4}
    training, evaluation = (" ".join(command.argv) for command in runs["natural-4"].commands)
    assert training.startswith("finetune.py --model_name_or_path n --dataset_name t --classes a b --transfer fine_tuned")
    assert "--freeze 5" in training and "--freeze" not in " ".join(runs["natural-0"].commands[0].argv)
    assert evaluation.startswith(f"evaluate.py --model_name_or_path {tmp_path / 'natural-4'} --attacks pgd-20")
    with pytest.raises(ValueError, match="--target_data is missing"):
        plan.plan("lwf", "tiny", inputs._replace(data={"source": ["s"], "target": []}), tmp_path)


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_training_is_in_bf16_only_where_the_hardware_multiplies_in_it(module, tmp_path, monkeypatch, precision):
    plan = module("plan")
    asked: list[torch.device] = []
    monkeypatch.setattr(plan, "choose_precision", lambda _, device: asked.append(device) or precision)
    inputs = plan.Inputs({"robust": "r", "natural": "n"}, {"source": ["s"], "target": ["t"]})
    for run in plan.plan("lwf", "small", inputs, tmp_path):
        assert ("--bf16" in run.commands[0].argv) == (precision == "bf16")
    # Not the accelerator that torch was merely built for.
    assert {device.type == "cpu" for device in asked} == {not torch.accelerator.is_available()}


@pytest.mark.slow
def test_an_experiment_leaves_figures_goes_on_where_it_was_and_is_not_mixed_with_another(start, tmp_path):
    done = start("--experiments", "same_task")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / "tiny" / "same_task"
    results = json.loads((folder / "results.json").read_text())
    assert [run["method"] for run in results["runs"]] == ["source as it is", "fine-tuned", "LwF 1"]
    for run in results["runs"]:
        report = json.loads((folder / run["method"].replace(" ", "_") / "robustness.json").read_text())
        assert run["accuracy"] == report["clean"] and run["robust_accuracy"] == report["attacks"][0]["accuracy"]
        assert run["samples"] == 40 and run["attack"] == "pgd-20" and run["seconds"] > 0
        assert (run["method"] == "source as it is") == ("command" not in run)
    assert str(tmp_path) not in json.dumps(results)
    assert "| LwF 1 | " in (folder / "results.md").read_text()
    with Image.open(folder / "figure.png") as figure:
        assert figure.width > 500

    # What is lost is made again, and nothing else.
    weights = folder / "fine-tuned" / "model.safetensors"
    kept = weights.stat().st_mtime_ns
    for lost in (folder / "fine-tuned" / "robustness.json", folder / "figure.png"):
        lost.unlink()
    again = start("--experiments", "same_task")
    assert again.returncode == 0, again.stderr
    assert weights.stat().st_mtime_ns == kept and (folder / "figure.png").is_file()
    repeated = json.loads((folder / "results.json").read_text())
    for run in (*results["runs"], *repeated["runs"]):
        del run["seconds"]
    assert repeated == results

    shutil.rmtree(folder / "fine-tuned")
    other = start("--experiments", "same_task", "--source_data", "elsewhere")
    assert other.returncode == 1 and "holds a run with other options" in other.stderr.splitlines()[-1]
    assert not (folder / "fine-tuned").exists()


def test_a_table_has_means_over_seeds_and_what_autoattack_found(module):
    def share(value):
        return {"value": value, "lower": value - 0.1, "upper": value + 0.1}

    runs = [
        {"images_per_class": 5, "seed": seed, "method": method, "seconds": 9.0}
        | {"accuracy": share(clean), "robust_accuracy": share(0.2), "training_seconds": 3.0}
        for method, of_seeds in {"LwF": (0.4, 0.6), "frozen": (0.5, 0.5)}.items()
        for seed, clean in enumerate(of_seeds)
    ]
    runs[0]["check"] = {"samples": 200, "pgd-20": share(0.25), "autoattack": share(0.2)}
    table = module("results").table
    assert table({"runs": runs}).splitlines() == [
        "| images_per_class | method | seeds | clean | PGD-20 | training, s | PGD-20 / AutoAttack |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| 5 | LwF | 2 | 50.0 ± 14.1 | 20.0 ± 0.0 | 3 | 25.0 / 20.0 (10.0 – 30.0) of 200, seed 0 |",
        "| 5 | frozen | 2 | 50.0 ± 0.0 | 20.0 ± 0.0 | 3 |  |",
    ]
    del runs[0]["check"]
    assert table({"runs": runs}).splitlines()[2] == "| 5 | LwF | 2 | 50.0 ± 14.1 | 20.0 ± 0.0 | 3 |"
    for run in runs:
        del run["seed"]
    assert table({"runs": runs}).splitlines()[-1] == "| 5 | frozen | 50.0 (40.0 – 60.0) | 20.0 (10.0 – 30.0) | 3 |"


@pytest.mark.slow
def test_headlines_are_checked_with_autoattack_at_the_end(start, tmp_path):
    done = start("--experiments", "lwf", "--scale", "small")
    assert done.returncode == 0, done.stderr
    assert done.stderr.index("lwf: AutoAttack") > done.stderr.index("lwf: 100%")
    runs = json.loads((tmp_path / "outputs" / "small" / "lwf" / "results.json").read_text())["runs"]
    assert [run["method"] for run in runs if "check" in run] == [
        "frozen",
        "LwF 1",
        "5 blocks frozen, LwF 0.5",
        "adversarially fine-tuned",
    ]
    checks = [run["check"] for run in runs if "check" in run]
    for check in checks:
        assert check["autoattack"]["value"] <= check["pgd-20"]["value"] <= check["accuracy"]["value"]
        assert check["self_checks"] > 5


@pytest.mark.slow
def test_all_experiments_run(start, tmp_path):
    names = ("freezing", "features", "heads", "few_images", "lwf", "same_task", "presets", "distillation")
    done = start("--experiments", *names)
    assert done.returncode == 0, done.stderr
    for experiment in names:
        folder = tmp_path / "outputs" / "tiny" / experiment
        assert json.loads((folder / "results.json").read_text())["runs"]
        assert (folder / "figure.png").is_file() and (folder / "results.md").read_text().startswith("| ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--experiments", "heads", "hands"], "--experiments hands: unknown"),
        (["--scale", "huge"], "--scale huge is unknown"),
        (["--jobs", "0"], "--jobs 0 must be at least 1"),
        (["--experiments", "lwf", "--robust_source", "r", "--natural_source", "n"], "--target_data is missing"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(module, error_of, tmp_path, flags, message):
    assert message in error_of("reproduce/run.py", "--output_dir", tmp_path / "outputs", *flags)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_a_command_that_fails_names_its_log(start, tmp_path, source):
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    failed = start("--experiments", "features", "--robust_source", broken)
    assert failed.returncode == 1
    error = failed.stderr.strip().splitlines()[-1]
    assert error.startswith("error: reproduce/features.py ended with status 1") and "log.txt" in error
    assert not (tmp_path / "outputs" / "tiny" / "features" / "results.json").exists()


def test_a_source_loads_as_any_other_model(source):
    assert load_model(str(source))[0].num_labels == 10
