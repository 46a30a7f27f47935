"""The folder of what is computed once, features and decoded images: what is in it, in use, and goes when it is too much."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy as np
from filelock import FileLock, Timeout
from huggingface_hub.constants import HF_HOME

from .errors import UsageError

try:
    import fcntl
except ImportError:  # Windows, which does not delete files that are open
    fcntl = None  # type: ignore[assignment]

DEFAULT_FOLDER = str(Path(HF_HOME, "robust_transfer"))
_DIGEST_SIZE = hashlib.sha256().digest_size
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class CachedFile(NamedTuple):
    """One file, its size in bytes, and when it was last used, in seconds since the epoch."""

    path: Path
    size: int
    used: float


def parse_size(text: str, flag: str) -> float:
    """Read a size like ``"20GB"``, in bytes.

    Raises:
        UsageError: it is none.

    Example:
        >>> parse_size("1.5 MB", "--limit")
        1500000.0
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B|)", str(text).strip().upper())
    if match is None:
        raise UsageError(f"{flag} {text} is not a size: write it like 500MB or 20GB")
    return float(match[1]) * _UNITS[match[2]]


class ArrayWriter:
    """Write an array (variants, samples, …) part by part, and a hash of it behind it.

    Written as a file, not through memory that is mapped: there a full disk ends the process.

    Args:
        file: to write, in NumPy's format.
        shape: how many variants and samples.
    """

    def __init__(self, file: Path, shape: tuple[int, int]) -> None:
        self._file, self._shape, self._start = file, shape, 0

    def __enter__(self) -> Self:
        self._opened = self._file.open("w+b")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._opened.close()
        except OSError:  # once more what a full disk said already
            if kind is None:
                raise

    def write(self, values: np.ndarray[Any, Any], first: int) -> None:
        """Write the values (variants, n, …) of the samples from ``first`` on."""
        if not self._start:
            descr = np.lib.format.dtype_to_descr(values.dtype)
            header = {"descr": descr, "fortran_order": False, "shape": (*self._shape, *values.shape[2:])}
            np.lib.format.write_array_header_1_0(self._opened, header)
            self._start = self._opened.tell()
        for variant, rows in enumerate(values):
            self._opened.seek(self._start + (variant * self._shape[1] + first) * rows[:1].nbytes)
            self._opened.write(rows.tobytes())

    def finish(self) -> None:
        """Write the hash, when all samples are there."""
        self._opened.flush()
        length = self._opened.seek(0, os.SEEK_END)
        self._opened.write(_digest(self._opened, length))
        self._opened.flush()


def whole_array(file: Path, shape: tuple[int, int]) -> np.ndarray[Any, Any] | None:
    """The array in a file, memory-mapped; None where there is none, or where it is damaged.

    It can be written to, which changes this process's view of it alone.

    Args:
        file: as `ArrayWriter` wrote it.
        shape: how many variants and samples it is to have.
    """
    try:
        with file.open("rb") as opened:
            length = opened.seek(-_DIGEST_SIZE, os.SEEK_END)
            if opened.read() != _digest(opened, length):
                return None
        array: np.memmap[Any, Any] = np.load(file, mmap_mode="c")
    except (OSError, ValueError):
        return None
    return array if array.shape[:2] == shape else None


def _digest(opened: IO[bytes], length: int) -> bytes:
    """A hash of the first so many bytes of a file."""
    digest, left = hashlib.sha256(), length
    opened.seek(0)
    while left and (part := opened.read(min(left, 2**20))):
        digest.update(part)
        left -= len(part)
    opened.seek(length)
    return digest.digest()


def cached_files(folder: str | Path) -> list[CachedFile]:
    """The files of a folder, the least recently used first."""
    found = []
    for path in Path(folder).glob("*.npy"):
        try:
            found.append(CachedFile(path, path.stat().st_size, path.stat().st_mtime))
        except FileNotFoundError:  # another process was faster
            continue
    return sorted(found, key=lambda file: file.used)


@contextmanager
def locked(file: Path, timeout: float = -1) -> Iterator[None]:
    """Be the only one to make, find or delete a file."""
    with FileLock(file.with_suffix(".lock"), timeout=timeout):
        yield


def hold(file: Path) -> IO[bytes]:
    """Open a file so that nobody deletes it until it is closed, and note that it was used now."""
    os.utime(file)
    opened = file.open("rb")
    if fcntl is not None:
        fcntl.flock(opened, fcntl.LOCK_SH)
    return opened


def trim(folder: str | Path, limit: float) -> list[CachedFile]:
    """Delete the least recently used files until the others take no more than a number of bytes; none that is in use.

    Args:
        folder: of cached files.
        limit: in bytes; 0 deletes all.

    Returns:
        What was deleted.
    """
    files, deleted = cached_files(folder), []
    total = sum(file.size for file in files)
    for file in files:
        if total <= limit:
            break
        if _deleted(file.path):
            deleted.append(file)
            total -= file.size
    return deleted


def _deleted(path: Path) -> bool:
    try:
        with locked(path, timeout=0), path.open("rb") as opened:
            if fcntl is not None:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except (Timeout, OSError):  # somebody makes it, holds it, or has deleted it
        return False
    return True
