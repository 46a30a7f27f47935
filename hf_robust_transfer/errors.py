"""Errors that a user may read in one line."""

from collections.abc import Iterable
from typing import Any


class UsageError(ValueError):
    """Something that a user asked for cannot be done; the message says what, where, and what to do instead.

    Commands show the message alone, and everything else with its traceback.

    Example:
        >>> raise UsageError("--eps 8 is larger than the whole pixel range: divide it by 255, as in 8/255")
        Traceback (most recent call last):
            ...
        hf_robust_transfer.errors.UsageError: --eps 8 is larger than the whole pixel range: divide it by 255, as in 8/255
    """


def listed(names: Iterable[Any], most: int = 20) -> str:
    """Names in a row for a message of one line, the first of them where there are many.

    Example:
        >>> listed(["cat", "dog\\n"]), listed(range(1000), 3)
        ("cat, 'dog\\\\n'", '0, 1, 2, … (1000 in all)')
    """
    texts = [str(name) for name in names]
    shown = [text if text and text.isprintable() else repr(text) for text in texts[:most]]
    return ", ".join(shown) + (f", … ({len(texts)} in all)" if len(texts) > most else "")
