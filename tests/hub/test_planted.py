"""Tokens, places and names of users, planted wherever they may come from: none is in anything that leaves."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.evaluation import RobustnessReport
from hf_robust_transfer.hub import files_to_publish, publish
from hf_robust_transfer.hub.publishing import files_to_resume

LIKE_A_TOKEN = "hf_" + "pLaNtEd" * 5
OF_ENVIRONMENT, OF_FILE, OF_FLAG = "planted-environment", "planted-in-a-file", "planted-as-a-flag"
PLACE = "/cluster/planted/pets"
PLANTED = (LIKE_A_TOKEN, OF_ENVIRONMENT, OF_FILE, OF_FLAG, "/cluster/planted", "planted-user")


def in_json(file, *path):
    """Plant a text at a place in a JSON file."""

    def plant(folder, text):
        content = json.loads((folder / file).read_text())
        inner = content
        for name in path[:-1]:
            inner = inner.setdefault(name, {}) if isinstance(inner, dict) else inner[name]
        inner[path[-1]] = text
        (folder / file).write_text(json.dumps(content))

    return plant


def in_metadata(folder, text):
    file = folder / "model.safetensors"
    save_file(load_file(file), file, {"format": "pt", "source": text})


def in_picture(folder, text):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("Comment", text, zip=True)
    Image.new("RGB", (4, 4)).save(folder / "robustness_examples.png", pnginfo=info)
    RobustnessReport.load(folder).with_pictures(folder, "robustness_examples.png").save(folder)


def beside(name):
    return lambda folder, text: (folder / name).write_text(text)


def nowhere(folder, text):
    pass


# what, where, and whether publishing is refused (else it is left out)
PLANTS = [
    (LIKE_A_TOKEN, in_json("config.json", "note"), True),
    (LIKE_A_TOKEN, in_json("config.json", "robust_training", "data", "dataset_name"), True),
    (f"https://you:{LIKE_A_TOKEN}@huggingface.co/you/pets", in_json("training.json", "data", "dataset_name"), True),
    ("https://you:pass-word@host/pets", in_json("training.json", "command"), True),
    (f"finetune --run_name {LIKE_A_TOKEN}", in_json("training.json", "command"), True),
    (OF_ENVIRONMENT, in_json("training.json", "command"), True),
    (OF_FILE, in_json("training.json", "options", "optim_args"), True),
    (OF_FLAG, in_json("training.json", "hardware"), True),
    (LIKE_A_TOKEN, in_json("training.json", "versions", "torch"), True),
    (LIKE_A_TOKEN, in_json("robustness.json", "hardware"), True),
    (OF_ENVIRONMENT, in_json("robustness.json", "data", "name"), True),
    (LIKE_A_TOKEN, in_json("robustness.json", "attacks", 0, "kind"), True),
    (LIKE_A_TOKEN, in_metadata, True),
    (OF_FILE, in_metadata, True),
    (PLACE, in_metadata, True),
    (LIKE_A_TOKEN, in_picture, True),
    (PLACE, in_picture, True),
    (PLACE, in_json("config.json", "note"), True),
    ("C:\\Users\\planted-user\\pets", in_json("config.json", "note"), True),
    ("~/pets", in_json("config.json", "note"), True),
    (PLACE, in_json("config.json", "robust_training", "data", "dataset_name"), False),
    (PLACE, in_json("config.json", "_name_or_path"), False),
    (PLACE, in_json("training.json", "data", "dataset_name"), False),
    (PLACE, in_json("training.json", "base_model"), False),
    (f"finetune --objective {PLACE}/mine.py:loss --output_dir file://{PLACE}", in_json("training.json", "command"), False),
    ("finetune --output_dir ../planted-user-2", in_json("training.json", "command"), False),
    ({"path": f"{PLACE}/planted-user"}, in_json("training.json", "options", "objective_options"), False),
    (PLACE, in_json("robustness.json", "model", "name"), False),
    (PLACE, in_json("robustness.json", "data", "options", "train_dir"), False),
    (LIKE_A_TOKEN, beside(".env"), False),
    (LIKE_A_TOKEN, beside("robustness.md"), False),
    (LIKE_A_TOKEN, beside("README.md"), False),
    (LIKE_A_TOKEN, beside("training_args.bin"), False),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Where the folder to plant in is kept, made once."""
    return tmp_path_factory.mktemp("whole") / "mine"


@pytest.fixture
def folder(request, whole, tmp_path, monkeypatch):
    if not whole.exists():
        shutil.copytree(request.getfixturevalue("published"), whole)
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", OF_ENVIRONMENT)
    monkeypatch.setenv("USER", "planted-user")
    (tmp_path / "token").write_text(f"{OF_FILE}\n")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    return Path(shutil.copytree(whole, tmp_path / "planted"))


@pytest.mark.parametrize(("text", "plant", "refused"), PLANTS)
def test_nothing_planted_leaves(folder, text, plant, refused):
    plant(folder, text)
    if refused:
        with pytest.raises(UsageError, match=r"^[\w.]+ would tell others [^\n]*: take it out before publishing$"):
            files_to_publish(folder, "me/mine", token=OF_FLAG)
        return
    files = files_to_publish(folder, "me/mine", token=OF_FLAG)
    assert {"README.md", "training.json", "robustness.json"} <= set(files)
    for content in files.values():
        data = content if isinstance(content, bytes) else content.read_bytes()
        assert not any(planted.encode() in data for planted in PLANTED)


@pytest.mark.parametrize("option", ["commit_message", "revision"])
def test_a_token_in_an_option_of_publishing_is_refused_before_anything_is_sent(folder, option):
    with pytest.raises(UsageError, match=f"^--{option} would tell others"):
        publish(folder, "me/mine", token=OF_FLAG, **{option: f"v-{OF_FLAG}"})


def test_of_a_checkpoint_only_what_resuming_needs_leaves_and_without_anything_planted(folder):
    (folder / "optimizer.pt").write_bytes(b"state")
    (folder / "trainer_state.json").write_text(
        json.dumps({"global_step": 1, "best_model_checkpoint": f"{PLACE}/checkpoint-1"})
    )
    (folder / "run.json").write_text(json.dumps({"model_name_or_path": PLACE}))
    for name in (".env", "notes.txt", "training_args.bin", "events.out.tfevents"):
        (folder / name).write_text(LIKE_A_TOKEN)
    files = files_to_resume(folder)
    assert set(files) == {"config.json", "model.safetensors", "optimizer.pt", "trainer_state.json", "run.json"}
    for content in files.values():
        data = content if isinstance(content, bytes) else content.read_bytes()
        assert not any(planted.encode() in data for planted in PLANTED)
    for name, text in {
        "optimizer.pt": f"\0{LIKE_A_TOKEN}",
        "trainer_state.json": json.dumps({"trial_name": OF_FILE}),
    }.items():
        before = (folder / name).read_bytes()
        (folder / name).write_text(text)
        with pytest.raises(UsageError, match=f"^{name} would tell others"):
            files_to_resume(folder)
        (folder / name).write_bytes(before)


def test_the_metric_pages_hold_nothing_of_a_machine():
    from hf_robust_transfer.evaluation import metrics
    from hf_robust_transfer.sharing import check_for_secrets

    for file in Path(metrics.__file__).parent.rglob("*"):
        if file.is_file() and file.suffix != ".pyc":
            check_for_secrets(file.name, file)
