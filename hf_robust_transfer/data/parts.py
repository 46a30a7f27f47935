"""Where a sample of a subset, or of several data sets put together, lies; and samples read by several threads."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch.utils.data import ConcatDataset, Subset

Item = TypeVar("Item")
Result = TypeVar("Result")


def resolved(dataset: Any, index: int) -> tuple[Any, int]:
    """The data set that holds a sample, and its row there.

    Args:
        dataset: any map-style data set, a subset, a concatenation, or these inside each other.
        index: of the sample.

    Example:
        >>> resolved(Subset(ConcatDataset([["a"], ["b", "c"]]), [2, 0]), 0)
        (['b', 'c'], 1)
    """
    while isinstance(dataset, Subset | ConcatDataset):
        if isinstance(dataset, Subset):
            dataset, index = dataset.dataset, int(dataset.indices[index])
        else:
            part = bisect_right(dataset.cumulative_sizes, index)
            dataset, index = dataset.datasets[part], index - (dataset.cumulative_sizes[part - 1] if part else 0)
    return dataset, index


def leaves(dataset: Any) -> Iterator[Any]:
    """The data sets that hold the samples of subsets and concatenations."""
    if isinstance(dataset, Subset | ConcatDataset):
        for part in dataset.datasets if isinstance(dataset, ConcatDataset) else [dataset.dataset]:
            yield from leaves(part)
    else:
        yield dataset


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """What `map` gives, computed by as many threads as PyTorch uses in this process.

    Pillow decodes and resizes without holding Python's lock. Where one fails, those that have not begun are left out.

    Example:
        >>> list(in_threads(len, ["a", "bc"]))
        [1, 2]
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(function, items)
