"""Publish a checkpoint folder: one commit with everything a reader needs, and nothing that is not for others."""

import hashlib
import json
import os
import shlex
import shutil
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from transformers.utils import logging

from ..errors import UsageError
from ..evaluation.plots import plot_curve
from ..modeling import load_model
from ..modeling.fingerprint import fingerprint_parts
from ..run_folder import (
    CARD_NAME,
    CONFIG_NAME,
    CURVE_NAME,
    PROCESSOR_NAME,
    RECORD_NAME,
    REPORT_NAME,
    REPORT_TEXT_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    check_checkpoint,
    is_export,
    is_for_resuming,
    is_of_a_model,
)
from ..sharing import check_for_secrets, shareable
from .access import PublishingError, checked_repo_id, reason
from .card import CheckpointFacts, difference, model_card, read_facts
from .timm_layout import stand_alone

logger = logging.get_logger(__name__)
_background = HfApi()  # its worker takes one job after another


def files_to_publish(
    folder: str | Path, repo_id: str, *, license: str | None = None, token: str | None = None
) -> dict[str, Path | bytes]:
    """What `publish` uploads of a checkpoint folder: paths in the repository, and files or contents.

    Makes the checkpoint stand alone, and renders its model card. Of all that lies beside the weights only what belongs to
    this very model is published: its report and pictures, its training's record, the image processor that it loads with,
    what it was exported to. What can be made from the report is made from it.

    Args:
        folder: holds a checkpoint, and what training and evaluation left beside it.
        repo_id: where it is to be published.
        license: of the weights, for the card.
        token: that must not be in anything of it, besides those that this process knows of.

    Raises:
        UsageError: the folder holds no checkpoint that can be loaded, or one that needs other files than are published; its
            report does not agree with itself; or something in it holds a secret.
    """
    folder, repo_id = Path(folder), checked_repo_id(repo_id)
    check_checkpoint(folder)
    for name in (CONFIG_NAME, RECORD_NAME, REPORT_NAME):  # places are left out of them; a token is nothing to pass over
        if (folder / name).is_file():
            check_for_secrets(name, folder / name, [token], places=False)
    stand_alone(folder)
    facts = read_facts(folder)
    facts = replace(facts, training=shareable(facts.training))
    names = _weights(folder)
    # A timm model's image processor is in its configuration. This file would be another model's, and win on the Hub.
    names += [PROCESSOR_NAME] if facts.architecture is None else []
    chosen: dict[str, Path | bytes] = {name: folder / name for name in names if (folder / name).is_file()}
    chosen[CONFIG_NAME] = _json(_for_others(CONFIG_NAME, json.loads((folder / CONFIG_NAME).read_text()), repo_id))
    _check_that_it_loads(chosen, facts, folder)
    chosen |= {name: folder / name for name in facts.exports}
    if facts.training is not None:
        chosen[RECORD_NAME] = _json(facts.training)
    if facts.report is not None:
        pictures = _pictures(facts, folder)
        hashes = {name: hashlib.sha256(picture).hexdigest() for name, picture in pictures.items()}
        report = replace(facts.report.for_others(), pictures=hashes)
        chosen |= {REPORT_NAME: report.to_json().encode(), REPORT_TEXT_NAME: report.markdown().encode(), **pictures}
        there = [(title, name) for title, name in facts.pictures if name in pictures]
        facts = replace(facts, report=report, pictures=there)
    chosen[CARD_NAME] = str(model_card(facts, repo_id, license=license)).encode()
    for name, content in chosen.items():
        check_for_secrets(name, content, [token])
    return chosen


