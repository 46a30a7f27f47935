"""What lies on the Hub of the tests: repositories with their commits, files, large files and model cards."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

LARGE = 10 * 1024**2
LARGE_NAMES = """*.7z *.arrow *.bin *.bz2 *.ckpt *.gz *.h5 *.joblib *.model *.msgpack *.npy *.npz *.onnx *.parquet *.pb
*.pickle *.pkl *.png *.pt *.pth *.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz *.xz *.zip *.zst *tfevents*"""
INVALID_TOKEN = "Invalid credentials in Authorization header"
_METADATA = re.compile(r"^\s*---(?:\r\n|\r|\n)([\S\s]*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|$)")


class HubError(Exception):
    """A request that is refused: its status, its message and the Hub's code for the reason, if there is one."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any):
        super().__init__(message)
        self.status, self.body = status, {"error": message, **body}
        # A header is one line of latin-1.
        line = message.splitlines()[0].encode("latin-1", "replace").decode("latin-1")
        self.headers = {"X-Error-Message": line} | ({"X-Error-Code": code} if code else {})


@dataclass
class Request:
    """What a client asks: `path` is as sent, still quoted, and `user` and `role` are those of its token."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Any
    body: bytes
    user: str | None = None
    role: str | None = None

    def json(self) -> Any:
        return json.loads(self.body or b"{}")


@dataclass
class Reply:
    """What the client gets."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def as_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    return Reply(json.dumps(value).encode(), status, {"Content-Type": "application/json"} | (headers or {}))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def git_oid(data: bytes) -> str:
    """The identifier of a file in git."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def pointer_file(sha256: str, size: int) -> bytes:
    """The file that git keeps in place of a large one."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def large_entry(sha256: str, size: int) -> dict[str, Any]:
    return {"sha256": sha256, "size": size, "oid": git_oid(pointer_file(sha256, size)), "lfs": True}


def attribute(pattern: str) -> str:
    """The line of a .gitattributes that makes files large ones."""
    return f"{pattern.replace(' ', '[[:space:]]')} filter=lfs diff=lfs merge=lfs -text\n"


def matches(path: str, pattern: str) -> bool:
    """Whether a git pattern covers the path: one without a slash is about names, in whatever folder."""
    pattern = pattern.replace("[[:space:]]", " ")
    subject = path if "/" in pattern.rstrip("/") else PurePosixPath(path).name
    return subject == pattern or fnmatchcase(subject, pattern.strip("/"))


def ignored(path: str, gitignore: str) -> bool:
    """Whether a .gitignore covers the path or a folder above it (exceptions with `!` are not supported)."""
    patterns = [line for line in map(str.strip, gitignore.splitlines()) if line and not line.startswith("#")]
    folders = [str(folder) for folder in PurePosixPath(path).parents][:-1]
    return any(matches(candidate, pattern) for pattern in patterns for candidate in [path] * (pattern[-1] != "/") + folders)


