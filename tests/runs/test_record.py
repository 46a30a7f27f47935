"""What a run is noted by: nothing secret, no place of this machine, and what it came from."""

import json
from pathlib import Path

import pytest
from transformers import TrainerCallback

from hf_robust_transfer import RobustTrainingArguments
from hf_robust_transfer.cli.main import run_command
from hf_robust_transfer.data import DataArguments
from hf_robust_transfer.modeling import load_model
from hf_robust_transfer.runs.record import command_line, hub_id_of
from hf_robust_transfer.training import RobustTrainer

TOKEN, OF_ENVIRONMENT = "hf_" + "pLaNtEd" * 5, "planted-environment"
LOSS = "from hf_robust_transfer.objectives import OBJECTIVES\n\n\ndef mine(step):\n    return OBJECTIVES['natural'](step)\n"


def test_a_token_of_a_flag_is_in_no_other_word_of_the_command_either():
    given = [
        "finetune",
        "--hub_token=planted-flag",
        "--run_name",
        "a-planted-flag",
        f"--dataset_name=https://me:{TOKEN}@hub/x",
    ]
    given += ["--hub-token", "planted-two", "--optim_args", "x=planted-two", "--classes", "rose"]
    expected = "--run_name 'a-<token>' '--dataset_name=https://<token>@hub/x' --optim_args 'x=<token>' --classes rose"
    assert command_line(given) == f"accelerate launch -m hf_robust_transfer.cli.finetune {expected}"


def test_trackers_are_told_no_token_and_no_place(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", OF_ENVIRONMENT)
    args = RobustTrainingArguments(
        str(tmp_path / "run"),
        run_name=f"{TOKEN}-1",
        hub_token="planted-flag",
        project="of-planted-flag",
        report_to="none",
    )
    assert args.run_name == "<token>-1" and args.hub_token == "planted-flag" and Path(str(args.output_dir)).is_absolute()
    for told in (args.to_json_string(), json.dumps(args.to_sanitized_dict(), default=str)):
        assert not any(planted in told for planted in (TOKEN, OF_ENVIRONMENT, "planted-flag", str(tmp_path)))
    assert args.to_dict()["output_dir"] == "run" and args.to_dict()["num_train_epochs"] == 10


@pytest.fixture
def told(monkeypatch):
    """What trackers are told when a training begins."""
    texts = []

    class Listener(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            texts.extend([args.to_json_string(), model.config.to_json_string(), str(args.run_name)])

    begin = RobustTrainer.__init__

    def listening(self, *args, **kwargs):
        begin(self, *args, callbacks=[Listener()], **kwargs)

    monkeypatch.setattr(RobustTrainer, "__init__", listening)
    return texts


def test_a_run_with_secrets_in_its_options_leaves_none_of_them(tmp_path, digits, monkeypatch, told):
    monkeypatch.setenv("HF_TOKEN", OF_ENVIRONMENT)
    data, output_dir = tmp_path / "planted-place" / "digits", tmp_path / "run"
    digits.select(range(48)).to_parquet(data / "train-00000-of-00001.parquet")
    (tmp_path / "planted-place" / "losses.py").write_text(LOSS)
    run_command(
        "pretrain",
        [
            *("--model_name_or_path", "convnext_tiny", "--image_size", "8", "--model_args"),
            '{"patch_size": 1, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}',
            *("--dataset_name", str(data), "--output_dir", str(output_dir), "--max_steps", "1", "--use_cpu"),
            *(
                "--objective",
                f"{tmp_path}/planted-place/losses.py:mine",
                "--run_name",
                f"{TOKEN}-1",
                "--token",
                "planted-flag",
            ),
            *("--feature_cache_dir", str(tmp_path / "features"), "--save_strategy", "no", "--eval_attack_steps", "1"),
        ],
    )
    written = {path.name: path.read_text() for path in output_dir.glob("*.json")}
    assert {"training.json", "run.json", "config.json", "all_results.json"} <= set(written) and len(told) == 3
    for name, text in {**written, **dict(enumerate(told))}.items():
        assert not any(planted in text for planted in (TOKEN, OF_ENVIRONMENT, "planted-flag")), name
        assert name == "config.json" or ("planted-place" not in text and str(tmp_path) not in text), name
    record = json.loads(written["training.json"])
    assert record["options"]["objective"] == "losses.py:mine" and record["data"]["dataset_name"] == "digits"
    assert record["fingerprint_parts"].keys() == {"weights", "architecture", "image processor", "labels"}
    # Later evaluations here find the images.
    assert load_model(str(output_dir))[0].config.robust_training["data"]["dataset_name"] == str(data)


def test_the_hub_id_of_a_source_is_found_in_whatever_folder_it_lies(tmp_path):
    def folder(name, **files):
        (tmp_path / name).mkdir(parents=True)
        for file, content in files.items():
            (tmp_path / name / f"{file}.json").write_text(json.dumps(content))
        return str(tmp_path / name)

    assert hub_id_of("you/source") == "you/source" and hub_id_of("resnet18") is None
    assert hub_id_of(folder("hub/models--you--my-source/snapshots/0a1b2c")) == "you/my-source"
    assert hub_id_of(folder("downloaded", config={"robust_training": {"hub_id": "you/source"}})) == "you/source"
    assert (
        hub_id_of(folder("trained", config={"robust_training": {}}, training={"base_model_id": "you/source"}))
        == "you/source"
    )
    assert hub_id_of(folder("local", config={"robust_training": None})) is None and hub_id_of(folder("bare")) is None


def test_the_hub_id_of_data_is_no_local_folder_s_name(tmp_path):
    assert DataArguments(dataset_name="cifar10").hub_id == "cifar10"
    assert DataArguments(dataset_name=str(tmp_path)).hub_id is None and DataArguments(test_dir="pets").hub_id is None
