"""What others may see: no tokens, no places of this machine, not the name of its user.

Whatever is written for others goes through `shown` or `shareable`, and whatever is about to leave through
`check_for_secrets`.
"""

import configparser
import getpass
import json
import mmap
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import constants, get_token
from PIL import Image

from .errors import UsageError

# As the Hub makes them (34 characters and more); shorter ones may be names, like hf_net.
_TOKEN = re.compile(r"(?:hf|api_org)_[A-Za-z0-9]{20,}|hf_(?:oauth|jwt)_[\w.-]{20,}", re.ASCII)
_IN_URL = re.compile(r"(?<=://)[^\s/@:\"']*:[^\s/@\"']+@|(?<=://)hf_[^\s/@\"']+@")
_SECRET_NAMES = re.compile(r"(?:^|_)(?:TOKEN|API_?KEY|PASSWORD|SECRET|ACCESS_KEY)$", re.IGNORECASE)
_PART = r"[^\s/\\\"'`<>|,;:()\[\]{}=&*?]+"
_POSIX = re.compile(rf"(?<![\w.~/\\<])/{_PART}(?:/{_PART})+/?")
_PLACE = re.compile(
    rf"file:/+(?:{_PART}/?)+"
    rf"|(?<![\w.~/\\])~(?:[A-Za-z][\w.-]*)?/(?:{_PART}/?)+"
    rf"|(?<![\w\\/])[A-Za-z]:[\\/]{{1,2}}(?:{_PART}[\\/]{{0,2}})+"
    rf"|(?<![\w\\/:])\\{{2,4}}[\w.-]+(?:\\{{1,2}}{_PART})+"
)
# Folders at the root of one machine or another, most of which this one does not have.
_ROOTS = {
    *(
        "home",
        "Users",
        "root",
        "tmp",
        "var",
        "opt",
        "srv",
        "mnt",
        "media",
        "data",
        "datasets",
        "usr",
        "etc",
        "scratch",
        "work",
    ),
    *("workspace", "private", "Volumes", "net", "nfs", "lustre", "gpfs", "content", "kaggle", "run", "proj", "projects"),
    *("storage", "export", "cluster", "user"),
}
# Each begins with a letter of its own, which makes the search through gigabytes of weights a fast one.
_TOKENS_IN_BYTES = re.compile(rb"hf_[A-Za-z0-9]{20,}"), re.compile(rb"api_org_[A-Za-z0-9]{20,}")
# A file of PyTorch is an archive whose tensors are called archive/data/0 and so on, before what archives begin parts with;
# of an exported one, archive/data/weights/weight_0 and so on.
_PLACES_IN_BYTES = (
    re.compile(rb"/(?<!archive/)(?:%b)/(?!\d+(?:FB|PK))[\w.-]{3,}" % "|".join(sorted(_ROOTS)).encode()),
    re.compile(rb":\\{1,2}Users\\{1,2}\w{2,}"),
)
_HEADER = 100_000_000  # the most that safetensors allows
_BINARY = {".safetensors", ".pt", ".pth", ".bin", ".png", ".distcp", ".onnx", ".pt2"}
# Names of users that say nothing of anybody.
_NOBODY = {
    "root",
    "user",
    "users",
    "admin",
    "administrator",
    "ubuntu",
    "debian",
    "runner",
    "docker",
    "jovyan",
    "guest",
    "nobody",
}


def known_tokens(*given: str | None) -> set[str]:
    """The tokens and passwords that this process knows of: those given, of its environment, and of the Hub's files.

    Args:
        given: what came by a flag or an argument.
    """
    environment = {name: value.strip() for name, value in os.environ.items() if _SECRET_NAMES.search(name)}
    of_hub = {environment.get("HF_TOKEN"), environment.get("HUGGING_FACE_HUB_TOKEN"), get_token(), *given}
    for file in {os.environ.get("HF_TOKEN_PATH") or constants.HF_TOKEN_PATH, constants.HF_TOKEN_PATH}:
        of_hub.add(_content(Path(file).expanduser()).strip())
        stored = configparser.ConfigParser(interpolation=None)
        try:
            stored.read_string(_content(Path(file).expanduser().with_name("stored_tokens")))
        except configparser.Error:
            continue
        of_hub |= {value for section in stored.values() for value in section.values()}
    others = {value for value in environment.values() if len(value) >= 12 and not os.path.exists(value)}
    return others | {token for token in of_hub if token and (len(token) >= 8 or token.startswith("hf_"))}