def files_to_resume(folder: str | Path, *, token: str | None = None) -> dict[str, Path | bytes]:
    """What others need of a trainer's checkpoint to go on from it: paths in the folder, and files or contents.

    Args:
        folder: the checkpoint.
        token: as for `files_to_publish`.

    Raises:
        UsageError: something in it holds a secret.
    """
    chosen: dict[str, Path | bytes] = {}
    for file in sorted(Path(folder).rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and is_for_resuming(name):
            is_json = file.suffix == ".json"
            check_for_secrets(name, file, [token], places=not is_json)
            chosen[name] = _json(_for_others(name, json.loads(file.read_text()))) if is_json else file
            if is_json:
                check_for_secrets(name, chosen[name], [token])
    return chosen


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _for_others(name: str, content: Any, repo_id: str | None = None) -> Any:
    """A JSON file's content without the places of this machine; of a configuration, where it can be without them."""
    if name != CONFIG_NAME:
        return shareable(content)
    training = content.get("robust_training")
    if training is not None:
        named = {} if repo_id is None else {"hub_id": repo_id}
        content = content | {"robust_training": shareable(training) | named}
    return {key: shareable(value) if key == "_name_or_path" else value for key, value in content.items()}


def _pictures(facts: CheckpointFacts, folder: Path) -> dict[str, bytes]:
    """A report's pictures by their names; the curve is drawn anew, and left out with a warning where that fails."""
    pictures: dict[str, bytes] = {}
    for _, name in facts.pictures:
        if name != CURVE_NAME:
            pictures[name] = (folder / name).read_bytes()
            continue
        try:
            with TemporaryDirectory(prefix="_publishing-", dir=folder) as place:
                plot_curve(facts.report, Path(place, name))  # type: ignore[arg-type]
                pictures[name] = Path(place, name).read_bytes()
        except Exception as error:  # of matplotlib, of a font
            logger.warning(f"{name} could not be drawn, and is not published: {type(error).__name__}: {error}")
    return pictures


def _weights(folder: Path) -> list[str]:
    """The files that a folder's weights are loaded from, and their index where they are in several."""
    index = folder / WEIGHTS_INDEX_NAME
    if (folder / WEIGHTS_NAME).is_file() or not index.is_file():
        return [WEIGHTS_NAME]
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    for name in names:
        if not is_of_a_model(name) or Path(name).name != name:
            raise UsageError(f"{index} names {name!r}, which is no file of weights: save the model anew")
    return [index.name, *names]


def _check_that_it_loads(files: dict[str, Path | bytes], facts: CheckpointFacts, beside: Path) -> None:
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
        found = fingerprint_parts(*load_model(place))
    if found != facts.fingerprint_parts:
        raise UsageError(
            f"what would be published of {beside} is not the model that the folder gives, but one with"
            f" {difference(found, facts.fingerprint_parts)}: other files there change it, and are"
            " not for others; save the model and its image processor anew, into an empty folder"
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
    checkpoint: str | Path | None = None,
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
        checkpoint: the folder that this is in, by default ``folder``.

    Raises:
        UsageError: as for `files_to_publish`.
        PublishingError: the Hub refused, or could not be reached.
    """
    for what, text in (("commit_message", commit_message), ("revision", revision)):
        check_for_secrets(f"--{what}", text, [token])
    files = files_to_publish(folder, repo_id, license=license, token=token)
    if resumable_at is not None:
        files |= {
            f"{resumable_at}/{name}": content
            for name, content in files_to_resume(checkpoint or folder, token=token).items()
        }
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision != "main":
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        now = api.model_info(repo_id, revision=revision)
        there = [sibling.rfilename for sibling in now.siblings or []]
        stale = [name for name in there if name not in files and (is_of_a_model(name) or is_export(name))]
        return api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, content) for name, content in files.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=commit_message,
            revision=revision,
            parent_commit=now.sha,
        )
    except Exception as error:  # the Hub client raises its HTTP library's errors, too
        later = shlex.join(["hf-robust-transfer", "publish", "--folder", str(folder), "--repo_id", repo_id])
        raise PublishingError(
            f"publishing to {repo_id} failed: {reason(error)} No part of it is on the Hub without the rest, and"
            f" {folder} is as it was. Publish it later, without training again: {later}"
        ) from error


def publish_in_background(
    folder: str | Path, staged: Path, *, checkpoint: str | Path, **options: Any
) -> "Future[CommitInfo]":
    """`publish` a folder while the caller goes on; a failure is a warning.

    Args:
        folder: may change or vanish meanwhile.
        checkpoint: likewise; as for `publish`.
        staged: a folder to make and remove, on the same file system, which keeps the files until they are uploaded.
        options: all other arguments of `publish`.
    """
    shutil.rmtree(staged, ignore_errors=True)
    kept = {Path(folder): staged / "model"}
    kept.setdefault(Path(checkpoint), staged / "checkpoint")
    for place, copied in kept.items():
        shutil.copytree(place, copied, copy_function=_link)

    def work() -> CommitInfo:
        try:
            return publish(kept[Path(folder)], checkpoint=kept[Path(checkpoint)], **options)
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
