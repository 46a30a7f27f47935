"""Killed at any moment, a command that is started again ends as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from data_folders import write_splits
from hub_server import HubServer
from safetensors.torch import load_file

from hf_robust_transfer.cli.main import run_command

# How many kills each of the three commands takes; together some fifty.
KILLS = int(os.environ.get("KILLS", "17"))
MODEL_ARGS = '{"patch_size": 1, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}'
QUICK = ("--per_device_train_batch_size", "16", "--eval_attack_steps", "2", "--disable_tqdm", "true", "--use_cpu")
# Whatever a command needs is loaded before the clock starts.
CODE = """
import sys
from importlib import import_module
from hf_robust_transfer.cli.main import run_command
import_module(f"hf_robust_transfer.cli.{sys.argv[1]}")
import hf_robust_transfer.training.trainer
print("ready", flush=True)
run_command(sys.argv[1], sys.argv[2:])
"""


def started(arguments, environment=None):
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **(environment or {})}
    )
    while process.stdout.readline().strip() != "ready":
        assert process.poll() is None, process.stdout.read()
    return process


def finish(arguments, environment=None):
    """Seconds that a command takes once all is loaded."""
    began = time.monotonic()
    process = started(arguments, environment)
    began = time.monotonic()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return time.monotonic() - began


def killed(arguments, after, environment=None):
    process = started(arguments, environment)
    try:
        process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def images(tmp_path_factory, digits):
    return write_splits(tmp_path_factory.mktemp("digits"), digits, train=range(64), test=range(64, 96))


@pytest.fixture(scope="module")
def source(tmp_path_factory, images):
    folder = tmp_path_factory.mktemp("runs") / "source"
    arguments = ["--model_name_or_path", "convnext_tiny", "--image_size", "8", "--model_args", MODEL_ARGS]
    arguments += ["--dataset_name", str(images), "--num_train_epochs", "1", "--output_dir", str(folder), *QUICK]
    run_command("pretrain", arguments)
    return folder


def results(folder):
    content = json.loads((folder / "all_results.json").read_text())
    return {name: value for name, value in content.items() if "_accuracy" in name or name.endswith("_loss")}


def files(hub, repo_id):
    try:
        return set(hub.files(repo_id))
    except FileNotFoundError:  # there is no such repository yet
        return set()


def without_training_loss(values):
    return {name: value for name, value in values.items() if name != "train_loss"}


@pytest.mark.slow
def test_fine_tuning_ends_as_if_it_had_not_been_killed(source, images, tmp_path):
    def arguments(folder):
        given = ["finetune", "--model_name_or_path", source, "--dataset_name", images, "--num_train_epochs", "6"]
        return [*given, "--output_dir", folder, *QUICK]

    seconds = finish(arguments(tmp_path / "whole"))
    moments = random.Random(0)
    for number in range(KILLS):
        folder = tmp_path / f"killed-{number}"
        killed(arguments(folder), moments.uniform(0, seconds))
        if not (folder / "finished.json").is_file():
            finish(arguments(folder))
        assert without_training_loss(results(folder)) == without_training_loss(results(tmp_path / "whole"))
        weights, expected = (load_file(each / "model.safetensors") for each in (folder, tmp_path / "whole"))
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
        assert not [path for path in folder.rglob("*") if path.name.startswith("_saving") or path.suffix == ".part"]
        shutil.rmtree(folder)


@pytest.mark.slow
def test_an_evaluation_ends_as_if_it_had_not_been_killed(source, tmp_path):
    def arguments(folder):
        given = ["evaluate", "--model_name_or_path", source, "--attacks", "fgsm", "pgd-10", "--chunk_size", "8"]
        return [*given, "--self_check_samples", "16", "--curve_samples", "16", "--output_dir", folder, "--use_cpu"]

    def figures(folder):
        report = json.loads((folder / "robustness.json").read_text())
        return {name: report[name] for name in ("clean", "worst_case", "predictions", "curve", "self_checks")}

    seconds = finish(arguments(tmp_path / "whole"))
    moments = random.Random(1)
    for number in range(KILLS):
        folder = tmp_path / f"killed-{number}"
        killed(arguments(folder), moments.uniform(0, seconds))
        if not (folder / "robustness.json").is_file():
            finish(arguments(folder))
        assert figures(folder) == figures(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_publication_leaves_all_or_nothing(source, tmp_path):
    with HubServer(tmp_path) as hub:
        environment = hub.environment()

        def arguments(repo_id):
            return ["publish", "--folder", source, "--repo_id", repo_id, "--without_evaluation"]

        seconds = finish(arguments("user/whole"), environment)
        whole = hub.files("user/whole")
        moments = random.Random(2)
        for number in range(KILLS):
            repo_id = f"user/killed-{number}"
            killed(arguments(repo_id), moments.uniform(0, seconds), environment)
            there = files(hub, repo_id)
            assert there <= {".gitattributes"} or there == set(whole)
            finish(arguments(repo_id), environment)
            assert set(hub.files(repo_id)) == set(whole)
