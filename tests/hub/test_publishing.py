"""Publishing through the real Hub client to a Hub on loopback, in this process and in others, also when it fails."""

import json
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from data_folders import write_splits
from hub_server import HubServer
from huggingface_hub import ModelCard

from hf_robust_transfer import RobustTrainer, RobustTrainingArguments
from hf_robust_transfer.evaluation import RobustnessReport
from hf_robust_transfer.hub import PublishingError, files_to_publish, publish, stand_alone

REPOSITORY = Path(__file__).resolve().parents[2]
TINY_ARGS = '{"patch_size": 1, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}'


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer(tmp_path / "hub") as hub:
        hub.attach(monkeypatch)
        monkeypatch.setenv("HF_TOKEN", hub.write_token)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        yield hub


def change(folder):
    """Give the report another word, so that there is something to commit."""
    file = folder / "robustness.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "hardware": "another machine"}))


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


# ---- one commit, and what can go wrong with it ----


def test_a_folder_is_published_in_one_commit(hub, published):
    commit = publish(published, "user/mine", private=True, license="apache-2.0", commit_message="First")
    assert [each["title"] for each in hub.commits("user/mine")] == ["First", "initial commit"]
    files = {name: data for name, data in hub.files("user/mine").items() if name != ".gitattributes"}
    expected = files_to_publish(published, "user/mine", license="apache-2.0")
    assert files == {name: data if isinstance(data, bytes) else data.read_bytes() for name, data in expected.items()}
    assert commit.oid == hub.commits("user/mine")[0]["id"]
    card = ModelCard(files["README.md"].decode())
    assert card.data.eval_results[0].metric_value == RobustnessReport.load(published).clean.value
    assert hub.repository("user/mine").state["private"] is True


def test_weights_that_are_not_in_the_new_commit_go_with_it(hub, published):
    publish(published, "user/mine")
    shards = {"model-00001-of-00002.safetensors": b"old", "pytorch_model.bin": b"older", "notes.txt": b"kept"}
    hub.commit("user/mine", shards)
    publish(published, "user/mine")
    assert {"notes.txt", "model.safetensors"} <= set(hub.files("user/mine")) and not set(shards) - {"notes.txt"} & set(
        hub.files("user/mine")
    )


def test_another_branch_is_made_and_main_stays(hub, published):
    publish(published, "user/mine")
    change(published)
    publish(published, "user/mine", revision="v2", commit_message="Second")
    assert hub.commits("user/mine", "v2")[0]["title"] == "Second"
    assert hub.commits("user/mine")[0]["title"] == "Publish model and model card"


LATER = "Publish it later, without training again: hf-robust-transfer publish --folder"


@pytest.mark.parametrize(
    ("method", "path", "action", "message"),
    [
        ("POST", "/commit/", 401, "the Hub does not accept the token (401): log in with `hf auth login`"),
        ("POST", "/commit/", 403, "the token may not write there (403)"),
        ("POST", "/commit/", 409, "somebody else committed at the same time (409)"),
        ("POST", "/commit/", 500, "500"),
        ("PUT", "", "drop", ""),
        ("POST", "/preupload/", "drop", ""),
    ],
)
def test_a_failure_publishes_nothing_and_says_how_to_go_on(hub, published, monkeypatch, method, path, action, message):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client waits between its attempts
    publish(published, "user/mine")
    before, head = contents(published), hub.commits("user/mine")[0]["id"]
    change(published)
    torch.save({}, published / "optimizer.pt")
    hub.fail(method, path, action, times=100)
    if method == "PUT":  # the weights are there already, and large files are uploaded once
        hub.fail("POST", "/objects/batch", 500, times=100)
    with pytest.raises(PublishingError) as error:
        publish(published, "user/mine")
    assert message in str(error.value) and f"{LATER} {published} --repo_id user/mine" in str(error.value)
    assert hub.commits("user/mine")[0]["id"] == head
    assert contents(published).keys() == {*before, "optimizer.pt"}


