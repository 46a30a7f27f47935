"""Features that cannot change are computed once: those of a frozen backbone, and those of the LwF teacher."""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..atomic import replacing
from ..attacks.eval_mode import untouched
from ..cache_folder import ArrayWriter, hold, locked, parse_size, trim, whole_array
from ..data import as_pixels
from ..errors import UsageError
from ..modeling.attack_copy import PRECISIONS, autocast, folded_copy
from ..modeling.classifier import PixelClassifier, device_of, weights_sha256
from ..modeling.heads import is_of_head
from ..run_folder import check_writable
from .arguments import RobustTrainingArguments


class FeatureCache:
    """The penultimate features of every sample of a data set, and of every sample mirrored where that is asked for.

    Args:
        features: (1 or 2, N, D): of the samples as they are, then mirrored left to right. May lie on disk.
        held: the file that they lie in, open so that it is not deleted.
    """

    def __init__(self, features: np.ndarray[Any, Any], held: IO[bytes] | None = None) -> None:
        self.features = features
        self._held = held

    def of(self, indices: Tensor, mirrored: Tensor | None = None) -> Tensor:
        """Features (B, D) of samples, on the device of their indices.

        Args:
            indices: which samples, int64 (B,).
            mirrored: which of them mirrored, bool (B,); by default none.
        """
        rows = indices.cpu().numpy()
        variant = np.zeros_like(rows) if mirrored is None else mirrored.cpu().numpy().astype(rows.dtype)
        # Copied into memory of torch's own alignment: products of matrices depend on it in their last bit.
        return torch.tensor(self.features[variant, rows], device=indices.device)


def cache_features(
    classifier: PixelClassifier,
    loader: DataLoader[Any],
    folder: Path,
    *,
    fingerprint: str,
    mirrored: bool = False,
    precision: str = "float32",
    progress: bool = True,
    limit: float = math.inf,
) -> FeatureCache:
    """Compute the features of a data set in eval mode, or find them where an earlier run left them.

    They lie memory-mapped in a file that is named by a hash of the weights below the classifier layer, of the
    normalisation, of the size that images are seen at, and of the other arguments here. Of several processes that want the
    same, one computes. A file that is damaged is made anew.

    Args:
        classifier: the model whose features these are, on its device; its classifier layer does not matter.
        loader: yields batches with ``pixel_values``, in the order of the data set.
        folder: where to keep them.
        fingerprint: tells this data from others.
        mirrored: also those of the mirrored samples.
        precision: to compute in, ``"float32"``, ``"bf16"`` or ``"fp16"``.
        progress: show a progress bar.
        limit: of the folder in bytes; beyond it the least recently used features of others are deleted.

    Raises:
        UsageError: the folder cannot be written to, as when the disk is full, or a feature is NaN or infinite.

    Example:
        >>> from tempfile import mkdtemp
        >>> from hf_robust_transfer.data import collate
        >>> from hf_robust_transfer.modeling import create_model
        >>> classifier = PixelClassifier(*create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"}))
        >>> loader = DataLoader([{"pixel_values": torch.rand(3, 32, 32)} for _ in range(4)], 2, collate_fn=collate)
        >>> cache = cache_features(classifier, loader, Path(mkdtemp()), fingerprint="four", progress=False)
        >>> cache.of(torch.tensor([3, 0])).shape
        torch.Size([2, 512])
    """
    classifier = classifier.merged()
    model = classifier.model
    weights = weights_sha256(classifier, but={name for name in model.state_dict() if is_of_head(name, model)})
    statistics = [buffer.flatten().tolist() for buffer in (classifier.mean, classifier.std)] + [classifier.flipped]
    identity = (weights, statistics, classifier.input_size, fingerprint, mirrored, precision)
    file = folder / f"{hashlib.sha256(repr(identity).encode()).hexdigest()}.npy"
    check_writable(folder, "--feature_cache_dir")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(file):
        shape = (2 if mirrored else 1, len(loader.dataset))  # type: ignore[arg-type]
        features = whole_array(file, shape)
        if features is None:
            with replacing(file) as part:
                _compute(classifier, loader, shape, precision, part, progress)
            features = np.load(file, mmap_mode="r")
        cache = FeatureCache(features, hold(file))
    trim(folder, limit)
    return cache


@contextmanager
def _refused_in_one_line(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"--feature_cache_dir {folder}: features cannot be kept there ({error.strerror or error}): choose another"
            " folder, or leave them out with --cache_features false"
        ) from error


def known_features(
    classifier: PixelClassifier, *, loader: DataLoader[Any], args: RobustTrainingArguments, precision: str
) -> FeatureCache:
    """The features of a training set as `cache_features` gives them, with the options of a training.

    Args:
        classifier: the model whose features these are.
        loader: yields the training images in their order; the data set inside has a ``fingerprint``.
        args: the training's options.
        precision: as `accelerate` names it.
    """
    return cache_features(
        classifier,
        loader,
        Path(args.feature_cache_dir),
        fingerprint=loader.dataset.dataset.fingerprint,  # type: ignore[attr-defined]
        mirrored=args.random_flip,
        precision=precision if precision in PRECISIONS else "float32",
        limit=parse_size(args.feature_cache_limit, "--feature_cache_limit"),
        progress=args.process_index == 0 and not args.disable_tqdm,
    )


def _compute(
    classifier: PixelClassifier, loader: DataLoader[Any], shape: tuple[int, int], precision: str, file: Path, progress: bool
) -> None:
    device, fast, done = device_of(classifier), None, 0
    with torch.inference_mode(), untouched(classifier), autocast(device, precision), ArrayWriter(file, shape) as writer:
        for batch in tqdm(loader, desc="computing features once", leave=False, disable=not progress):
            images = as_pixels(batch["pixel_values"].to(device))
            fast = folded_copy(classifier, images[:2], precision) if fast is None else fast
            variants = [images, images.flip(-1)][: shape[0]]
            features = torch.stack([fast.outputs(variant).features for variant in variants])
            values = features.to(torch.promote_types(features.dtype, torch.float32)).cpu().numpy()
            if not np.isfinite(values).all():
                raise UsageError(
                    f"features of the images {done} to {done + len(images) - 1} are not finite: the model or teacher is"
                    " damaged, or --bf16 or --fp16 is too coarse for it"
                )
            with _refused_in_one_line(file.parent):  # also of a disk that is full
                writer.write(values, done)
            done += len(images)
        with _refused_in_one_line(file.parent):
            writer.finish()