def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def without_tokens(text: str, tokens: Iterable[str | None] = ()) -> str:
    """A text with ``<token>`` in the place of everything that is a token or a password in a URL, or looks like one.

    Args:
        text: any.
        tokens: more of them than `known_tokens` finds.

    Example:
        >>> without_tokens(f"https://me:hf_{34 * 'x'}@hub/pets of hf_net")
        'https://<token>@hub/pets of hf_net'
    """
    for token in sorted(known_tokens(*tokens), key=len, reverse=True):
        text = _as_word(token).sub("<token>", text)
    return _TOKEN.sub("<token>", _IN_URL.sub("<token>@", text))


def tokenless(value: Any) -> Any:
    """A JSON value whose texts are `without_tokens`; places stay."""
    if isinstance(value, str):
        return without_tokens(value)
    if isinstance(value, dict):
        return {name: tokenless(each) for name, each in value.items()}
    return [tokenless(each) for each in value] if isinstance(value, list) else value


def _as_word(text: str) -> re.Pattern[str]:
    """A long text anywhere, a short one where it is no part of a longer word."""
    return re.compile(re.escape(text) if len(text) >= 20 else rf"(?<![A-Za-z0-9]){re.escape(text)}(?![A-Za-z0-9])")


def shown(text: str, tokens: Iterable[str | None] = ()) -> str:
    """How to name a model, data or an option's value to others.

    A Hub id stays as it is, a local file or folder is named without the place where it lies, also inside a longer text;
    tokens and the user's name are left out.

    Args:
        text: any.
        tokens: more of them than `known_tokens` finds.

    Example:
        >>> [shown(name) for name in ("timm/resnet50.a1_in1k", "/data/pets", "/data/mine.py:loss", "D:/pets")]
        ['timm/resnet50.a1_in1k', 'pets', 'mine.py:loss', 'pets']
    """
    text = without_tokens(text, tokens)
    if (function := re.fullmatch(r"([^\s:]*[/\\])?([^\s:/\\]+\.py:.+)", text)) is not None:  # a user's own, in a file
        return _without_user(function[2])
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not text.startswith(".") and not _exists(text):
        return text  # a Hub id; its owner may well have the user's name
    name = _local_name(text)
    return _without_user(_without_places(text) if name is None else name)


def shareable(value: Any, tokens: Iterable[str | None] = ()) -> Any:
    """A JSON value with all its texts as `shown`; in lists, such as those of classes, the user's name may be a word's.

    Args:
        value: any.
        tokens: more of them than `known_tokens` finds.
    """
    if isinstance(value, str):
        return shown(value, tokens)
    if isinstance(value, dict):
        return {shareable(name, tokens): shareable(each, tokens) for name, each in value.items()}
    if isinstance(value, list | tuple):
        names = _user_names()
        return [each if isinstance(each, str) and each in names else shareable(each, tokens) for each in value]
    return value


def _exists(text: str) -> bool:
    try:
        return os.path.exists(os.path.expanduser(text))
    except ValueError:  # a NUL inside
        return False


def _local_name(text: str) -> str | None:
    """The last part of a text that is a local place as a whole; None for any other."""
    if "\n" in text or not text.strip():
        return None
    if re.match(r"[A-Za-z]:[\\/]|\\\\", text):
        return PureWindowsPath(text).name or "a folder"
    inside = text.removeprefix("file:")
    local = inside != text or _exists(text) or text.startswith(("./", "../", "~"))
    if not local and not (os.path.isabs(text) and _is_place(text)):
        return None
    return Path(os.path.abspath(os.path.expanduser(inside))).name or "a folder"


def _is_place(path: str) -> bool:
    """Whether a text like ``/a/b`` is a path rather than a name: by its first folder, or its length."""
    first, *more = path.strip("/").split("/")
    return len(more) >= 2 or first in _ROOTS or _exists(f"/{first}")


def _places(text: str) -> Iterator[str]:
    yield from (match[0] for match in _PLACE.finditer(text))
    yield from (match[0] for match in _POSIX.finditer(text) if _is_place(match[0]))


def _without_places(text: str) -> str:
    for place in sorted(set(_places(text)), key=len, reverse=True):
        text = text.replace(place, re.split(r"[\\/]+", place.rstrip("\\/"))[-1])
    return text


def _user_names() -> set[str]:
    names = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME")} | {Path.home().name}
    with suppress(OSError, KeyError, ImportError):  # a container's number without a name
        names.add(getpass.getuser())
    return {name for name in names if len(name) >= 3 and name.lower() not in _NOBODY}