def read_card(content: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """The metadata of a model card, what is wrong with it, and what to warn about."""
    block = _METADATA.search(content)
    try:
        metadata = yaml.safe_load(block[1]) if block else None
    except yaml.YAMLError as error:
        return {}, [f"The metadata is no valid YAML: {error}"], []
    if metadata is None:
        return {}, [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(metadata, dict):
        return {}, ["The metadata must be an object"], []
    return metadata, list(_card_errors(metadata)), []


def _card_errors(metadata: dict[str, Any]) -> Iterator[str]:
    for key in ("library_name", "pipeline_tag"):
        if not isinstance(metadata.get(key, ""), str):
            yield f'"{key}" must be a string'
    for key in ("base_model", "datasets", "language", "license", "metrics", "tags"):
        values = metadata.get(key, [])
        if not isinstance(values, str | list):
            yield f'"{key}" must be a string or an array'
        elif isinstance(values, list):
            yield from (f'"{key}[{i}]" must be a string' for i, value in enumerate(values) if not isinstance(value, str))
    for key in ("model-index", "widget"):
        if not isinstance(metadata.get(key, []), list):
            yield f'"{key}" must be an array'
    for i, model in enumerate(_list(metadata, "model-index")):
        yield from _missing(model, f"model-index[{i}]", "name", "results")
        for j, result in enumerate(_list(model, "results")):
            place = f"model-index[{i}].results[{j}]"
            yield from _missing(result, place, "task.type", "dataset.type", "dataset.name", "metrics")
            for k, metric in enumerate(_list(result, "metrics")):
                yield from _missing(metric, f"{place}.metrics[{k}]", "type", "value")


def _list(holder: Any, key: str) -> list[Any]:
    value = holder.get(key) if isinstance(holder, dict) else None
    return value if isinstance(value, list) else []


def _missing(holder: Any, place: str, *names: str) -> Iterator[str]:
    for name in names:
        value = holder
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            yield f'"{place}.{name}" is required'


class Repository:
    """A model repository in a folder: `repository.json` with its branches, `commits/<oid>.json` and `blobs/<sha256>`.

    A commit's tree maps paths to entries: `sha256` of the content, `size`, `oid` in git, and `lfs` for a large file.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def create(cls, folder: Path, repo_id: str, private: bool) -> "Repository":
        (folder / "commits").mkdir(parents=True)
        (folder / "blobs").mkdir()
        self = cls(folder)
        self._save({"id": repo_id, "private": private, "created": now(), "branches": {"main": None}})
        attributes = "".join(map(attribute, LARGE_NAMES.split())).encode()
        self.commit("main", {".gitattributes": attributes}, "initial commit", author=repo_id.split("/")[0])
        return self

    @property
    def state(self) -> dict[str, Any]:
        return json.loads((self.folder / "repository.json").read_text())

    def _save(self, state: dict[str, Any]) -> None:
        (self.folder / "repository.json").write_text(json.dumps(state))

    def set_branch(self, name: str, oid: str) -> None:
        state = self.state
        self._save(state | {"branches": state["branches"] | {name: oid}})

    def blob(self, sha256: str) -> Path:
        return self.folder / "blobs" / sha256

    def store(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.blob(sha256).exists():
            self.blob(sha256).write_bytes(data)
        return sha256

    def entry(self, data: bytes) -> dict[str, Any]:
        return {"sha256": self.store(data), "size": len(data), "oid": git_oid(data), "lfs": False}

    def resolve(self, revision: str) -> dict[str, Any]:
        """The commit that a branch or an identifier, in full or its first seven characters or more, stands for."""
        oid = self.state["branches"].get(revision)
        if oid is None and re.fullmatch("[0-9a-f]{7,40}", revision):
            oid = next((path.stem for path in (self.folder / "commits").glob(f"{revision}*.json")), None)
        if oid is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return json.loads((self.folder / "commits" / f"{oid}.json").read_text())

    def history(self, revision: str) -> Iterator[dict[str, Any]]:
        """The commits up to a revision, newest first."""
        oid = revision
        while oid:
            commit = self.resolve(oid)
            yield commit
            oid = commit["parent"]

    def text(self, tree: dict[str, Any], path: str) -> str:
        """A text file of the tree, empty where there is none."""
        return self.blob(tree[path]["sha256"]).read_text(errors="replace") if path in tree else ""

    def is_large(self, tree: dict[str, Any], path: str, size: int, sample: bytes) -> bool:
        """Whether a file belongs to LFS: by its name, its size, or because it is binary. An empty one never does."""
        lines = [line.split() for line in self.text(tree, ".gitattributes").splitlines() if "filter=lfs" in line]
        return bool(size) and (size > LARGE or b"\0" in sample or any(matches(path, line[0]) for line in lines))

    def commit(
        self,
        branch: str,
        changes: dict[str, bytes | dict[str, Any] | None],
        title: str,
        message: str = "",
        author: str = "user",
    ) -> str:
        """Add a commit to a branch: the bytes of files, entries of uploaded ones, and None for files that go."""
        parent = self.state["branches"].get(branch)
        tree = dict(self.resolve(parent)["tree"]) if parent else {}
        for path, change in changes.items():
            if change is None:
                del tree[path]
            else:
                tree[path] = self.entry(change) if isinstance(change, bytes) else change
        large = [path for path in changes if path in tree and tree[path]["lfs"]]
        uncovered = [attribute(path) for path in large if not self.is_large(tree, path, 1, b"")]
        if uncovered:
            tree[".gitattributes"] = self.entry("".join([self.text(tree, ".gitattributes"), *uncovered]).encode())
        commit = {"parent": parent, "title": title, "message": message, "author": author, "date": now(), "tree": tree}
        oid = hashlib.sha1(json.dumps(commit).encode()).hexdigest()
        (self.folder / "commits" / f"{oid}.json").write_text(json.dumps({"id": oid, **commit}))
        self.set_branch(branch, oid)
        return oid
