"""What an attack of an evaluation is given, and what it gives back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..randomness import fold_in
from ..threat_model import ThreatModel
from .subject import Subject


class Target(NamedTuple):
    """Samples that the subject classifies correctly, and what may be done to them.

    ``images`` are (B, C, H, W) pixels in [0, 1], ``labels`` and ``indices`` (in the data set) int64 of shape (B,), all of
    the chunk of samples with number ``chunk``. ``tell`` shows a line of text beside the evaluation's progress.
    """

    subject: Subject
    images: Tensor
    labels: Tensor
    indices: Tensor
    threat_model: ThreatModel
    chunk: int
    tell: Callable[[str], object]

    @property
    def chunk_seed(self) -> int:
        """The seed of noise that is not keyed by sample."""
        return fold_in(self.subject.settings.seed, self.chunk)

    @contextmanager
    def global_randomness(self) -> Iterator[None]:
        """Seed PyTorch's and NumPy's global random state by the chunk, and restore both on leaving."""
        devices = [self.images.device] if self.images.device.type == "cuda" else []
        numpy_state = np.random.get_state()
        with torch.random.fork_rng(devices):
            try:
                torch.manual_seed(self.chunk_seed)
                np.random.seed(self.chunk_seed % 2**32)
                yield
            finally:
                np.random.set_state(numpy_state)


class Attacked(NamedTuple):
    """Adversarial images of a target's shape, which samples the attack holds for fooled and therefore left, (B,), and
    what it had to say about how it ran.
    """

    images: Tensor
    claimed: Tensor
    remarks: list[str]


@dataclass(frozen=True)
class Attack:
    """An attack with its options.

    Args:
        name: as it was asked for and is reported.
        kind: what it is without its options.
        options: all its options, as they are reported.
        run: crafts adversarial images of a target's.
        version: tells it from another attack of this name, where that does not follow from the package's version.
    """

    name: str
    kind: str
    options: dict[str, Any] = field(hash=False)
    run: Callable[[Target], Attacked]
    version: str = ""