def test_a_connection_that_is_dropped_in_mid_upload_publishes_nothing(hub, published, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.fail("PUT", "", "drop", times=100)
    with pytest.raises(PublishingError, match="No part of it is on the Hub without the rest"):
        publish(published, "user/mine")
    assert set(hub.files("user/mine")) <= {".gitattributes"}


def test_when_only_the_answer_is_lost_publishing_again_finds_nothing_to_do(hub, published):
    hub.fail("POST", "/commit/", "drop-response")
    with pytest.raises(PublishingError, match="No part of it is on the Hub without the rest"):
        publish(published, "user/mine")
    there = hub.commits("user/mine")[0]["id"]
    assert publish(published, "user/mine").oid == there and "model.safetensors" in hub.files("user/mine")


def test_a_server_error_that_passes_does_not_matter(hub, published, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.fail("PUT", "", 500, times=1)
    publish(published, "user/mine")
    assert "model.safetensors" in hub.files("user/mine")


def test_a_commit_of_somebody_else_in_between_is_not_overwritten(hub, published):
    publish(published, "user/mine")
    change(published)
    hub.fail("POST", "/commit/", lambda: hub.commit("user/mine", {"README.md": b"# theirs"}))
    with pytest.raises(PublishingError, match="somebody else committed at the same time"):
        publish(published, "user/mine")
    assert hub.files("user/mine")["README.md"] == b"# theirs"
    publish(published, "user/mine")
    assert hub.files("user/mine")["README.md"] != b"# theirs"


def test_a_reader_may_not_publish(hub, published):
    with pytest.raises(PublishingError, match=r"the token may not write there \(403\)"):
        publish(published, "user/mine", token=hub.read_token)


@pytest.mark.parametrize("full", [True, False])
def test_a_disk_that_fills_up_leaves_the_checkpoint_as_it_was(published, tiny, full):
    model, _ = tiny("timm-convnext")
    model.save_pretrained(published)  # with the names that standing alone changes
    before = contents(published)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        if full:  # a write beyond this many bytes fails, as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
            with pytest.raises(Exception, match=r"(?i)file too large|os error 27"):
                stand_alone(published)
        else:
            stand_alone(published)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (contents(published) == before) is full


def test_a_disk_that_fills_up_while_saving_leaves_the_model_that_was_there(tiny, digit_batch, tmp_path):
    model, processor = tiny("timm-convnext")
    images, labels = digit_batch()
    data = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]
    args = RobustTrainingArguments(str(tmp_path / "run"), report_to="none", use_cpu=True)
    trainer = RobustTrainer(model, args, processing_class=processor, train_dataset=data)
    trainer.save_model()
    before = contents(tmp_path / "run")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(Exception, match=r"(?i)file too large|os error 27"):
            trainer.save_model()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert contents(tmp_path / "run") == before and not list((tmp_path / "run").glob("_saving*"))
    trainer.save_model()
    assert contents(tmp_path / "run") != before


# ---- as users do it, in processes of their own with fresh caches ----


def run(hub, *command, cwd, token=None):
    environment = {**hub.environment(token), "OMP_NUM_THREADS": "1", "USER": "planted-user", "LOGNAME": "planted-user"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=600, cwd=cwd, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def images(tmp_path_factory, digits):
    """A folder to work in, with digits in parquet files under ./digits."""
    folder = tmp_path_factory.mktemp("work")
    write_splits(folder / "digits", digits, train=range(150), test=range(150, 200))
    return folder


TRAIN = (
    *(REPOSITORY / "recipes" / "pretrain.py", "--model_name_or_path", "convnext_tiny", "--image_size", "8"),
    *("--model_args", TINY_ARGS, "--dataset_name", "digits", "--objective", "fast", "--eps", "0.1", "--use_cpu"),
    *("--num_train_epochs", "2", "--per_device_train_batch_size", "16", "--eval_attack_steps", "1", "--push_to_hub"),
)
LOAD = """
import json, sys, timm, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

name = sys.argv[1]
image = Image.new("RGB", (8, 8), (200, 30, 90))
pixels = AutoImageProcessor.from_pretrained(name)(image, return_tensors="pt")["pixel_values"]
with torch.no_grad():
    logits = AutoModelForImageClassification.from_pretrained(name).eval()(pixel_values=pixels).logits
    assert torch.allclose(timm.create_model(f"hf-hub:{name}", pretrained=True).eval()(pixels), logits, atol=1e-5)
best = pipeline("image-classification", model=name)(image)[0]
assert abs(best["score"] - logits.softmax(1).max().item()) < 1e-5
assert "hf_robust_transfer" not in sys.modules
print(json.dumps(logits[0].tolist()))
"""


def test_from_training_to_a_stranger_who_measures_it_again(tmp_path, images):
    with HubServer(tmp_path / "hub") as hub:
        run(hub, *TRAIN, "--hub_model_id", "user/digits", "--output_dir", tmp_path / "mine", cwd=images)
        card = ModelCard(hub.files("user/digits")["README.md"].decode())
        assert card.data.eval_results is None and "so none is claimed" in card.text
        options = ("--self_check_samples", "20", "--curve_samples", "20", "--attacks", "fgsm", "pgd-5", "--use_cpu")
        arguments = ("--folder", tmp_path / "mine", "--repo_id", "user/digits", *options)
        dry = run(hub, REPOSITORY / "recipes" / "publish.py", *arguments, "--dry_run", cwd=images)
        assert "Nothing was uploaded" in dry and "training_args.bin" not in dry
        commits = len(hub.commits("user/digits"))
        run(hub, REPOSITORY / "recipes" / "publish.py", *arguments, cwd=images)
        assert len(hub.commits("user/digits")) == commits + 1
        files = hub.files("user/digits")
        card = ModelCard(files["README.md"].decode())

        logits = json.loads(run(hub, "-c", LOAD, "user/digits", cwd=tmp_path, token=False).splitlines()[-1])
        assert len(logits) == 10
        # The command in the card, by somebody who has the data in the same place and no token.
        (command,) = re.findall(r"^accelerate launch -m hf_robust_transfer.cli.evaluate (.*)$", card.text, re.MULTILINE)
        flags = shlex.split(command)
        flags += ["--output_dir", tmp_path / "again", "--self_check_samples", "0", "--curve_samples", "0", "--use_cpu"]
        run(hub, "-m", "hf_robust_transfer.cli.evaluate", *flags, cwd=images, token=False)
        again = RobustnessReport.load(tmp_path / "again")
        claimed = {result.metric_name: result.metric_value for result in card.data.eval_results}
        assert claimed["Accuracy"] == again.clean.value
        assert claimed["Robust accuracy (worst case)"] == again.worst_case.value
        assert again.model["weights_sha256"] == json.loads(files["robustness.json"])["model"]["weights_sha256"]

        assert "--objective fast" in card.text and "training_args.bin" not in files
        for planted in (str(tmp_path), str(images), hub.write_token, str(Path.home()), "planted-user"):
            assert not any(planted.encode() in data for data in files.values())


STRATEGIES = """
import sys
from pathlib import Path
import torch
from peft import LoraConfig, get_peft_model
from hf_robust_transfer import RobustTrainer, RobustTrainingArguments, create_model

sizes = {"patch_size": 1, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}
data = [{"pixel_values": torch.rand(3, 8, 8), "labels": index % 2} for index in range(32)]
for name in ("end", "every_save", "checkpoint", "all_checkpoints", "lora"):
    model, processor = create_model("convnext_tiny", id2label={0: "cat", 1: "dog"}, model_args=sizes, image_size=8)
    if name == "lora":
        model = get_peft_model(model, LoraConfig(target_modules=["fc1"], modules_to_save=["head.fc"]))
    strategy = "all_checkpoints" if name == "lora" else name
    args = RobustTrainingArguments(
        str(Path(sys.argv[1], name)), push_to_hub=True, hub_strategy=strategy, hub_always_push=True, use_cpu=True,
        hub_model_id=f"user/{name}", per_device_train_batch_size=16, num_train_epochs=2, hub_token="hf_write",
        report_to="none", eval_strategy="epoch", eval_attack_steps=0, load_best_model_at_end=True,
        metric_for_best_model="accuracy",
    )
    trainer = RobustTrainer(model, args, processing_class=processor, train_dataset=data, eval_dataset=data)
    model.config.robust_training["data"] = {"dataset_name": sys.argv[1]}
    trainer.train()
    trainer.push_to_hub()
    assert not list(Path(args.output_dir).glob("_publishing*"))
"""


def test_every_strategy_publishes_what_it_says_and_no_pickled_arguments(tmp_path):
    with HubServer(tmp_path / "hub") as hub:
        run(hub, "-c", STRATEGIES, tmp_path / "runs", cwd=tmp_path)
        names = ("end", "every_save", "checkpoint", "all_checkpoints", "lora")
        listed = {name: set(hub.files(f"user/{name}")) for name in names}
        root = {".gitattributes", "README.md", "config.json", "model.safetensors"}
        assert listed["end"] == listed["every_save"] == root
        inside = {"optimizer.pt", "scheduler.pt", "trainer_state.json", "model.safetensors", "config.json"}
        assert {f"last-checkpoint/{name}" for name in inside} <= listed["checkpoint"]
        places = {name.split("/")[0] for name in listed["all_checkpoints"] if "/" in name}
        assert places == {"checkpoint-2", "checkpoint-4"}
        # The model with its adapter merged stands alone, and a checkpoint has the adapter to go on with.
        assert {name for name in listed["lora"] if "/" not in name} == root
        checkpoint = {name.split("/")[1] for name in listed["lora"] if name.startswith("checkpoint-4/")}
        assert {"adapter_config.json", "adapter_model.safetensors", "optimizer.pt"} <= checkpoint
        assert not checkpoint & {"config.json", "model.safetensors"}
        assert b"LORA of rank 8" in hub.files("user/lora")["README.md"]
        for name, files in listed.items():
            assert not any("training_args.bin" in file for file in files)
            for planted in (b"hf_write", str(tmp_path).encode()):
                assert not any(planted in data for data in hub.files(f"user/{name}").values())
        # The first commit is the repository's own; the last one is made only if the best model is not the last one saved.
        assert len(hub.commits("user/end")) == 2 and len(hub.commits("user/every_save")) in (3, 4)


@pytest.mark.slow
def test_of_two_processes_one_publishes(tmp_path, images):
    with HubServer(tmp_path / "hub") as hub:
        launch = (
            *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
            *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
        )
        run(hub, *launch, *TRAIN, "--hub_model_id", "user/two", "--output_dir", tmp_path / "two", cwd=images)
        assert len(hub.commits("user/two")) == len(hub.commits("user/two")) >= 2
        assert sum("/commit/" in path for _, path, _ in hub.requests) == len(hub.commits("user/two")) - 1
        assert "model.safetensors" in hub.files("user/two")
