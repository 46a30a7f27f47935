"""Files that are there whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


def write_json(file: str | Path, content: dict[str, Any]) -> None:
    """Write a JSON object, whole or not at all; what JSON does not have is written as text.

    Args:
        file: to make or to replace.
        content: what to write.

    Example:
        >>> write_json("outputs/report.json", {"accuracy": 0.9})  # doctest: +SKIP
    """
    with replacing(file) as part:
        part.write_text(json.dumps(content, indent=2, default=str) + "\n")
