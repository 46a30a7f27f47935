"""Features that cannot change are computed once: those of a frozen backbone, and those of the LwF teacher."""

import hashlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.lib.format import open_memmap
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..attacks.untouched import untouched
from ..data import as_pixels
from ..files import replacing
from ..modeling.classifier import PixelClassifier, classifier_layer, device_of, weights_sha256


class FeatureCache:
    """The penultimate features of every sample of a data set, and of every sample mirrored where that is asked for.

    Args:
        features: (1 or 2, N, D): of the samples as they are, then mirrored left to right. May lie on disk.
    """

    def __init__(self, features: np.ndarray[Any, Any]) -> None:
        self.features = features

    def of(self, indices: Tensor, mirrored: Tensor | None = None) -> Tensor:
        """Features (B, D) of samples, on the device of their indices.

        Args:
            indices: which samples, int64 (B,).
            mirrored: which of them mirrored, bool (B,); by default none.
        """
        rows = indices.cpu().numpy()
        variant = np.zeros_like(rows) if mirrored is None else mirrored.cpu().numpy().astype(rows.dtype)
        return torch.from_numpy(self.features[variant, rows]).to(indices.device)


def cache_features(
    classifier: PixelClassifier,
    loader: DataLoader[Any],
    *,
    mirrored: bool = False,
    precision: AbstractContextManager[Any] | None = None,
    file: Path | None = None,
    progress: bool = True,
) -> FeatureCache:
    """Compute the features of a data set in eval mode, or find them where an earlier run left them.

    Args:
        classifier: the model whose features these are, on its device; its classifier layer does not matter.
        loader: yields batches with ``pixel_values``, in the order of the data set.
        mirrored: also those of the mirrored samples.
        precision: an autocast context to compute in.
        file: where to keep them memory-mapped, under a name that tells them from others (`feature_key`). Of several
            processes that want the same, one computes. By default they stay in memory, for this run.
        progress: show a progress bar.

    Example:
        >>> from hf_robust_transfer.data import collate
        >>> from hf_robust_transfer.modeling import create_model
        >>> classifier = PixelClassifier(*create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"}))
        >>> data = [{"pixel_values": torch.rand(3, 32, 32)} for _ in range(4)]
        >>> cache = cache_features(classifier, DataLoader(data, 2, collate_fn=collate), progress=False)
        >>> cache.of(torch.tensor([3, 0])).shape
        torch.Size([2, 512])
    """
    precision = precision if precision is not None else nullcontext()
    if file is None:
        return FeatureCache(_compute(classifier, loader, mirrored, precision, None, progress))
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        if not file.is_file():
            with replacing(file) as part:
                _compute(classifier, loader, mirrored, precision, part, progress)
    return FeatureCache(np.load(file, mmap_mode="r"))


def feature_key(classifier: PixelClassifier, *identity: Any) -> str:
    """A hash of the weights below the classifier layer and of the normalisation, with whatever else features depend on.

    Args:
        classifier: the model.
        identity: the data set's fingerprint, the precision, ….

    Example:
        >>> from hf_robust_transfer.modeling import create_model
        >>> classifier = PixelClassifier(*create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"}))
        >>> feature_key(classifier, "data", "bf16") == feature_key(classifier, "data", "float32")
        False
    """
    weights = weights_sha256(classifier, but=classifier_layer(classifier.model)[0])
    statistics = [buffer.flatten().tolist() for buffer in (classifier.mean, classifier.std)]
    return hashlib.sha256(repr((weights, statistics, identity)).encode()).hexdigest()


def _compute(
    classifier: PixelClassifier,
    loader: DataLoader[Any],
    mirrored: bool,
    precision: AbstractContextManager[Any],
    file: Path | None,
    progress: bool,
) -> np.ndarray[Any, Any]:
    samples = len(loader.dataset)  # type: ignore[arg-type]
    found: np.ndarray[Any, Any] | None = None
    done = 0
    with torch.inference_mode(), untouched(classifier), precision:
        for batch in tqdm(loader, desc="computing features once", leave=False, disable=not progress):
            images = as_pixels(batch["pixel_values"].to(device_of(classifier)))
            variants = [images, images.flip(-1)] if mirrored else [images]
            features = torch.stack([classifier.outputs(variant).features for variant in variants])
            features = features.to(torch.promote_types(features.dtype, torch.float32)).cpu()
            if found is None:
                shape, dtype = (len(variants), samples, features.shape[2]), features.numpy().dtype
                found = np.empty(shape, dtype) if file is None else open_memmap(file, "w+", dtype, shape)
            found[:, done : done + len(images)] = features.numpy()
            done += len(images)
    assert found is not None and done == samples
    return found