def _without_user(text: str) -> str:
    for name in _user_names():
        text = _as_word(name).sub("<user>", text)
    return text


def check_for_secrets(
    name: str, content: Path | bytes | str, tokens: Iterable[str | None] = (), *, places: bool = True
) -> None:
    """Refuse to let something leave that holds a token, or names a place of a machine.

    Args:
        name: of it, for the message; its ending tells JSON and PNG.
        content: a file, or what is in it: text or binary.
        tokens: more of them than `known_tokens` finds.
        places: look for places, too.

    Raises:
        UsageError: it holds such a thing.

    Example:
        >>> check_for_secrets("notes.md", f"token: hf_{34 * 'x'}")
        Traceback (most recent call last):
            ...
        hf_robust_transfer.errors.UsageError: notes.md would tell others a Hub token: take it out before publishing
    """
    known = known_tokens(*tokens)
    for kind, found in _secrets(name, content, known):
        if places or kind == "token":
            raise UsageError(f"{name} would tell others {found}: take it out before publishing")


_Found = Iterator[tuple[str, str]]  # a token or a place, and how to call it


def _secrets(name: str, content: Path | bytes | str, tokens: set[str]) -> _Found:
    if isinstance(content, str):
        yield from _in_text(content, tokens)
        return
    if Path(name).suffix in _BINARY:
        yield from _in_binary(name, content, tokens)
        return
    data = content if isinstance(content, bytes) else content.read_bytes()
    try:
        text = data.decode()
    except ValueError:
        yield from _in_bytes(data, tokens)
        return
    if name.endswith(".json"):
        try:  # without JSON's escapes; of a name that is there twice, both values
            parsed = json.loads(text, object_pairs_hook=lambda pairs: [each for pair in pairs for each in pair])
        except ValueError:
            pass
        else:
            yield from _in_strings(parsed, tokens)
            return
    yield from _in_text(text, tokens)


def _in_strings(content: Any, tokens: set[str]) -> _Found:
    if isinstance(content, list):
        for each in content:
            yield from _in_strings(each, tokens)
    elif isinstance(content, str):
        yield from _in_text(content, tokens)
        if os.path.isabs(content) and (_is_place(content) or _exists(content)):
            yield "place", f"{content}, a place of this machine"


def _in_text(text: str, tokens: set[str]) -> _Found:
    plain = text.replace("\\", "")  # as Markdown shows it
    if any(_as_word(token).search(each) for token in tokens for each in (text, plain)):
        yield "token", "your Hub token, or another secret of this process"
    if _TOKEN.search(text) or _TOKEN.search(plain):
        yield "token", "a Hub token"
    if _IN_URL.search(text):
        yield "token", "the password in a URL"
    home = str(Path.home())
    if len(home) > 1 and f"{home}/" in text:
        yield "place", "your home folder"
    yield from (("place", f"{place}, a place of this machine") for place in _places(text))


def _in_binary(name: str, content: Path | bytes, tokens: set[str]) -> _Found:
    if isinstance(content, bytes):
        yield from _in_bytes(content, tokens)
        opened: Any = BytesIO(content)
    elif content.stat().st_size:
        with content.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield from _in_bytes(data, tokens)
        opened = content
    else:
        return
    if name.endswith(".safetensors"):
        start = content[:_HEADER] if isinstance(content, bytes) else _beginning(content)
        header = start[8 : 8 + int.from_bytes(start[:8], "little")]
        yield from _secrets("header.json", header, tokens)
    if name.endswith(".png"):
        with Image.open(opened) as picture:
            for text in picture.info.values():
                yield from _in_text(text, tokens) if isinstance(text, str) else ()


def _beginning(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(_HEADER)


def _in_bytes(data: bytes | mmap.mmap, tokens: set[str]) -> _Found:
    home = str(Path.home()).encode()
    if any(data.find(token.encode()) >= 0 for token in tokens):
        yield "token", "your Hub token, or another secret of this process"
    if any(pattern.search(data) for pattern in _TOKENS_IN_BYTES):
        yield "token", "a Hub token"
    if len(home) > 5 and data.find(home + b"/") >= 0:
        yield "place", "your home folder"
    for pattern in _PLACES_IN_BYTES:
        for match in pattern.finditer(data):
            yield "place", f"{match[0].decode(errors='replace')}, a place of this machine"
