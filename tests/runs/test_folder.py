"""A run's folder: one run at a time, which goes on only as the same run, and is finished when all of it is."""

import json
import shutil
import subprocess
import sys
import time

import pytest
import torch
from data_folders import write_splits
from safetensors.torch import load_file

from hf_robust_transfer.cli.main import run_command
from hf_robust_transfer.run_folder import FINISHED_NAME, RECORD_NAME, RESULTS_NAME, RUN_NAME, is_finished, tidy

MODEL = ("--model_name_or_path", "convnext_tiny", "--image_size", "8", "--model_args")
MODEL_ARGS = '{"patch_size": 1, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}'
QUICK = ("--per_device_train_batch_size", "16", "--eval_attack_steps", "1", "--disable_tqdm", "true", "--use_cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory, digits):
    return write_splits(tmp_path_factory.mktemp("digits"), digits, train=range(48), test=range(48, 80))


@pytest.fixture(scope="module")
def arguments(images):
    """A function (output_dir, *more) -> the arguments of a tiny pretraining of two epochs."""

    def of(output_dir, *more, data=images):
        given = [*MODEL, MODEL_ARGS, "--dataset_name", data, "--num_train_epochs", "2", "--output_dir", output_dir, *QUICK]
        return [str(each) for each in (*given, *more)]

    return of


@pytest.fixture(scope="module")
def finished(tmp_path_factory, arguments):
    output_dir = tmp_path_factory.mktemp("runs") / "finished"
    run_command("pretrain", arguments(output_dir))
    return output_dir


@pytest.fixture
def stopped(finished, tmp_path):
    """The finished run as a kill after its first epoch leaves it."""
    folder = tmp_path / "stopped"
    shutil.copytree(finished, folder)
    for name in (FINISHED_NAME, RECORD_NAME, RESULTS_NAME, "train_results.json", "model.safetensors"):
        (folder / name).unlink()
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    shutil.rmtree(last)
    return folder


def results(folder):
    """All results but those that depend on the machine, and the training loss, which counts from the last start."""
    content = json.loads((folder / RESULTS_NAME).read_text())
    left_out = ("time", "per_second", "train_loss", "total_flos")
    return {name: value for name, value in content.items() if not any(word in name for word in left_out)}


def test_a_stopped_run_ends_as_the_uninterrupted_one(stopped, finished, arguments):
    assert not is_finished(stopped)
    run_command("pretrain", arguments(stopped))
    assert is_finished(stopped) and results(stopped) == results(finished)
    weights, expected = (load_file(folder / "model.safetensors") for folder in (stopped, finished))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_steps", "5"),
        ("gradient_accumulation_steps", "2"),
        ("warmup_steps", "2"),
        ("bf16", "true"),
        ("learning_rate", "0.5"),
        ("adam_beta2", "0.9"),
        ("lr_scheduler_type", "cosine"),
        ("objective", "fast"),
        ("classes", "0 1 2 3 4 5 6 7"),
    ],
)
def test_a_run_with_other_options_does_not_go_on(stopped, arguments, error_of, option, value):
    before = sorted(path.name for path in stopped.rglob("*"))
    error = error_of("pretrain.py", *arguments(stopped, f"--{option}", *value.split()))
    assert "has checkpoints of a run with --" in error and "--overwrite_output_dir" in error
    assert f"--{option} " in error
    assert sorted(path.name for path in stopped.rglob("*")) == before


def test_other_training_images_do_not_go_on_and_moved_ones_do(stopped, arguments, digits, images, tmp_path, error_of):
    other, moved = tmp_path / "other", tmp_path / "moved"
    for folder in (other, moved):
        shutil.copytree(images, folder)
    digits.select([0, *range(2, 49)]).to_parquet(other / "train-00000-of-00001.parquet")
    assert "other training images" in error_of("pretrain.py", *arguments(stopped, data=other))
    run_command("pretrain", arguments(stopped, data=moved))
    assert is_finished(stopped)


def test_what_says_how_and_not_what_may_change(stopped, arguments):
    run_command(
        "pretrain",
        arguments(stopped, "--logging_steps", "3", "--save_total_limit", "5", "--per_device_eval_batch_size", "7"),
    )
    assert is_finished(stopped)


