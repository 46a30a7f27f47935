"""The recipes as a user runs them: in processes of their own, on small real data, and with every kind of bad input."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from data_folders import write_splits
from safetensors.torch import load_file

from hf_robust_transfer import PixelClassifier, PixelDataset, load_image_splits, load_model
from hf_robust_transfer.cli import quickstart
from hf_robust_transfer.cli.finetune import FinetuningArguments
from hf_robust_transfer.cli.main import run_command
from hf_robust_transfer.data import DataArguments, as_pixels
from hf_robust_transfer.transfer import head_learning_rate

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = ("--model_name_or_path", "convnext_tiny", "--image_size", "8", "--model_args")
TINY_ARGS = '{"patch_size": 1, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}'
QUICK = ("--per_device_train_batch_size", "16", "--eval_attack_steps", "1", "--disable_tqdm", "true", "--use_cpu")


def run(recipe, *arguments, cwd=None):
    """Run a recipe to its end; its exit status, standard output and standard error."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "recipes" / recipe), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    return done.returncode, done.stdout, done.stderr


def run_here(command, *arguments):
    """Run a command to its end in this process."""
    run_command(command, list(map(str, arguments)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits):
    """A folder with digits in parquet files, a training and a test split."""
    return write_splits(tmp_path_factory.mktemp("digits"), digits, train=range(120), test=range(120, 200))


@pytest.fixture(scope="module")
def source(tmp_path_factory, folder):
    """A source trained by `pretrain.py` on digits 0–4, and what the recipe printed."""
    output_dir = tmp_path_factory.mktemp("runs") / "source"
    status, output, errors = run(
        "pretrain.py",
        *(*TINY, TINY_ARGS, "--dataset_name", folder, "--classes", *"01234", "--objective", "fast", "--eps", "0.1"),
        *("--num_train_epochs", "2", "--output_dir", output_dir, *QUICK),
    )
    assert status == 0, errors
    return output_dir, output


def test_pretraining_leaves_a_model_its_processor_and_its_results(source):
    output_dir, output = source
    results = json.loads((output_dir / "all_results.json").read_text())
    for name in ("eval_accuracy", "eval_robust_accuracy", "test_accuracy", "test_robust_accuracy", "train_loss"):
        assert 0 <= results[name] <= 10
    assert results["test_robust_accuracy"] <= results["test_accuracy"]
    assert "trainable: " in output and "head" in output
    config = json.loads((output_dir / "config.json").read_text())
    assert list(config["id2label"].values()) == list("01234")
    assert config["pretrained_cfg"]["input_size"] == [3, 8, 8]


@pytest.mark.parametrize("transfer", ["frozen", "lwf", "fine_tuned"])
def test_a_source_is_transferred_to_new_labels(source, folder, tmp_path, transfer):
    source_dir, _ = source
    wanted = DataArguments(dataset_name=str(folder), classes=list("56789"), samples_per_class=5)
    run_here(
        "finetune",
        *("--model_name_or_path", source_dir, "--dataset_name", folder, "--classes", *"56789", "--transfer", transfer),
        *(
            "--samples_per_class",
            5,
            "--num_train_epochs",
            3,
            "--logging_steps",
            1,
            "--output_dir",
            tmp_path / "run",
            *QUICK,
        ),
    )
    before, after = (load_file(each / "model.safetensors") for each in (source_dir, tmp_path / "run"))
    backbone = [name for name in before if not name.startswith("head.fc")]
    unchanged = all(torch.equal(before[name], after[name]) for name in backbone)
    assert unchanged == (transfer == "frozen")
    assert not torch.equal(before["head.fc.weight"], after["head.fc.weight"])
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert any("loss_lwf" in entry for entry in state["log_history"]) == (transfer == "lwf")
    noted = json.loads((tmp_path / "run" / "run.json").read_text())
    model, processor = load_model(str(source_dir))
    images = PixelDataset(load_image_splits(wanted, seed=42).train, processor)
    pixels = as_pixels(torch.stack([images[row]["pixel_values"] for row in range(len(images))]))
    head_rate = head_learning_rate(PixelClassifier(model, processor), pixels)
    if transfer == "frozen":
        assert noted["learning_rate"] == head_rate
    else:
        assert noted["warm_start_learning_rate"] == head_rate
        assert noted["learning_rate"] == {"lwf": 0.03, "fine_tuned": 0.01}[transfer]


@pytest.mark.parametrize(
    ("options", "rate"),
    [
        ({"transfer": "frozen"}, None),  # the head's, which follows from its features
        ({"transfer": "frozen", "freeze": "2"}, 0.01),
        ({"transfer": "lwf"}, 0.03),
        ({"transfer": "fine_tuned", "freeze": "backbone", "warm_start_steps": 0}, None),
        ({"transfer": "fine_tuned", "freeze": "1"}, 0.01),
        ({"transfer": "fine_tuned", "learning_rate": 0.5}, 0.5),
    ],
)
def test_every_transfer_has_a_learning_rate_of_its_own(options, rate):
    assert FinetuningArguments("outputs/unused", report_to="none", **options).learning_rate == rate
    with pytest.raises(ValueError, match="--learning_rate is missing"):
        FinetuningArguments("outputs/unused", optim="adamw_torch", **{**options, "learning_rate": None})


def test_options_come_from_a_file_and_a_finished_run_is_not_overwritten(source, folder, tmp_path, error_of):
    options = {
        "model_name_or_path": str(source[0]),
        "dataset_name": str(folder),
        "classes": list("01234"),
        "transfer": "frozen",
        "eps": 0.1,
        "max_steps": 2,
        "eval_attack_steps": 1,
        "output_dir": str(tmp_path / "run"),
        "use_cpu": True,
    }
    (tmp_path / "run.yaml").write_text(json.dumps(options))  # JSON is YAML
    run_here("finetune", tmp_path / "run.yaml")
    finished = (tmp_path / "run" / "all_results.json").read_bytes()
    error = error_of("finetune.py", tmp_path / "run.yaml")
    assert error.startswith("error: --output_dir ")
    assert "holds a finished run" in error and "--overwrite_output_dir" in error
    assert (tmp_path / "run" / "all_results.json").read_bytes() == finished
    (tmp_path / "run.yaml").write_text(json.dumps({**options, "overwrite_output_dir": True}))
    run_here("finetune", tmp_path / "run.yaml")


def test_a_run_that_was_stopped_goes_on_from_its_last_whole_checkpoint(folder, tmp_path, error_of):
    arguments = [*TINY, TINY_ARGS, "--dataset_name", folder, "--output_dir", tmp_path, "--max_train_samples", "64", *QUICK]
    arguments += ["--save_steps", "1", "--save_strategy", "steps", "--save_total_limit", "9"]
    run_here("pretrain", *arguments, "--max_steps", "3")
    # As a kill leaves it: no results, and the last checkpoint half written.
    (tmp_path / "all_results.json").unlink()
    (tmp_path / "checkpoint-3" / "trainer_state.json").unlink()
    (tmp_path / "checkpoint-3" / "model.safetensors").write_bytes(b"half")
    assert "has checkpoints of a run with --max_steps 3, not 4" in error_of("pretrain.py", *arguments, "--max_steps", "4")
    run_here("pretrain", *arguments, "--max_steps", "3")
    steps = [entry["step"] for entry in json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]]
    assert json.loads((tmp_path / "all_results.json").read_text())["epoch"] == 0.75
    assert max(steps) == 3
    assert load_file(tmp_path / "checkpoint-3" / "model.safetensors")  # written anew, from checkpoint-2 on


