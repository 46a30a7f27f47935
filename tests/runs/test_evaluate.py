"""An evaluation as a user runs it: killed, in two processes, with bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
from evaluated_digits import images_of, without_times

from hf_robust_transfer import runs
from hf_robust_transfer.cli.main import run_command
from hf_robust_transfer.evaluation import RobustnessReport
from hf_robust_transfer.runs.folder import locked

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, trained, pixels):
    """The trained model in a folder that says which data and threat model it was trained for."""
    folder = tmp_path_factory.mktemp("evaluated")
    model, processor = trained
    images, labels = (each[1400:1440] for each in pixels)
    items = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("0123456789"))})
    images_of(items).cast(features).to_parquet(folder / "images" / "test-00000-of-00001.parquet")
    model.config.robust_training = {
        "norm": "linf",
        "eps": "0.06",
        "seed": 3,
        "data": {"dataset_name": str(folder / "images")},
    }
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder / "model"


RECIPE = [str(REPOSITORY / "recipes" / "evaluate.py")]
ATTACKS = ["--attacks", "pgd-20", "apgd-ce", "square-500"]
SMALL = ["--self_check_samples", "20", "--curve_samples", "20", "--chunk_size", "20", "--use_cpu"]


def command(*arguments, launcher=(sys.executable,)):
    return [*launcher, *RECIPE, *map(str, arguments)]


def run(*arguments, launcher=(sys.executable,), cwd=None):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(*arguments, launcher=launcher), capture_output=True, text=True, timeout=600, cwd=cwd, env=environment
    )


def read(folder):
    return without_times(json.loads((folder / "robustness.json").read_text()))


@pytest.fixture(scope="module")
def uninterrupted(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = run(*("--model_name_or_path", checkpoint, *ATTACKS), *SMALL, "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_recipe_evaluates_on_the_data_and_threat_model_of_training(uninterrupted, checkpoint):
    folder, output = uninterrupted
    report = RobustnessReport.load(folder)
    assert (report.threat_model["norm"], report.threat_model["eps"], report.settings["seed"]) == ("linf", 0.06, 3)
    assert report.data["samples"] == 40 and report.data["split"] == "test" and report.worst_case.value < report.clean.value
    assert str(report.worst_case) in output and "AutoAttack was not" in output
    names = {"robustness.json", "robustness.md", "robustness_curve.png", "robustness_examples.png"}
    assert {path.name for path in folder.iterdir()} == names


def test_a_picture_that_fails_is_a_warning_and_the_report_is_there_before_it(checkpoint, tmp_path, monkeypatch, caplog):
    there = []

    def fail(*args, **kwargs):
        there.append((tmp_path / "robustness.json").is_file())
        raise RuntimeError("no font")

    monkeypatch.setattr(runs.evaluate, "plot_curve", fail)
    monkeypatch.setattr(runs.evaluate, "plot_examples", fail)
    arguments = ["--model_name_or_path", checkpoint, "--attacks", "fgsm", *SMALL, "--self_check_samples", "0"]
    run_command("evaluate", [*map(str, arguments), "--output_dir", str(tmp_path)])
    assert there == [True, True] and RobustnessReport.load(tmp_path).pictures == {}
    assert {path.name for path in tmp_path.iterdir()} == {"robustness.json", "robustness.md"}


def test_an_evaluation_that_was_killed_goes_on_and_ends_with_the_same_report(uninterrupted, checkpoint, tmp_path):
    arguments = ("--model_name_or_path", checkpoint, *ATTACKS, *SMALL, "--output_dir", tmp_path)
    process = subprocess.Popen(
        command(*arguments),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    started = tmp_path / "evaluation_progress" / "chunk-000001.json"
    deadline = time.monotonic() + 300
    while not started.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert started.exists() and not (tmp_path / "robustness.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in started.parent.glob("chunk-000000.json")}
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert kept and read(tmp_path) == read(uninterrupted[0])
    spent = RobustnessReport.load(tmp_path).timing["seconds"]["attacks"]
    worst = next(line for line in (tmp_path / "robustness.md").read_text().splitlines() if "worst case, sample" in line)
    assert worst.endswith(f"| {sum(spent.values()):.0f} |")  # of both starts, as the rows above it


def test_two_processes_find_what_one_does(uninterrupted, checkpoint, tmp_path):
    launcher = (
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
    )
    arguments = ("--model_name_or_path", checkpoint, *ATTACKS, *SMALL, "--output_dir", tmp_path)
    done = run(*arguments, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert RobustnessReport.load(tmp_path).timing["processes"] == 2
    assert read(tmp_path) == read(uninterrupted[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--eps", "8/255"), "--model_name_or_path is missing"),
        (("--model_name_or_path", "nowhere"), "model 'nowhere' cannot be loaded"),
        (("--attacks", "pgd20"), "attack 'pgd20' is unknown"),
        (("--attacks", "transfer"), "give a surrogate"),
        (("--precision", "half"), "--precision='half' is unknown: use auto, float32, bf16, fp16"),
        (("--chunk_size", "0"), "--chunk_size 0 must be at least 1"),
        (("--model_name_or_path", "CHECKPOINT", "--eps", "8"), "--eps=8 is larger than the whole pixel range"),
        (("--model_name_or_path", "CHECKPOINT", "--norm", "l7"), "--norm='l7' is unknown: use one of linf, l2"),
        (("--model_name_or_path", "CHECKPOINT", "--split", "dev"), "--split dev: the data set has no such split"),
        (("--model_name_or_path", "CHECKPOINT", "--output_dir", "FINISHED"), "holds a finished evaluation"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    arguments, message, checkpoint, uninterrupted, tmp_path, monkeypatch, error_of
):
    monkeypatch.chdir(tmp_path)
    places = {"CHECKPOINT": checkpoint, "FINISHED": uninterrupted[0]}
    assert message in error_of("evaluate.py", *(places.get(argument, argument) for argument in arguments))
    assert list(tmp_path.iterdir()) == []


def test_a_second_evaluation_in_the_same_folder_is_refused(checkpoint, tmp_path, error_of):
    with locked(tmp_path / "out", 0, 1):
        error = error_of("evaluate.py", "--model_name_or_path", checkpoint, "--output_dir", tmp_path / "out", *SMALL)
    assert f"--output_dir {tmp_path / 'out'} is in use by another command" in error
    assert not (tmp_path / "out").exists()
