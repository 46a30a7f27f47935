"""What no published text may hold: tokens, and the places of the machine that it was written on."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

from ..errors import UsageError
from ..evaluation.report import shown
from ..run_folder import CONFIG_NAME, STATE_NAME

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}")
_PLACES = {"dataset_name", "train_dir", "validation_dir", "test_dir", "best_model_checkpoint", "_name_or_path"}


def shareable(file: Path) -> Path | bytes:
    """A configuration or trainer's state without the places of this machine that it names; any other file as it is."""
    if file.name not in (CONFIG_NAME, STATE_NAME):
        return file
    return (json.dumps(_without_places(json.loads(file.read_text())), indent=2) + "\n").encode()


def _without_places(content: Any) -> Any:
    if isinstance(content, list):
        return [_without_places(value) for value in content]
    if not isinstance(content, dict):
        return content
    return {
        name: shown(value) if name in _PLACES and isinstance(value, str) and value else _without_places(value)
        for name, value in content.items()
    }


def check_for_secrets(name: str, content: Path | bytes) -> None:
    """Refuse to publish a text that names a place of this machine or holds a Hub token.

    Args:
        name: of the file; only texts are looked at.
        content: a file, or what is in it.

    Raises:
        UsageError: it holds such a thing.

    Example:
        >>> check_for_secrets("notes.md", f"token: hf_{30 * 'x'}".encode())
        Traceback (most recent call last):
            ...
        hf_robust_transfer.errors.UsageError: notes.md would tell others a Hub token: take it out before publishing
    """
    if not name.endswith((".json", ".md")):
        return
    text = content.decode() if isinstance(content, bytes) else content.read_text()
    found = [what for what, secret in _secrets() if secret in text]
    if _TOKEN.search(text):
        found.append("a Hub token")
    if name == CONFIG_NAME:
        found += [f"{value}, a place of this machine" for value in _strings(json.loads(text)) if os.path.isabs(value)]
    if found:
        raise UsageError(f"{name} would tell others {found[0]}: take it out before publishing")


def _secrets() -> Iterator[tuple[str, str]]:
    yield from (
        (what, secret)
        for what, secret in (("your home folder", f"{Path.home()}/"), ("your Hub token", get_token() or ""))
        if len(secret) > 1
    )


def _strings(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from _strings(value)
    elif isinstance(content, list):
        for value in content:
            yield from _strings(value)
