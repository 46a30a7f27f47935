"""Publish a checkpoint folder: one commit with everything a reader needs, and nothing that is not for others."""

import json
import os
import shlex
import shutil
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from transformers.utils import logging

from ..errors import UsageError
from ..modeling import load_model
from ..modeling.fingerprint import fingerprint
from ..run_folder import (
    ARGUMENTS_NAME,
    CARD_NAME,
    CONFIG_NAME,
    PROCESSOR_NAME,
    RECORD_NAME,
    REPORT_NAME,
    REPORT_TEXT_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    is_of_a_model,
)
from .card import model_card, read_facts
from .sharing import check_for_secrets, shareable
from .timm_layout import stand_alone

logger = logging.get_logger(__name__)
_background = HfApi()  # its worker takes one job after another


class PublishingError(UsageError):
    """Publishing failed; the message says why, that the local files are as they were, and how to publish them later."""


def files_to_publish(folder: str | Path, repo_id: str, *, license: str | None = None) -> dict[str, Path | bytes]:
    """What `publish` uploads of a checkpoint folder: paths in the repository, and files or contents.

    Makes the checkpoint stand alone, and renders its model card. Of all that lies beside the weights only what belongs to
    this very model is published: its report and pictures, its training's record, the image processor that it loads with.

    Args:
        folder: holds a checkpoint, and what training and evaluation left beside it.
        repo_id: where it is to be published.
        license: of the weights, for the card.

    Raises:
        UsageError: the folder holds no checkpoint that can be loaded, or one that needs other files than are published; or
            a text in it holds a secret.
    """
    folder = Path(folder)
    if not (folder / CONFIG_NAME).is_file():
        raise UsageError(f"{folder} holds no checkpoint: it has no config.json")
    stand_alone(folder)
    facts = read_facts(folder)
    names = _weights(folder)
    # A timm model's image processor is in its configuration. This file would be another model's, and win on the Hub.
    names += [PROCESSOR_NAME] if facts.architecture is None else []
    names += [RECORD_NAME] if facts.training is not None else []
    names += [REPORT_NAME, *(picture for _, picture in facts.pictures)] if facts.report is not None else []
    chosen: dict[str, Path | bytes] = {name: folder / name for name in names if (folder / name).is_file()}
    chosen[CONFIG_NAME] = shareable(folder / CONFIG_NAME)
    _check_that_it_loads(chosen, facts.fingerprint, folder)
    if facts.report is not None:  # an interrupted evaluation may have left another report's
        chosen[REPORT_TEXT_NAME] = facts.report.markdown().encode()
    chosen[CARD_NAME] = str(model_card(facts, repo_id, license=license)).encode()
    for name, content in chosen.items():
        check_for_secrets(name, content)
    return chosen


def _weights(folder: Path) -> list[str]:
    """The files that a folder's weights are loaded from, and their index where they are in several."""
    index = folder / WEIGHTS_INDEX_NAME
    if (folder / WEIGHTS_NAME).is_file() or not index.is_file():
        return [WEIGHTS_NAME]
    return [index.name, *sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def _check_that_it_loads(files: dict[str, Path | bytes], expected: str, beside: Path) -> None:
    """Make sure that the files to be published are, without any other, the model that the folder gives.

    Raises:
        UsageError: they cannot be loaded, or their fingerprint is another.
    """
    with TemporaryDirectory(prefix="_publishing-", dir=beside) as place:
        for name, content in files.items():
            if isinstance(content, bytes):
                Path(place, name).write_bytes(content)
            else:
                _link(str(content), str(Path(place, name)))
        found = fingerprint(*load_model(place))
    if found != expected:
        raise UsageError(
            f"what would be published of {beside} is not the model that the folder gives: other files there change it, and"
            " are not for others; save the model and its image processor anew, into an empty folder"
        )


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
        UsageError: as for `files_to_publish`.
        PublishingError: the Hub refused, or could not be reached.
    """
    files = files_to_publish(folder, repo_id, license=license)
    if resumable_at is not None:
        everything = (file for file in sorted(Path(folder).rglob("*")) if file.is_file())
        files |= {
            f"{resumable_at}/{file.relative_to(folder).as_posix()}": shareable(file)
            for file in everything
            if file.name != ARGUMENTS_NAME
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
                *(CommitOperationDelete(name) for name in there if is_of_a_model(name) and name not in files),
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
        os.link(os.path.realpath(source), target)
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
