"""Publish a checkpoint folder: one commit with everything a reader needs, and nothing that is not for others."""

import json
import os
import re
import shlex
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from transformers.utils import logging

from ..errors import UsageError
from ..evaluation.report import shown
from .card import model_card, read_facts
from .timm_layout import stand_alone

# What is published of a folder; training_args.bin, for one, pickles the Hub token.
_PUBLISHED = re.compile(
    r"config\.json|preprocessor_config\.json|model.*\.safetensors|model\.safetensors\.index\.json"
    r"|training\.json|robustness\.(json|md)|robustness_(curve|examples)\.png"
)
_REPORT = re.compile(r"robustness[._].*")
_OLD_WEIGHTS = re.compile(r"model.*\.safetensors|model\.safetensors\.index\.json|pytorch_model.*\.bin")
# The one file of a trainer's checkpoint that holds the token, and that resuming does not need.
_PICKLED_ARGUMENTS = "training_args.bin"

logger = logging.get_logger(__name__)
_background = HfApi()  # its worker takes one job after another


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
        raise UsageError(f"{folder} holds no checkpoint: it has no config.json")
    stand_alone(folder)
    facts = read_facts(folder)
    chosen: dict[str, Path | bytes] = {
        file.name: file
        for file in sorted(folder.iterdir())
        if _PUBLISHED.fullmatch(file.name) and (facts.report is not None or not _REPORT.fullmatch(file.name))
    }
    chosen["config.json"] = _shareable(folder / "config.json")
    chosen["README.md"] = str(model_card(facts, repo_id, license=license)).encode()
    for name, content in chosen.items():
        _check_for_secrets(name, content)
    return chosen


def _shareable(file: Path) -> Path | bytes:
    """A configuration or trainer's state without the places of this machine that it names; any other file as it is."""
    if file.name not in ("config.json", "trainer_state.json"):
        return file
    content = json.loads(file.read_text())
    places = content.get("robust_training", {}).get("data", {}) if file.name == "config.json" else content
    for name in places.keys() & {"dataset_name", "train_dir", "validation_dir", "test_dir", "best_model_checkpoint"}:
        places[name] = places[name] and shown(places[name])
    return (json.dumps(content, indent=2) + "\n").encode()


def _check_for_secrets(name: str, content: Path | bytes) -> None:
    """Refuse a text that names a place of this machine or holds the Hub token."""
    if not name.endswith((".json", ".md")):
        return
    text = content.decode() if isinstance(content, bytes) else content.read_text()
    for what, secret in (("your home folder", f"{Path.home()}/"), ("your Hub token", get_token() or "")):
        if len(secret) > 1 and secret in text:
            raise UsageError(f"{name} would tell others {what}: take it out before publishing")


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str = "main",
    commit_message: str = "Publish model and model card",
    license: str | None = None,
    resumable_at: str | None = None,
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
        resumable_at: a folder in the repository, to put all there is for resuming a training into.

    Raises:
        ValueError: the folder holds no checkpoint that can be loaded.
        PublishingError: the Hub refused, or could not be reached.
    """
    files = files_to_publish(folder, repo_id, license=license)
    if resumable_at is not None:
        everything = (file for file in sorted(Path(folder).rglob("*")) if file.is_file())
        files |= {
            f"{resumable_at}/{file.relative_to(folder).as_posix()}": _shareable(file)
            for file in everything
            if file.name != _PICKLED_ARGUMENTS
        }
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
        later = shlex.join(["hf-robust-transfer", "publish", "--folder", str(folder), "--repo_id", repo_id])
        raise PublishingError(
            f"publishing to {repo_id} failed: {_reason(error)} No part of it is on the Hub without the rest, and"
            f" {folder} is as it was. Publish it later, without training again: {later}"
        ) from error


def publish_in_background(folder: str | Path, staged: Path, **options: Any) -> "Future[CommitInfo]":
    """`publish` a folder while the caller goes on; a failure is a warning.

    Args:
        folder: may change or vanish meanwhile.
        staged: a folder to make and remove, on the same file system, which keeps the files until they are uploaded.
        options: all other arguments of `publish`.
    """
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(folder, staged, copy_function=_link)

    def work() -> CommitInfo:
        try:
            return publish(staged, **options)
        except Exception as error:
            logger.warning(f"a checkpoint could not be published, training goes on: {error.__cause__ or error}")
            raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    return _background.run_as_future(work)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _reason(error: Exception) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    reasons = {
        401: "the Hub does not accept the token (401): log in with `hf auth login`, or pass --token.",
        403: "the token may not write there (403): use one with write access, or another --repo_id.",
        409: "somebody else committed at the same time (409).",
        412: "somebody else committed at the same time (412).",
    }
    return reasons.get(status or 0, f"{str(error).strip().partition(chr(10))[0].rstrip('.')}.")