def test_the_checkpoint_of_another_run_is_not_resumed(stopped, finished, arguments, tmp_path, error_of):
    checkpoint = next(stopped.glob("checkpoint-*"))
    new = tmp_path / "new"
    error = error_of("pretrain.py", *arguments(new, "--objective", "fast", "--resume_from_checkpoint", checkpoint))
    assert f"{checkpoint} is of a run with --objective natural, not fast" in error and not new.exists()
    error = error_of("pretrain.py", *arguments(new, "--objective", "fast", "--resume_from_checkpoint", finished))
    assert "is of a run with --objective natural, not fast" in error and not new.exists()
    (checkpoint / RUN_NAME).unlink()
    error = error_of("pretrain.py", *arguments(new, "--resume_from_checkpoint", checkpoint))
    assert "does not say which run it is of" in error and not new.exists()


def test_what_came_after_training_is_done_without_training_again(finished, tmp_path, arguments):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / FINISHED_NAME).unlink()
    (folder / RESULTS_NAME).write_text('{"eval_acc')  # killed while it was being written
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    weights = (folder / "model.safetensors").stat().st_mtime_ns
    run_command("pretrain", arguments(folder))
    assert is_finished(folder) and results(folder) == results(finished)
    assert (folder / "model.safetensors").stat().st_mtime_ns == weights


def test_a_record_of_another_model_does_not_stand_for_training(finished, tmp_path, arguments):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for name in (FINISHED_NAME, RESULTS_NAME):
        (folder / name).unlink()
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    record = json.loads((folder / RECORD_NAME).read_text())
    (folder / RECORD_NAME).write_text(json.dumps({**record, "fingerprint": "of another"}))
    weights = (folder / "model.safetensors").stat().st_mtime_ns
    run_command("pretrain", arguments(folder))
    assert (folder / "model.safetensors").stat().st_mtime_ns > weights and results(folder) == results(finished)


def test_a_first_attempt_without_a_checkpoint_blocks_nothing(tmp_path, arguments):
    with pytest.raises(SystemExit, match="loss term natural"):
        run_command("pretrain", arguments(tmp_path / "run", "--learning_rate", "1e30"))
    run_command("pretrain", arguments(tmp_path / "run"))
    assert is_finished(tmp_path / "run")


def test_leftovers_of_a_killed_run_go(tmp_path):
    for name in ("_saving-ab", "_publishing-3", "checkpoint-4", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    for name in ("robustness.json.part", RECORD_NAME, "notes.txt"):
        (tmp_path / name).write_text("{}")
    tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "notes.txt"]


def test_two_runs_do_not_share_a_folder(tmp_path, arguments, error_of):
    output_dir = tmp_path / "run"
    code = "import sys; from hf_robust_transfer.cli.main import run_command; run_command('pretrain', sys.argv[1:])"
    first = subprocess.Popen(
        [sys.executable, "-c", code, *arguments(output_dir, "--num_train_epochs", "500")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 120
        while not (output_dir / RUN_NAME).is_file() and time.monotonic() < until:
            time.sleep(0.1)
        error = error_of("pretrain.py", *arguments(output_dir, "--overwrite_output_dir"))
        assert f"--output_dir {output_dir} is in use by another command" in error
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    run_command("pretrain", arguments(output_dir, "--overwrite_output_dir"))  # a killed run holds nothing
    assert is_finished(output_dir)


def test_another_model_takes_a_folder_over_with_nothing_of_the_former(finished, tmp_path, arguments):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for name in ("preprocessor_config.json", "robustness.json", "robustness.md", "robustness_curve.png", "notes.txt"):
        (folder / name).write_text("{}")
    before = {path.name for path in folder.iterdir()}
    run_command("pretrain", arguments(folder, "--overwrite_output_dir", "--max_steps", "1"))
    kept = {name for name in before if name.startswith("robustness") and (folder / name).exists()}
    assert not kept and (folder / "notes.txt").is_file()
    assert not (folder / "preprocessor_config.json").exists() or (folder / "preprocessor_config.json").read_text() != "{}"