def test_a_source_without_a_head_is_transferred_and_is_its_own_teacher(folder, tmp_path):
    small = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 1, "num_heads": 2}
    headless = timm.create_model("vit_tiny_patch16_224", num_classes=0, **small)
    timm.models.save_for_hf(headless, tmp_path / "headless", model_args=small)
    arguments = ("--model_name_or_path", tmp_path / "headless", "--dataset_name", folder, "--transfer", "lwf")
    run_here("finetune", *arguments, "--max_steps", "3", "--output_dir", tmp_path / "mine", *QUICK)
    model, _ = load_model(str(tmp_path / "mine"))
    assert list(model.config.id2label.values()) == [str(digit) for digit in range(10)]


BAD_INPUT = {
    "eps": (["--eps", "8"], "--eps=8 is larger than the whole pixel range"),
    "norm": (["--norm", "l1"], "--norm l1 is unknown: use linf or l2"),
    "objective": (["--objective", "best"], "--objective best is unknown: use natural, pgd, trades, "),
    "distance": (["--lwf_distance", "l9"], "--lwf_distance l9 is unknown: use l1, l2, squared_l2 or cosine"),
    "blocks": (["--freeze", "77"], "freeze=77, but this backbone has 6 blocks"),
    "column": (
        ["--label_column_name", "class"],
        "--label_column_name class: the data set has no such column, only image, label",
    ),
    "class": (["--classes", "0", "zebra"], "--classes 0 zebra: use two or more different ones of 0, 1"),
    "absent class": (["--max_train_samples", "3"], "no training image of "),
    "data": (["--dataset_name", "no/such-data"], "the data set no/such-data cannot be loaded"),
    "model": (
        ["--model_name_or_path", "no/such-model"],
        "model_args build an untrained timm architecture, but 'no/such-model' is none",
    ),
    "teacher": (["--lwf_weight", "1"], "pretrain has no source for --lwf_weight 1 to keep features close to"),
    "model_args": (["--model_args", "{depth"], "--model_args {depth is not a JSON object"),
    "resume": (
        ["--resume_from_checkpoint", "nowhere"],
        "--resume_from_checkpoint nowhere is not a complete checkpoint folder",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_leaves_nothing_behind(folder, tmp_path, case, error_of):
    bad, message = BAD_INPUT[case]
    good = [*TINY, TINY_ARGS, "--dataset_name", folder, "--output_dir", tmp_path / "run", "--max_steps", "1", *QUICK]
    assert message in error_of("pretrain.py", *good, *bad)
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eps: [", "cannot be read"),
        ("just words", "must map options to values"),
        ("freeze: maybe", "--freeze='maybe' must be"),
        ("freeze: 1\nseed: 2\nfreeze: 2", "freeze is given twice"),
        ("out-put_dir: x", "out_put_dir is no option: do you mean --output_dir?"),
        ("seed: [1, 2]", "seed takes one value, not [1, 2]"),
        ("seed: 1.5", "seed 1.5 is refused"),
        ("use_cpu: perhaps", "use_cpu perhaps is refused"),
    ],
)
def test_a_bad_file_of_options_is_one_line(tmp_path, error_of, text, message):
    (tmp_path / "run.yaml").write_text(text)
    assert message in error_of("pretrain.py", tmp_path / "run.yaml")


def test_the_quickstart_touches_no_other_folder(tmp_path, error_of):
    mine = tmp_path / "mine"
    (mine / "checkpoint-3").mkdir(parents=True)
    (mine / "model.safetensors").write_bytes(b"the user's")
    assert "--model_name_or_path is missing" in error_of("finetune.py", "--output_dir", mine, "--overwrite_output_dir")
    assert (mine / "checkpoint-3").is_dir() and (mine / "model.safetensors").read_bytes() == b"the user's"


def test_flags_are_not_abbreviated(tmp_path, error_of):
    secret = "hf_" + "a" * 34
    error = error_of("finetune.py", "--model_name_or_path", "x", "--hub_tok", secret, "--output_dir", tmp_path / "run")
    assert "--hub_tok is no option" in error and "do you mean --hub_token?" in error and secret not in error
    assert not (tmp_path / "run").exists()


def test_an_architecture_without_weights_is_no_source(folder, tmp_path, error_of):
    error = error_of("finetune.py", "--model_name_or_path", "resnet18", "--dataset_name", folder, "--output_dir", tmp_path)
    assert "resnet18 is an architecture without weights" in error and "hf-robust-transfer pretrain" in error


def test_checkpoints_of_another_run_are_not_continued(source, folder, tmp_path, error_of):
    run_dir = tmp_path / "run"
    shutil.copytree(source[0], run_dir)
    (run_dir / "all_results.json").unlink()  # as if it had been stopped
    arguments = [
        *TINY,
        TINY_ARGS,
        "--dataset_name",
        folder,
        "--classes",
        *"01234",
        "--eps",
        "0.1",
        "--output_dir",
        run_dir,
        *QUICK,
    ]
    error = error_of("pretrain.py", *arguments, "--objective", "pgd")
    assert "has checkpoints of a run with --objective fast, not pgd" in error and "--overwrite_output_dir" in error


def test_overwriting_deletes_nothing_when_the_run_cannot_start(source, folder, tmp_path, error_of):
    run_dir = tmp_path / "run"
    shutil.copytree(source[0], run_dir)
    before = sorted(path.name for path in run_dir.iterdir())
    arguments = ["--output_dir", run_dir, "--overwrite_output_dir", *QUICK]
    assert "no/such" in error_of("pretrain.py", *TINY, TINY_ARGS, "--dataset_name", "no/such", *arguments)
    error = error_of("finetune.py", "--model_name_or_path", run_dir, "--dataset_name", folder, *arguments)
    assert "would delete" in error and "choose another --output_dir" in error
    assert sorted(path.name for path in run_dir.iterdir()) == before


def test_a_damaged_image_is_named_before_training(tmp_path, digits, error_of):
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for row in range(8):
            digits[row]["image"].save(tmp_path / "images" / label / f"{row}.png")
    whole = (tmp_path / "images" / "dog" / "3.png").read_bytes()
    (tmp_path / "images" / "dog" / "3.png").write_bytes(whole[: len(whole) // 2])
    error = error_of(
        "pretrain.py", *TINY, TINY_ARGS, "--train_dir", tmp_path / "images", "--output_dir", tmp_path / "run", *QUICK
    )
    assert re.match(r"error: image in row \d+ of the (train|validation) split \(.*dog/3\.png\) cannot be read", error)
    assert not (tmp_path / "run").exists()


LOAD_WITHOUT_THE_PACKAGE = """
import json, sys
sys.modules["hf_robust_transfer"] = None
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
model = AutoModelForImageClassification.from_pretrained(sys.argv[1])
processor = AutoImageProcessor.from_pretrained(sys.argv[1])
image = Image.new("RGB", (20, 20), (200, 30, 90))
with torch.no_grad():
    probabilities = model(**processor(image, return_tensors="pt")).logits.softmax(1)[0]
best = pipeline("image-classification", model=sys.argv[1])(image)[0]
assert abs(best["score"] - probabilities.max().item()) < 1e-5
assert best["label"] == model.config.id2label[probabilities.argmax().item()]
print(json.dumps(list(model.config.id2label.values())))
"""


def test_the_embedded_example_leaves_a_table_and_a_model_after_two_steps_of_each_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(quickstart.COMMON, "max_steps", 2)
    monkeypatch.setitem(quickstart.COMMON, "eval_attack_steps", 2)
    monkeypatch.setattr(quickstart, "TEST_SAMPLES", 8)
    run_here("quickstart", "--output_dir", tmp_path / "two", "--use_cpu")
    folder = tmp_path / "two"
    comparison = json.loads((folder / "comparison.json").read_text())
    assert set(comparison) == {"robust source", "natural source"}
    assert all(set(row) == {"frozen", "fine_tuned", "lwf"} for row in comparison.values())
    assert quickstart.table(comparison, 8) in capsys.readouterr().out
    model, _ = load_model(str(folder))
    assert list(model.config.id2label.values()) == list("0123456789")


@pytest.mark.slow
def test_the_embedded_example_shows_that_robustness_transfers(tmp_path, monkeypatch, error_of):
    status, output, errors = run("finetune.py", cwd=tmp_path)
    assert status == 0, errors
    folder = tmp_path / "outputs" / "quickstart"
    comparison = json.loads((folder / "comparison.json").read_text())
    assert set(comparison) == {"robust source", "natural source"}
    assert all(set(row) == {"frozen", "fine_tuned", "lwf"} for row in comparison.values())
    robust, frozen = (comparison["robust source"][transfer] for transfer in ("lwf", "frozen"))
    assert max(row["robust_accuracy"] for row in comparison["natural source"].values()) < 0.05
    assert robust["robust_accuracy"] > 0.5
    assert robust["accuracy"] >= comparison["natural source"]["lwf"]["accuracy"] - 0.03
    assert robust["accuracy"] > frozen["accuracy"] and robust["robust_accuracy"] >= frozen["robust_accuracy"]
    cell = f"{100 * robust['accuracy']:.1f} / {100 * robust['robust_accuracy']:.1f}"
    assert cell in output and json.loads((folder / "all_results.json").read_text())["test_accuracy"] == robust["accuracy"]
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_THE_PACKAGE, str(folder)], capture_output=True, text=True, timeout=120
    )
    assert loaded.returncode == 0, loaded.stderr
    assert json.loads(loaded.stdout.splitlines()[-1]) == list("0123456789")
    monkeypatch.chdir(tmp_path)
    assert "holds a finished run" in error_of("finetune.py")
