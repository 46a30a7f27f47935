"""Publishing from the command line: what can be refused is refused before anything is evaluated or written."""

import pytest
from hub_server import HubServer
from huggingface_hub import HfApi

from hf_robust_transfer.cli.main import run_command


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer(tmp_path / "hub") as hub:
        hub.attach(monkeypatch)
        monkeypatch.setenv("HF_TOKEN", hub.write_token)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        yield hub


@pytest.fixture
def folder(tiny, tmp_path):
    """A checkpoint without a report, whose data are nowhere."""
    model, _ = tiny("timm-convnext")
    model.config.robust_training = {"norm": "linf", "eps": "8/255", "data": {"dataset_name": str(tmp_path / "nowhere")}}
    model.save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


NO_WRITING = "the token may not write there (403): use one with write access, or another --repo_id."
REFUSED = [
    ("a/b/c", "write", "--repo_id Repo id must be in the form 'repo_name' or 'namespace/repo_name'"),
    ("user/-mine", "write", "--repo_id Repo id must use alphanumeric chars"),
    ("user/a b", "write", "--repo_id Repo id must use alphanumeric chars"),
    ("user/mine", "wrong", "the Hub does not accept the token (401): log in with `hf auth login`, or pass --token."),
    ("user/mine", "read", NO_WRITING),
    ("user/there", "read", NO_WRITING),
    ("user/there", "other", NO_WRITING),
    ("there", "read", NO_WRITING),
    ("user/mine", "other", "the token is of other, who may not write to user: choose --repo_id other/…"),
]


def test_name_token_and_access_are_checked_before_the_evaluation(hub, folder, error_of):
    HfApi(endpoint=hub.url, token=hub.write_token).create_repo("user/there")
    asked = len(hub.requests)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    for repo_id, token, message in REFUSED:
        for more in ([], ["--dry_run"]):
            given = ["--repo_id", repo_id, "--token", getattr(hub, f"{token}_token", "hf_wrong"), *more]
            assert message in error_of("publish.py", "--folder", folder, *given)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert not any(method in ("POST", "PUT") for method, *_ in hub.requests[asked:])
    for repo_id in ("user/there", "user/new", "new"):  # where it may write, it is the evaluation that fails
        error = error_of("publish.py", "--folder", folder, "--repo_id", repo_id, "--dry_run")
        assert "cannot be loaded" in error and "nowhere" in error


def test_without_a_connection_only_a_dry_run_goes_on(folder, error_of, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_some-token")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    arguments = ["--folder", str(folder), "--repo_id", "user/mine", "--without_evaluation"]
    assert "publishing to user/mine is not possible now: " in error_of("publish.py", *arguments)
    run_command("publish", [*arguments, "--dry_run"])
    output = capsys.readouterr().out
    assert "The Hub was not asked whether you may write there" in output and "Nothing was uploaded to user/mine." in output


def test_a_token_in_a_message_or_a_branch_is_refused(hub, folder, error_of):
    arguments = ["--folder", folder, "--repo_id", "user/mine", "--without_evaluation"]
    for what in ("commit_message", "revision"):
        assert f"--{what} would tell others" in error_of("publish.py", *arguments, f"--{what}", f"v-{hub.write_token}")
