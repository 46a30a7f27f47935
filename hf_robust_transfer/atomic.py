"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(file: str | Path) -> Iterator[Path]:
    """Give a path to write to, which takes the file's place in the end; where writing fails, the file stays as it was.

    Args:
        file: to make or to replace.

    Example:
        >>> with replacing("outputs/report.json") as part:  # doctest: +SKIP
        ...     part.write_text("{}")
    """
    part = Path(f"{file}.part")
    try:
        yield part
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
