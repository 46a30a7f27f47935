"""Robust sources by name, fetched and imported once into a checkpoint folder in the cache."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import timm
import torch
from filelock import FileLock
from huggingface_hub import ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.constants import HF_HOME
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from transformers import BaseImageProcessor, PreTrainedModel
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor
from transformers.utils import logging

from ..errors import UsageError
from ..provenance import Origin, TrainedFor
from ..run_folder import CARD_NAME, CONFIG_NAME, read_json
from ..sharing import without_tokens
from .classifier import PixelClassifier, full_precision
from .importing import import_checkpoint, read_checkpoint
from .input_size import input_shape
from .source_list import Source
from .towers import of_open_clip, of_transformers

logger = logging.get_logger(__name__)
_FORMAT = 1  # of what is kept; another one has older folders made anew


class _Downloaded(NamedTuple):
    """The files of a source, what they say of themselves, and the commit that they are of."""

    files: list[Path]
    config: dict[str, Any]
    license: str | None
    revision: str | None


def source_folder(source: Source, *, revision: str = "main", cache_dir: str | Path | None = None) -> Path:
    """Where a source is kept once it is imported; it need not be there. One of this package's own is always there.

    Args:
        source: one of `SOURCES`, or like them.
        revision: branch, tag or commit of its repository.
        cache_dir: in place of the Hub's own cache.
    """
    if source.layout == "embedded":
        return Path(__file__).parent / "embedded" / source.name
    defined = json.dumps([_FORMAT, revision, asdict(source)], sort_keys=True)
    place = Path(HF_HOME, "robust_transfer") if cache_dir is None else Path(cache_dir)
    return place / "sources" / f"{source.name}-{hashlib.sha256(defined.encode()).hexdigest()[:8]}"


def fetch_source(
    source: Source,
    *,
    file: str | Path | None = None,
    revision: str = "main",
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """The checkpoint folder of a source, downloaded and imported where it is not there yet.

    Several processes may ask at once; whatever stops one, no half of a folder is left. What was imported has been seen to
    fit its architecture, to have the labels that it should have, and to give finite logits.

    Args:
        source: one of `SOURCES`, or like them.
        file: its file, in place of a download.
        revision: branch, tag or commit of its repository.
        cache_dir: in place of the Hub's own cache.
        token: as for `huggingface_hub`.
        local_files_only: ask no Hub.

    Returns:
        The folder, for `load_model`. Its configuration says where the weights are from.

    Raises:
        UsageError: it cannot be downloaded (the message says how to do without), its file is not what it should be, or the
            folder cannot be written.

    Example:
        >>> fetch_source(SOURCES["salman2020-resnet18-linf-eps4"])  # doctest: +SKIP
    """
    folder = source_folder(source, revision=revision, cache_dir=cache_dir)
    if (folder / CONFIG_NAME).is_file():
        if file is not None and source.layout == "embedded":
            raise UsageError(f"source {source.name} is part of this package: leave --file out")
        if file is not None:
            raise UsageError(f"source {source.name} is imported already: to import it anew, delete {folder}")
        return folder
    if source.repo_id is None and file is None:
        raise UsageError(
            f"source {source.name} is on no Hub: download its file from {source.url}, and import it once with"
            f" `hf-robust-transfer sources {source.name} --file FILE`; then this name works"
        )
    with _refused_in_one_line(source, folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f"{folder.name}.lock"))
        lock.acquire()
    try:
        if not (folder / CONFIG_NAME).is_file():  # another process was not faster
            options = {"cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
            found = _download(source, revision, options) if file is None else _given(source, Path(file))
            _import(source, found, folder)
    finally:
        lock.release()
    return folder


def _given(source: Source, file: Path) -> _Downloaded:
    config = read_json(file.with_name(CONFIG_NAME)) if source.layout == "transformers" else {}
    if config is None:
        raise UsageError(f"{file} needs the {CONFIG_NAME} of its repository beside it, which says what weights do not show")
    return _Downloaded([file], config, None, None)


def _download(source: Source, revision: str, options: dict[str, Any]) -> _Downloaded:
    options = {"repo_id": source.repo_id, "revision": revision, **options}
    try:
        config: dict[str, Any] = {}
        if source.layout == "transformers":
            files = _all(source.files, options)
            config = read_json(files[0].with_name(CONFIG_NAME)) or {}
        else:
            files = [_first(source.files, options)]
    except HFValidationError as error:
        raise UsageError(f"source {source.name}: {error}") from None
    except Exception as error:  # the Hub client raises its HTTP library's errors, too
        raise UsageError(_unreachable(source, error)) from error
    commit = re.search(r"/snapshots/([0-9a-f]+)/", files[0].absolute().as_posix())
    return _Downloaded(files, config, _license(options), None if commit is None else commit[1])


def _first(names: tuple[str, ...], options: dict[str, Any]) -> Path:
    """Download the first of these files that a repository has."""
    for name in names[:-1]:
        try:
            return Path(hf_hub_download(filename=name, **options))
        except EntryNotFoundError:  # also where it is not known without a network whether it is there
            continue
    return Path(hf_hub_download(filename=names[-1], **options))


def _all(patterns: tuple[str, ...], options: dict[str, Any]) -> list[Path]:
    """Download a configuration and all files of the first of these patterns that a repository has any of."""
    for pattern in patterns:
        snapshot = Path(snapshot_download(allow_patterns=[CONFIG_NAME, pattern], **options))
        files = sorted(snapshot.glob(pattern))
        if files and (snapshot / CONFIG_NAME).is_file():
            return files
    raise FileNotFoundError(f"it has no {CONFIG_NAME} or no {patterns[0]}")


def _unreachable(source: Source, error: Exception) -> str:
    reason = without_tokens(" ".join(str(error).split()))[:200].rstrip(".")
    names = (CONFIG_NAME, *source.files) if source.layout == "transformers" else source.files
    patterns = " ".join(f"--include '{name}'" for name in names)
    return (
        f"source {source.name} is not here yet, and {source.repo_id} cannot be downloaded ({reason}). Where there is a"
        f" network, `hf download {source.repo_id} {patterns} --local-dir .` gets it; with the file here,"
        f" `hf-robust-transfer sources {source.name} --file FILE` imports it once"
    )


def _license(options: dict[str, Any]) -> str | None:
    """The licence that a repository states in its card, if it does."""
    try:
        stated = ModelCard.load(hf_hub_download(filename=CARD_NAME, **options)).data.to_dict()
    except Exception:  # no card, or none that can be read
        return None
    name = stated.get("license")
    return name if isinstance(name, str) else None


def _import(source: Source, found: _Downloaded, folder: Path) -> None:
    """Import what was downloaded into a folder that is there whole or not at all."""
    for stale in folder.parent.glob(f".{folder.name}-*"):  # of processes that were killed; nobody else has the lock
        shutil.rmtree(stale, ignore_errors=True)
    sha256 = _sha256(found.files[0]) if len(found.files) == 1 else None
    if source.sha256 is not None and sha256 != source.sha256:
        raise UsageError(
            f"{found.files[0]} is not the file of {source.name}: its sha256 is {sha256}, not {source.sha256}. Download it"
            " anew"
        )
    try:
        model, processor = _imported(source, found)
        _prove(source, model, processor)
    except UsageError as error:
        raise UsageError(f"source {source.name}: {error}") from error
    origin = Origin(
        name=source.name,
        model_id=source.repo_id,
        url=source.url,
        revision=found.revision,
        file=found.files[0].name if len(found.files) == 1 else None,
        sha256=sha256,
        license=found.license or source.license,
        norm=source.norm,
        eps=source.eps,
        reference=source.reference,
    )
    model.config.robust_training = TrainedFor(source.norm, source.eps, source=origin.to_dict()).to_dict()
    with _refused_in_one_line(source, folder), TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as staging:
        whole = Path(staging, folder.name)
        model.save_pretrained(whole)  # of a timm model, the configuration holds the image processor's too
        whole.rename(folder)
    logger.info(f"{source.name} is now in {folder}")


def _imported(source: Source, found: _Downloaded) -> tuple[PreTrainedModel, BaseImageProcessor]:
    if source.layout == "transformers":
        read = [read_checkpoint(file) for file in found.files]
        checkpoint = read[0]._replace(weights={name: tensor for each in read for name, tensor in each.weights.items()})
    else:
        checkpoint = read_checkpoint(found.files[0])
    if source.layout != "checkpoint":
        with torch.device("meta"):  # only its shapes count
            network = timm.create_model(source.architecture, **source.model_args)
        try:
            if source.layout == "transformers":
                tower = of_transformers(checkpoint.weights, network, found.config)
            else:
                tower = of_open_clip(checkpoint.weights, network)
        except UsageError as error:
            raise UsageError(f"{checkpoint.file} {error}") from error
        checkpoint = checkpoint._replace(weights=tower)
    model, _ = import_checkpoint(
        checkpoint,
        architecture=source.architecture,
        id2label=None if source.classes is None else dict(enumerate(source.classes)),
        model_args=dict(source.model_args),
        mean=checkpoint.mean or source.mean,
        std=checkpoint.std or source.std,
    )
    size = (input_shape(model)[0], source.input_size, source.input_size)
    made = {"input_size": size, "crop_pct": source.crop_pct, "interpolation": source.interpolation}
    model.config.pretrained_cfg = {**model.config.pretrained_cfg, **made}
    return model, TimmWrapperImageProcessor(model.config.pretrained_cfg, source.architecture)


def _prove(source: Source, model: PreTrainedModel, processor: BaseImageProcessor) -> None:
    """Make sure of the labels, and that logits come out and are finite."""
    if source.layout == "checkpoint" and source.classes is None and model.num_labels != 1000:
        raise UsageError(f"its weights are of {model.num_labels} classes, not of ImageNet's 1000")
    classifier = PixelClassifier(model, processor)
    shape = input_shape(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), full_precision(classifier):
        logits = classifier(torch.rand(1, *shape, generator=generator))
    if not torch.isfinite(logits).all():
        raise UsageError("it gives logits that are not finite: its weights are of no use")


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None


@contextmanager
def _refused_in_one_line(source: Source, folder: Path) -> Iterator[None]:
    """Say in one line that a folder of the cache cannot be written, as when the disk is full."""
    try:
        yield
    except Exception as error:  # safetensors raises an error of its own
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).partition("\n")[0]
        raise UsageError(f"source {source.name} cannot be kept in {folder.parent}: {reason}") from error
