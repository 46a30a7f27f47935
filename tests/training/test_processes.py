"""Runs in processes of their own: killed and resumed, and several at once."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "train_script.py"
CONVNEXT = {
    "architecture": "convnext_tiny",
    "model_args": {"patch_size": 1, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "drop_path_rate": 0.3},
}
TWO_PROCESSES = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
VIT_ARGS = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2}
TWO_HEADS = {"architecture": "deit_tiny_distilled_patch16_224", "model_args": VIT_ARGS}
LORA = {
    "architecture": "vit_tiny_patch16_224",
    "model_args": VIT_ARGS,
    "lora": {"r": 4, "target_modules": ["qkv", "fc1"], "modules_to_save": ["head"]},
}
GUARDED = {"halve_on_divergence": 1, "averaging": "ema", "averaging_decay": 0.6}
WRN = {"architecture": "cifar_wrn", "model_args": {"depth": 10, "width": 1}}


def run(config, folder, launcher=(sys.executable,), options=(), more=()):
    """Run the script to its end, however that comes, and return its exit status and output.

    After the one run come more in the same processes, each in a folder inside with its number: 1, 2, …
    """
    configs = []
    for number, each in enumerate([config, *more]):
        place = folder / str(number) if number else folder
        place.mkdir(parents=True, exist_ok=True)
        configs.append({**each, "arguments": {**each["arguments"], "output_dir": str(place)}})
    file = folder / "run.json"
    file.write_text(json.dumps(configs))
    done = subprocess.run([*launcher, str(SCRIPT), str(file), *options], capture_output=True, text=True, timeout=400)
    return done.returncode, done.stdout + done.stderr


def final(folder):
    return torch.load(folder / "final.pt")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("objective", "workers", "crop", "kills"),
    [
        ("natural", 0, 0, [(16, 15)]),  # features are known: the student's in the warm start, the teacher's always
        pytest.param("natural", 0, 0, [(5, 3)], marks=pytest.mark.slow),
        *(
            pytest.param(objective, workers, 1, [(5, 3), (16, 15)], marks=pytest.mark.slow)
            for objective in ("natural", "free")
            for workers in (0, 2)
        ),
    ],
)
def test_a_run_killed_in_mid_epoch_ends_with_the_weights_of_one_that_was_not(tmp_path, objective, workers, crop, kills):
    # 10 steps an epoch; the warm start ends with step 9. Kills fall into its midst and, in the second epoch, after it.
    config = {
        **CONVNEXT,
        "samples": 80,
        "arguments": {
            "objective": objective,
            "eps": "0.1",
            "free_replays": 2,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8,
            "save_strategy": "steps",
            "save_steps": 3,
            "save_total_limit": None,
            "random_crop": crop,
            "random_flip": True,
            "lwf_weight": 1.0,
            "warm_start_steps": 9,
            "dataloader_num_workers": workers,
        },
    }
    status, output = run(config, tmp_path / "whole")
    assert status == 0, output
    expected = final(tmp_path / "whole")["weights"]
    for kill_at, last_checkpoint in kills:
        folder = tmp_path / f"killed_at_{kill_at}"
        status, output = run({**config, "kill_at": kill_at}, folder)
        assert status == -signal.SIGKILL, output
        assert not (folder / "final.pt").exists()
        status, output = run({**config, "resume_from": str(folder / f"checkpoint-{last_checkpoint}")}, folder)
        assert status == 0, output
        assert same(final(folder)["weights"], expected)


@pytest.mark.parametrize(
    ("objective", "lwf_weight", "crop"),
    [
        ("natural", 0.5, 0),
        pytest.param("pgd", 0.0, 1, marks=pytest.mark.slow),
        pytest.param("natural", 0.5, 1, marks=pytest.mark.slow),
        pytest.param("trades", 0.5, 1, marks=pytest.mark.slow),
    ],
)
def test_two_processes_do_what_one_does_with_twice_the_batch(tmp_path, objective, lwf_weight, crop):
    # One step inside the warm start and one after it; random crops and attacks are keyed by sample, not by process.
    config = {
        **WRN,
        "samples": 32,
        "dtype": "float64",
        "eval_samples": 13,
        "evaluate": True,
        "arguments": {
            "objective": objective,
            "eps": "0.1",
            "max_steps": 2,
            "attack_steps": 3,
            "learning_rate": 0.1,
            "lr_scheduler_type": "constant",
            "random_crop": crop,
            "lwf_weight": lwf_weight,
            "warm_start_steps": 1,
            "batch_norm_eval": True,
            "per_device_eval_batch_size": 4,
            "eval_attack_steps": 3,
        },
    }

    more = []
    if lwf_weight and not crop:
        more = [
            {**config, **LORA},
            {**config, **TWO_HEADS},
            {**config, "arguments": {**config["arguments"], **GUARDED}},
            *({**config, "arguments": {**config["arguments"], "objective": name}} for name in ("saad", "igdm", "rslad")),
        ]
    one, two = tmp_path / "one", tmp_path / "two"
    for each in (config, *more):
        each["arguments"]["per_device_train_batch_size"] = 16
    status, output = run(config, one, more=more)
    assert status == 0, output
    for each in (config, *more):
        each["arguments"]["per_device_train_batch_size"] = 8
    status, output = run(config, two, TWO_PROCESSES, ("--use_cpu",), more)
    assert status == 0, output
    check_same_training(final(one), final(two))
    for number, _ in enumerate(more, 1):
        check_same_training(final(one / str(number)), final(two / str(number)))


def check_same_training(one, two):
    assert (one["world_size"], two["world_size"]) == (1, 2)
    for name, expected in one["weights"].items():
        assert torch.allclose(two["weights"][name], expected, rtol=1e-9, atol=1e-11), name
    for name in ("eval_accuracy", "eval_robust_accuracy", "eval_loss", "eval_robust_loss"):
        assert two["metrics"][name] == pytest.approx(one["metrics"][name], abs=1e-6), name
    correct = 13 * two["metrics"]["eval_accuracy"]  # a sample counted twice would make it no whole number
    assert correct == pytest.approx(round(correct), abs=1e-9)
    losses = [[entry["loss"] for entry in each["logs"] if "loss" in entry] for each in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("kill_at", [6, pytest.param(3, marks=pytest.mark.slow)])
def test_a_killed_distillation_goes_on_with_its_average(tmp_path, kill_at):
    # 4 steps an epoch; saad averages from the second epoch on, and its gradient term grows from step to step.
    config = {
        **WRN,
        "samples": 32,
        "arguments": {
            "objective": "saad",
            "eps": "0.1",
            "attack_steps": 2,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8,
            "save_strategy": "steps",
            "save_steps": 1,
            "averaging_start": 2,
        },
    }
    status, output = run(config, tmp_path / "whole")
    assert status == 0, output
    folder = tmp_path / "killed"
    status, output = run({**config, "kill_at": kill_at}, folder)
    assert status == -signal.SIGKILL, output
    status, output = run({**config, "resume_from": str(folder / f"checkpoint-{kill_at}")}, folder)
    assert status == 0, output
    assert same(final(folder)["weights"], final(tmp_path / "whole")["weights"])


@pytest.mark.slow
def test_processes_evaluate_with_the_batch_norm_statistics_that_are_saved(tmp_path):
    config = {
        **WRN,
        "samples": 32,
        "evaluate": True,
        "arguments": {"max_steps": 2, "per_device_train_batch_size": 8, "eval_attack_steps": 1, "learning_rate": 0.1},
    }
    averaging = {**config, "arguments": {**config["arguments"], "averaging": "swa", "averaging_start": 0}}
    status, output = run(config, tmp_path, TWO_PROCESSES, ("--use_cpu",), [averaging])
    assert status == 0, output
    for folder in (tmp_path, tmp_path / "1"):
        first, second = (torch.load(folder / f"buffers_{rank}.pt") for rank in (0, 1))
        assert same(first, second)
        assert all(torch.equal(final(folder)["weights"][name], buffer) for name, buffer in first.items())
        assert first["timm_model.norm.running_mean"].abs().sum() > 0  # they did move, each process's by its own samples
