"""What others may see: tokens, places of a machine and its user's name are found and left out; other words stay."""

import json

import pytest
from PIL import Image, PngImagePlugin

from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.sharing import check_for_secrets, shareable, shown, tokenless

TOKEN = "hf_" + "aB3xYz" * 6


@pytest.fixture(autouse=True)
def someone(monkeypatch, tmp_path):
    """A user named Rose with a home of her own, who works in it."""
    home = tmp_path / "home" / "rose"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", "rose")
    monkeypatch.setenv("LOGNAME", "rose")
    monkeypatch.chdir(home)
    return home


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("you/mine", "you/mine"),
        ("rose/pets", "rose/pets"),  # her account on the Hub
        ("cifar10", "cifar10"),
        ("8/255", "8/255"),
        ("hf_net", "hf_net"),
        ("hf_robust_transfer.cli.finetune", "hf_robust_transfer.cli.finetune"),
        ("/r/cats", "/r/cats"),
        ("cats / dogs", "cats / dogs"),
        ("crack ~5/6 mm", "crack ~5/6 mm"),
        ("https://huggingface.co/rose-garden/pets", "https://huggingface.co/<user>-garden/pets"),
        ("/data/pets", "pets"),
        ("/unknown/to/this/machine", "machine"),
        ("~/pets", "pets"),
        ("../elsewhere/pets", "pets"),
        ("file:///data/pets", "pets"),
        ("C:\\Users\\rose\\pets", "pets"),
        ("D:/photos/pets", "pets"),
        ("\\\\server\\share\\pets", "pets"),
        ("/data/rose-pets", "<user>-pets"),
        ("/data/my/losses.py:margin", "losses.py:margin"),
        ("my/losses.py:margin:steps=3", "losses.py:margin:steps=3"),
        ('{"path": "/data/pets", "n": 2}', '{"path": "pets", "n": 2}'),
        ("transfer:from=/data/a,to=/data/b", "transfer:from=a,to=b"),
        (TOKEN, "<token>"),
        (f"run-{TOKEN}-2", "run-<token>-2"),
        (f"https://rose:{TOKEN}@huggingface.co/you/pets", "https://<token>@huggingface.co/you/pets"),
        (f"https://{TOKEN}@huggingface.co/you/pets", "https://<token>@huggingface.co/you/pets"),
        ("https://rose:secret@host/pets", "https://<token>@host/pets"),
    ],
)
def test_what_is_shown_of_a_text(text, expected):
    assert shown(text) == expected


def test_a_folder_is_shown_by_its_name_and_the_home_not_by_its_user_s(someone):
    (someone / "my" / "pets").mkdir(parents=True)
    assert (shown("my/pets"), shown(str(someone / "my" / "pets")), shown(str(someone))) == ("pets", "pets", "<user>")


def test_a_class_with_the_user_s_name_stays_a_class():
    options = {"classes": ["rose", "tulip"], "run_name": "rose", TOKEN: [TOKEN, 1, None, 0.5]}
    expected = {"classes": ["rose", "tulip"], "run_name": "<user>", "<token>": ["<token>", 1, None, 0.5]}
    assert shareable(options) == expected
    assert tokenless({"dataset_name": f"/data/{TOKEN}", "seed": 1}) == {"dataset_name": "/data/<token>", "seed": 1}


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "DB_PASSWORD", "aws_secret_access_key"]
)
def test_whatever_is_secret_in_the_environment_is_left_out_whatever_it_looks_like(monkeypatch, name):
    monkeypatch.setenv(name, "not-like-a-token")
    assert shown("a not-like-a-token b") == "a <token> b"


@pytest.mark.parametrize("how", ["HF_TOKEN_PATH", "token", "stored_tokens"])
def test_tokens_in_the_hub_s_files_are_known(monkeypatch, tmp_path, how):
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    if how == "stored_tokens":
        (tmp_path / "stored_tokens").write_text("[work]\nhf_token = planted-token\n")
    else:
        (tmp_path / "token").write_text("planted-token\n")
    if how == "HF_TOKEN_PATH":
        (tmp_path / "token").rename(tmp_path / "elsewhere")
        monkeypatch.setenv(how, str(tmp_path / "elsewhere"))
    with pytest.raises(UsageError, match="notes would tell others your Hub token"):
        check_for_secrets("notes", "x: planted-token")


def test_short_values_that_are_no_tokens_do_not_hinder_anybody(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "test")
    monkeypatch.setenv("SOME_SECRET", "true")
    check_for_secrets("notes.md", "a true test of hf_net and hf_resnet50")


@pytest.mark.parametrize(
    "text",
    [
        "/home/somebody/pets",
        "see /Users/somebody/pets.",
        "--train_dir=/mnt/pets",
        "~/pets",
        "file:///pets/cats",
        r"C:\Users\somebody",
        "https://me:password@host/",
        TOKEN,
        TOKEN.replace("_", r"\_"),  # as Markdown has it
    ],
)
def test_what_may_not_leave_is_refused_in_texts_json_and_binary_files(tmp_path, text):
    escapes = "".join(f"\\u{ord(each):04x}" for each in text)
    for name, content in {
        "a.md": text,
        "b.json": json.dumps({"x": [{"y": text}]}),
        "c.json": f'{{"{escapes}": 1}}',
    }.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(UsageError, match=rf"^{name} would tell others .*: take it out before publishing$"):
            check_for_secrets(name, tmp_path / name)
    with pytest.raises(UsageError):  # of a name that is there twice, a reader of JSON sees one
        check_for_secrets("d.json", json.dumps({"x": text})[:-1].encode() + b', "x": 1}')


@pytest.mark.parametrize("planted", [TOKEN, "/home/somebody/pets"])
def test_binary_files_and_their_metadata_are_looked_through(tmp_path, planted):
    import torch
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, tmp_path / "a.safetensors", {"source": planted})
    torch.save({"source": planted, "w": torch.zeros(2)}, tmp_path / "b.pt")
    info = PngImagePlugin.PngInfo()
    info.add_itxt("Comment", planted, zip=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "c.png", pnginfo=info)
    (tmp_path / "d.bin").write_bytes(b"\xff\x00" + planted.encode() + b"\xff")
    for file in sorted(tmp_path.glob("?.*")):
        for content in (file, file.read_bytes()):
            with pytest.raises(UsageError, match=rf"^{file.name} would tell others"):
                check_for_secrets(file.name, content)
    (tmp_path / "empty.bin").touch()
    check_for_secrets("empty.bin", tmp_path / "empty.bin")


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "archive.bin"])
@pytest.mark.parametrize("size", [0, 1, 50, 4000])
def test_what_a_file_of_pytorch_is_made_of_is_no_place(tmp_path, name, size):
    import torch

    torch.save({f"weight{number}": torch.rand(size) for number in range(30)}, tmp_path / name)
    for content in (tmp_path / name, (tmp_path / name).read_bytes()):
        check_for_secrets(name, content)


def test_what_others_may_see_keeps_the_form_of_what_it_is_made_from():
    logs = {"log_history": [{"loss": 0.5, "step": 1}, [1, None, True, "cat"]], "best": None}
    assert shareable(logs) == logs
