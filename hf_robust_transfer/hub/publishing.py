"""Publish a checkpoint folder: one commit with everything a reader needs, and nothing that is not for others."""

import json
import re
import shlex
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from ..evaluation.report import shown
from .card import model_card, read_facts
from .standalone import stand_alone

# What is published of a folder; training_args.bin, for one, pickles the Hub token.
_PUBLISHED = re.compile(
    r"config\.json|preprocessor_config\.json|model.*\.safetensors|model\.safetensors\.index\.json"
    r"|training\.json|robustness\.(json|md)|robustness_(curve|examples)\.png"
)
_REPORT = re.compile(r"robustness[._].*")
_OLD_WEIGHTS = re.compile(r"model.*\.safetensors|model\.safetensors\.index\.json|pytorch_model.*\.bin")
# Of a trainer's checkpoint in a folder of its own, to resume from: everything but the pickled arguments.
_NOT_TO_RESUME_FROM = "training_args.bin"


class PublishingError(ValueError):
    """Publishing failed; the message says why, that the local files are as they were, and how to publish them later."""


def files_to_publish(folder: str | Path, repo_id: str, *, license: str | None = None) -> dict[str, Path | bytes]:
    """What `publish` uploads of a checkpoint folder: paths in the repository, and files or contents.

    Makes the checkpoint stand alone, and renders its model card; a report counts if it is of these very weights.

    Args:
        folder: holds a checkpoint, and what training and evaluation left beside it.
        repo_id: where it is to be published.
        license: of the weights, for the card.

    Raises:
        ValueError: the folder holds no checkpoint that can be loaded.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no checkpoint: it has no config.json")
    stand_alone(folder)
    facts = read_facts(folder)
    chosen: dict[str, Path | bytes] = {
        file.name: file
        for file in sorted(folder.iterdir())
        if _PUBLISHED.fullmatch(file.name) and (facts.report is not None or not _REPORT.fullmatch(file.name))
    }
    config = json.loads((folder / "config.json").read_text())
    data = config.get("robust_training", {}).get("data", {})
    data |= {name: shown(value) for name, value in data.items() if isinstance(value, str)}
    chosen["config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    chosen["README.md"] = str(model_card(facts, repo_id, license=license)).encode()
    for name, content in chosen.items():
        _check_for_secrets(name, content)
    return chosen


def _check_for_secrets(name: str, content: Path | bytes) -> None:
    """Refuse a text that names a place of this machine or holds the Hub token."""
    if not name.endswith((".json", ".md")):
        return
    text = content.decode() if isinstance(content, bytes) else content.read_text()
    for what, secret in (("your home folder", f"{Path.home()}/"), ("your Hub token", get_token() or "")):
        if len(secret) > 1 and secret in text:
            raise ValueError(f"{name} would tell others {what}: take it out before publishing")


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str = "main",
    commit_message: str = "Publish model and model card",
    license: str | None = None,
    checkpoint: tuple[str, Path] | None = None,
) -> CommitInfo:
    """Upload a checkpoint folder to the Hub, in one commit on top of what is there now.

    A reader never sees a new model with an old card: either the whole commit is there, or nothing of it.

    Args:
        folder: holds a checkpoint, and what training and evaluation left beside it.
        repo_id: ``user/name``; it is made where it does not exist.
        token: to write with, by default the one of ``hf auth login``.
        private: whether a new repository is private.
        revision: the branch; another than main is made where it does not exist.
        commit_message: of the commit.
        license: of the weights, for the card.
        checkpoint: to resume training from, a folder in the repository and the trainer's checkpoint folder.

    Raises:
        ValueError: the folder holds no checkpoint that can be loaded.
        PublishingError: the Hub refused, or could not be reached.
    """
    files = files_to_publish(folder, repo_id, license=license)
    if checkpoint is not None:
        prefix, source = checkpoint
        extra = {file.relative_to(source).as_posix(): file for file in sorted(source.rglob("*")) if file.is_file()}
        files |= {f"{prefix}/{name}": file for name, file in extra.items() if Path(name).name != _NOT_TO_RESUME_FROM}
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision != "main":
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        now = api.model_info(repo_id, revision=revision)
        there = [sibling.rfilename for sibling in now.siblings or []]
        return api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, content) for name, content in files.items()),
                *(CommitOperationDelete(name) for name in there if _OLD_WEIGHTS.fullmatch(name) and name not in files),
            ],
            commit_message=commit_message,
            revision=revision,
            parent_commit=now.sha,
        )
    except Exception as error:  # the Hub client raises its HTTP library's errors, too
        later = shlex.join(["python", "recipes/publish.py", "--folder", str(folder), "--repo_id", repo_id])
        raise PublishingError(
            f"publishing to {repo_id} failed: {_reason(error)} Nothing of it is on the Hub, and {folder} is as it was."
            f" Publish it later, without training again: {later}"
        ) from error


def _reason(error: Exception) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    reasons = {
        401: "the Hub does not accept the token (401): log in with `hf auth login`, or pass --token.",
        403: "the token may not write there (403): use one with write access, or another --repo_id.",
        409: "somebody else committed at the same time (409).",
        412: "somebody else committed at the same time (412).",
    }
    return reasons.get(status or 0, f"{str(error).strip().partition(chr(10))[0].rstrip('.')}.")
