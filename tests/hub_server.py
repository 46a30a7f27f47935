"""A Hugging Face Hub on loopback, for tests: what `huggingface_hub` uses of its protocol for model repositories.

    with HubServer(tmp_path) as hub:
        HfApi(endpoint=hub.url, token=hub.write_token).create_repo("user/model")
        subprocess.run([...], env=hub.environment())

Repositories live in the folder given, so a second server on it goes on where the first one stopped. As on the real Hub, a
new repository holds a `.gitattributes`, a commit adds to it the large files that its patterns do not cover, and README.md
is refused with invalid metadata. Left out: Xet storage, uploads in several parts, pull requests, tags, datasets and Spaces,
redirects of downloads, and the Hub's lists of the licences, languages and tasks that metadata may name.
"""

import base64
import binascii
import contextlib
import hashlib
import json
import os
import re
import secrets
import socket
import sys
import tempfile
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml

LARGE = 10 * 1024**2
LARGE_NAMES = """*.7z *.arrow *.bin *.bz2 *.ckpt *.gz *.h5 *.joblib *.model *.msgpack *.npy *.npz *.onnx *.parquet *.pb
*.pickle *.pkl *.png *.pt *.pth *.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz *.xz *.zip *.zst *tfevents*"""
_INVALID_TOKEN = "Invalid credentials in Authorization header"
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


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    return Reply(json.dumps(value).encode(), status, {"Content-Type": "application/json"} | (headers or {}))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _git_oid(data: bytes) -> str:
    """The identifier of a file in git."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _pointer(sha256: str, size: int) -> bytes:
    """The file that git keeps in place of a large one."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def _large_entry(sha256: str, size: int) -> dict[str, Any]:
    return {"sha256": sha256, "size": size, "oid": _git_oid(_pointer(sha256, size)), "lfs": True}


def _attribute(pattern: str) -> str:
    """The line of a .gitattributes that makes files large ones."""
    return f"{pattern.replace(' ', '[[:space:]]')} filter=lfs diff=lfs merge=lfs -text\n"


def _matches(path: str, pattern: str) -> bool:
    """Whether a git pattern covers the path: one without a slash is about names, in whatever folder."""
    pattern = pattern.replace("[[:space:]]", " ")
    subject = path if "/" in pattern.rstrip("/") else PurePosixPath(path).name
    return subject == pattern or fnmatchcase(subject, pattern.strip("/"))


def _ignored(path: str, gitignore: str) -> bool:
    """Whether a .gitignore covers the path or a folder above it (exceptions with `!` are not supported)."""
    patterns = [line for line in map(str.strip, gitignore.splitlines()) if line and not line.startswith("#")]
    folders = [str(folder) for folder in PurePosixPath(path).parents][:-1]
    return any(
        _matches(candidate, pattern) for pattern in patterns for candidate in [path] * (pattern[-1] != "/") + folders
    )


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
        self._save({"id": repo_id, "private": private, "created": _now(), "branches": {"main": None}})
        attributes = "".join(map(_attribute, LARGE_NAMES.split())).encode()
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
        return {"sha256": self.store(data), "size": len(data), "oid": _git_oid(data), "lfs": False}

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
        return bool(size) and (size > LARGE or b"\0" in sample or any(_matches(path, line[0]) for line in lines))

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
        uncovered = [_attribute(path) for path in large if not self.is_large(tree, path, 1, b"")]
        if uncovered:
            tree[".gitattributes"] = self.entry("".join([self.text(tree, ".gitattributes"), *uncovered]).encode())
        commit = {"parent": parent, "title": title, "message": message, "author": author, "date": _now(), "tree": tree}
        oid = hashlib.sha1(json.dumps(commit).encode()).hexdigest()
        (self.folder / "commits" / f"{oid}.json").write_text(json.dumps({"id": oid, **commit}))
        self.set_branch(branch, oid)
        return oid


_Answer = Callable[..., Reply]
_ROUTES: list[tuple[set[str], re.Pattern[str], str | None, _Answer]] = []
_REPOSITORY = r"(?P<repository>[^/]+(?:/[^/]+)?)"
_MODEL = f"/api/models/{_REPOSITORY}"
_LFS = rf"/{_REPOSITORY}\.git/info/lfs/objects"


def _route(methods: str, pattern: str, access: str | None = "read") -> Callable[[_Answer], _Answer]:
    """Register what answers the requests; where `access` is set, it gets the repository that the pattern names."""

    def register(function: _Answer) -> _Answer:
        _ROUTES.append((set(methods.split()), re.compile(pattern), access, function))
        return function

    return register


class HubServer:
    """The server, from `with` on: `url`, `write_token` and `read_token` of the account `user`, `other_token` of `other`.

    `requests` lists the (method, path, status) of every request, with None as the status of those that were dropped.
    """

    user = "user"
    write_token, read_token, other_token = "hf_write", "hf_read", "hf_other"

    def __init__(self, folder: str | os.PathLike[str], page_size: int = 1000):
        self.folder, self.page_size = Path(folder), page_size
        self.folder.mkdir(parents=True, exist_ok=True)
        self.requests: list[tuple[str, str, int | None]] = []
        self.errors: list[Exception] = []
        self._accounts = {
            self.write_token: (self.user, "write"),
            self.read_token: (self.user, "read"),
            self.other_token: ("other", "write"),
        }
        self._faults: list[list[Any]] = []
        self._uploads: dict[str, tuple[Repository, str, int]] = {}
        self._lock = threading.RLock()

    def __enter__(self) -> "HubServer":
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.close()
        if self.errors and kind is None:
            raise self.errors[0]

    # ------------------------------------------------------------------ for the tests

    def environment(self, token: str | Literal[False] | None = None) -> dict[str, str]:
        """Variables for a process that uses this Hub, with a home of its own; without a token where it is False."""
        others = ("HF_", "HUGGING", "TRANSFORMERS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        given = {} if token is False else {"HF_TOKEN": token or self.write_token}
        return kept | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": tempfile.mkdtemp(prefix="home-", dir=self.folder),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            **given,
        }

    def attach(self, monkeypatch: Any) -> None:
        """Let the client in this process use this Hub; functions outside `HfApi(endpoint=…)` mostly need a process."""
        from huggingface_hub import close_session, constants

        addresses = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, self.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", addresses)
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        for name, value in {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_TOKEN": self.write_token}.items():
            monkeypatch.setenv(name, value)
        close_session()  # what it reads of the environment

    def fail(self, method: str, path_regex: str, action: int | str | Callable[[], object], times: float = 1) -> None:
        """Let the next requests whose path (quoted, without the query) contains the expression go wrong.

        An integer is the status that they get instead of being carried out (401: the token is not valid any more). "drop"
        closes the connection in the middle of the body of the request, or of the response where the request has no body;
        "drop-response" carries the request out and closes the connection in the middle of the response. A function is
        called before the request is carried out: what others do meanwhile.
        """
        if isinstance(action, str) and action not in ("drop", "drop-response"):
            raise ValueError(f"there is no action {action!r}")
        with self._lock:
            self._faults.append([method, re.compile(path_regex), action, times])

    def repository(self, repo_id: str) -> Repository:
        """The repository as it is stored."""
        return Repository(self.folder / "repositories" / repo_id.replace("/", "--"))

    def commits(self, repo_id: str, revision: str = "main") -> list[dict[str, Any]]:
        """The commits of a revision, newest first: `id`, `parent`, `title`, `message`, `author`, `date` and `tree`."""
        with self._lock:
            return list(self.repository(repo_id).history(revision))

    def tree(self, repo_id: str, revision: str = "main") -> dict[str, dict[str, Any]]:
        """The files of a revision, each with its `sha256`, `size`, `oid` in git, and `lfs` for a large file."""
        with self._lock:
            return self.repository(repo_id).resolve(revision)["tree"]

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The content of every file of a revision."""
        repository = self.repository(repo_id)
        return {path: repository.blob(entry["sha256"]).read_bytes() for path, entry in self.tree(repo_id, revision).items()}

    def commit(
        self, repo_id: str, files: dict[str, bytes | None], title: str = "From elsewhere", branch: str = "main"
    ) -> str:
        """Commit as someone else would, without a client: the content of files, or None for those that go."""
        with self._lock:
            repository = self.repository(repo_id)
            changes: dict[str, Any] = dict(files)
            for path, data in files.items():
                if data and repository.is_large(repository.resolve(branch)["tree"], path, len(data), data[:512]):
                    changes[path] = _large_entry(repository.store(data), len(data))
            return repository.commit(branch, changes, title)

    # ------------------------------------------------------------------ requests

    def _take_fault(self, method: str, path: str) -> Any:
        with self._lock:
            for fault in self._faults:
                if fault[0] == method and fault[1].search(path) and fault[3] > 0:
                    fault[3] -= 1
                    return fault[2]
        return None

    def _answer(self, request: Request, status: int | None = None) -> Reply:
        """Carry a request out, or answer the status it is to get."""
        try:
            if status is not None:
                raise HubError(status, _INVALID_TOKEN if status == 401 else f"Fault {status}")
            with self._lock:
                return self._dispatch(request)
        except HubError as error:
            return _json(error.body, error.status, error.headers)
        except Exception as error:  # one of this file: no client tries a 501 again, and the test learns of it
            self.errors.append(error)
            return _json({"error": f"The Hub of the tests failed: {error!r}"}, 501)

    def _dispatch(self, request: Request) -> Reply:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token:
            if token not in self._accounts:
                raise HubError(401, _INVALID_TOKEN)
            request.user, request.role = self._accounts[token]
        for methods, pattern, access, function in _ROUTES:
            match = pattern.fullmatch(request.path)
            if match and request.method in methods:
                values: dict[str, Any] = {
                    name: urllib.parse.unquote(value) for name, value in match.groupdict().items() if value is not None
                }
                if access is not None:
                    values["repository"] = self._open(request, values["repository"], access)
                return function(self, request, **values)
        raise HubError(501, f"The Hub of the tests does not know {request.method} {request.path}")

    def _open(self, request: Request, repo_id: str, access: str) -> Repository:
        """The repository, if the account may read or write it."""
        repository = self.repository(repo_id)
        exists = "/" in repo_id and repository.folder.is_dir()
        own = request.user == repo_id.split("/")[0]
        if not exists or (repository.state["private"] and not own):
            # The Hub sends no code with its 401, and the client takes any 401 of an https address for a missing repository.
            # From an http address it does so for the code only.
            if request.user is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        if "create_pr" in request.query:
            raise HubError(400, "The Hub of the tests has no pull requests")
        if access == "write":
            if request.user is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            if request.role != "write":
                raise HubError(403, "Authorization error.")
            if not own:
                raise HubError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repository

    def _page(self, request: Request, items: list[Any]) -> Reply:
        """A page of a list, with a link to the next one."""
        size = min(self.page_size, int(request.query.get("limit", [str(self.page_size)])[0]))
        start = int(request.query.get("cursor", ["0"])[0])
        headers = {}
        if start + size < len(items):
            query = urllib.parse.urlencode(request.query | {"cursor": [start + size]}, doseq=True)
            headers["Link"] = f'<{self.url}{request.path}?{query}>; rel="next"'
        return _json(items[start : start + size], headers=headers)

    # ------------------------------------------------------------------ accounts and repositories

    @_route("GET", "/api/whoami-v2", access=None)
    def _whoami(self, request: Request) -> Reply:
        if request.user is None:
            raise HubError(401, "Invalid username or password.")
        token = {"displayName": request.role, "role": request.role, "createdAt": "2024-01-01T00:00:00.000Z"}
        account = {"type": "user", "id": request.user, "name": request.user, "fullname": request.user, "orgs": []}
        return _json(account | {"auth": {"type": "access_token", "accessToken": token}})

    @_route("GET", "/api/agent-harnesses", access=None)
    def _agent_harnesses(self, request: Request) -> Reply:
        raise HubError(404, "Not found")  # the client goes without, and stores nothing

    @_route("POST", "/api/repos/create", access=None)
    def _create(self, request: Request) -> Reply:
        wanted = request.json()
        if request.user is None:
            raise HubError(401, "Invalid username or password.")
        owner = wanted.get("organization") or request.user
        repo_id = f"{owner}/{wanted['name']}"
        if request.role != "write" or owner != request.user:
            raise HubError(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        if wanted.get("type", "model") != "model":
            raise HubError(400, "The Hub of the tests has models only")
        known = {"url": f"{self.url}/{repo_id}", "name": repo_id, "id": repo_id}
        folder = self.repository(repo_id).folder
        if folder.is_dir():
            raise HubError(409, "You already created this model repo", **known)
        Repository.create(folder, repo_id, wanted.get("visibility") == "private" or bool(wanted.get("private")))
        return _json(known)

    @_route("POST", "/api/validate-yaml", access=None)
    def _validate(self, request: Request) -> Reply:
        _, errors, warnings = read_card(request.json()["content"])
        status = 400 if errors else 200
        if request.headers.get("Accept") == "text/plain":
            lines = [f"- Error: {line}" for line in errors] + [f"- Warning: {line}" for line in warnings]
            return Reply("\n".join(lines).encode(), status, {"Content-Type": "text/plain; charset=utf-8"})
        messages = {"errors": errors, "warnings": warnings}
        return _json({kind: [{"message": line} for line in lines] for kind, lines in messages.items()}, status)

    @_route("GET", f"{_MODEL}/auth-check")
    def _may_read(self, request: Request, repository: Repository) -> Reply:
        return _json({})

    @_route("GET", f"{_MODEL}/auth-check/write", access="write")
    def _may_write(self, request: Request, repository: Repository) -> Reply:
        return _json({})

    @_route("POST", f"{_MODEL}/branch/(?P<branch>[^/]+)", access="write")
    def _create_branch(self, request: Request, repository: Repository, branch: str) -> Reply:
        if branch.startswith("refs/"):
            raise HubError(400, f"Invalid reference for a branch: {branch}")
        if branch in repository.state["branches"]:
            raise HubError(409, f"Reference already exists: refs/heads/{branch}")
        repository.set_branch(branch, repository.resolve(request.json().get("startingPoint", "main"))["id"])
        return _json({})

    # ------------------------------------------------------------------ what is in a repository

    @_route("GET", f"{_MODEL}/refs")
    def _refs(self, request: Request, repository: Repository) -> Reply:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
            for name, oid in repository.state["branches"].items()
        ]
        return _json({"branches": branches, "converts": [], "tags": [], "pullRequests": []})

    @_route("GET", f"{_MODEL}/commits/(?P<revision>[^/]+)")
    def _commits(self, request: Request, repository: Repository, revision: str) -> Reply:
        commits = [
            {key: commit[key] for key in ("id", "title", "message", "date")} | {"authors": [{"user": commit["author"]}]}
            for commit in repository.history(revision)
        ]
        return self._page(request, commits)

    @_route("GET", f"{_MODEL}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
    def _tree(self, request: Request, repository: Repository, revision: str, path: str = "") -> Reply:
        tree = repository.resolve(revision)["tree"]
        prefix = f"{path.strip('/')}/" if path.strip("/") else ""
        below = [file for file in tree if file.startswith(prefix)]
        if prefix and not below:
            raise HubError(404, f'{path} does not exist on "{revision}"', "EntryNotFound")
        folders = {str(folder) for file in below for folder in PurePosixPath(file).parents} - {"."}
        listed = {item for item in [*below, *folders] if item.startswith(prefix)}
        if request.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            listed = {item for item in listed if "/" not in item[len(prefix) :]}
        return self._page(request, self._describe(request.query, repository, revision, sorted(listed)))

    @_route("POST", f"{_MODEL}/paths-info/(?P<revision>[^/]+)")
    def _paths(self, request: Request, repository: Repository, revision: str) -> Reply:
        form = urllib.parse.parse_qs(request.body.decode())
        return _json(self._describe(form, repository, revision, [path.strip("/") for path in form.get("paths", [])]))

    def _describe(
        self, query: dict[str, list[str]], repository: Repository, revision: str, paths: list[str]
    ) -> list[dict[str, Any]]:
        """The files and folders among the paths, with the last commit that changed them if the query wants to know."""
        expand = query.get("expand", ["false"])[0].lower() in ("true", "1")
        tree, described = repository.resolve(revision)["tree"], []

        def content(tree: dict[str, Any], path: str) -> dict[str, str]:
            return {file: tree[file]["sha256"] for file in tree if file == path or file.startswith(f"{path}/")}

        for path in paths:
            now = content(tree, path)
            if path in tree:
                size, lfs = tree[path]["size"], {}
                if tree[path]["lfs"]:
                    sha256 = tree[path]["sha256"]
                    lfs = {"lfs": {"oid": sha256, "size": size, "pointerSize": len(_pointer(sha256, size))}}
                described.append({"type": "file", "oid": tree[path]["oid"], "size": size, "path": path, **lfs})
            elif now:
                oid = hashlib.sha1(json.dumps(now, sort_keys=True).encode()).hexdigest()
                described.append({"type": "directory", "oid": oid, "size": 0, "path": path})
            else:
                continue
            if expand:
                for commit in repository.history(revision):
                    if content(commit["tree"], path) != now:
                        break
                    changed = commit
                described[-1]["lastCommit"] = {key: changed[key] for key in ("id", "title", "date")}
        return described

    @_route("GET", f"{_MODEL}(?:/revision/(?P<revision>[^/]+))?")
    def _info(self, request: Request, repository: Repository, revision: str = "main") -> Reply:
        state, commit = repository.state, repository.resolve(revision)
        tree = commit["tree"]
        card = read_card(repository.text(tree, "README.md"))[0]

        def values(key: str) -> list[str]:
            return [card[key]] if isinstance(card.get(key), str) else card.get(key, [])

        tags = values("tags") + values("library_name") + values("pipeline_tag")
        tags += ["safetensors"] * any(path.endswith(".safetensors") for path in tree)
        named = {"base_model": "base_model", "datasets": "dataset", "license": "license"}
        tags += [f"{name}:{value}" for key, name in named.items() for value in values(key)]
        siblings = [{"rfilename": path} for path in sorted(tree)]
        if "blobs" in request.query:
            for sibling in siblings:
                entry = tree[sibling["rfilename"]]
                sibling |= {"size": entry["size"], "blobId": entry["oid"]}
                if entry["lfs"]:
                    pointer = _pointer(entry["sha256"], entry["size"])
                    sibling["lfs"] = {"sha256": entry["sha256"], "size": entry["size"], "pointerSize": len(pointer)}
        info = {
            "_id": hashlib.sha1(state["id"].encode()).hexdigest()[:24],
            "id": state["id"],
            "modelId": state["id"],
            "author": state["id"].split("/")[0],
            "sha": commit["id"],
            "lastModified": commit["date"],
            "createdAt": state["created"],
            "private": state["private"],
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": list(dict.fromkeys(tags)),
            "siblings": siblings,
            "usedStorage": sum(path.stat().st_size for path in (repository.folder / "blobs").iterdir()),
        }
        info |= {"cardData": card} if card else {}
        info |= {key: card[key] for key in ("library_name", "pipeline_tag", "model-index") if key in card}
        if "expand" in request.query:
            info = {key: value for key, value in info.items() if key in ("_id", "id", *request.query["expand"])}
        return _json(info)

    @_route("GET HEAD", f"/{_REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def _download(self, request: Request, repository: Repository, revision: str, path: str) -> Reply:
        commit = repository.resolve(revision)
        headers = {"X-Repo-Commit": commit["id"], "Accept-Ranges": "bytes"}
        if path not in commit["tree"]:
            error = HubError(404, "Entry not found", "EntryNotFound")
            return _json(error.body, error.status, error.headers | headers)
        entry = commit["tree"][path]
        headers["ETag"] = f'"{entry["sha256" if entry["lfs"] else "oid"]}"'
        if entry["lfs"]:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(entry["size"])}
        data = repository.blob(entry["sha256"]).read_bytes()
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
        if wanted is None or wanted[0] == "bytes=-":
            return Reply(data, 200, headers)
        start = int(wanted[1]) if wanted[1] else max(len(data) - int(wanted[2]), 0)
        stop = min(int(wanted[2]) + 1, len(data)) if wanted[1] and wanted[2] else len(data)
        if start >= stop:
            return Reply(b"", 416, headers | {"Content-Range": f"bytes */{len(data)}"})
        return Reply(data[start:stop], 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})

    # ------------------------------------------------------------------ uploads and commits

    @_route("POST", f"{_MODEL}/preupload/(?P<revision>[^/]+)", access="write")
    def _preupload(self, request: Request, repository: Repository, revision: str) -> Reply:
        wanted, tree = request.json(), repository.resolve(revision)["tree"]
        gitignore = wanted.get("gitIgnore", repository.text(tree, ".gitignore"))
        answers = []
        for file in wanted["files"]:
            path = file["path"]
            large = repository.is_large(tree, path, file["size"], base64.b64decode(file["sample"], validate=True))
            answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": _ignored(path, gitignore)}
            if path in tree:
                answer["oid"] = tree[path]["sha256" if tree[path]["lfs"] else "oid"]
            answers.append(answer)
        return _json({"files": answers})

    @_route("POST", f"{_LFS}/batch", access="write")
    def _batch(self, request: Request, repository: Repository) -> Reply:
        wanted = request.json()
        if wanted["operation"] != "upload" or wanted["hash_algo"] != "sha256" or "basic" not in wanted["transfers"]:
            raise HubError(422, "The Hub of the tests knows basic uploads by SHA-256 only")
        answers = []
        for file in wanted["objects"]:
            answer: dict[str, Any] = {"oid": file["oid"], "size": file["size"]}
            if not repository.blob(file["oid"]).exists():
                repo_id, ticket = repository.state["id"], secrets.token_hex(8)
                self._uploads[ticket] = repository, file["oid"], file["size"]
                answer["authenticated"] = True
                answer["actions"] = {
                    # As with a storage service, what the address holds is the right to upload: no token is sent there.
                    "upload": {"href": f"{self.url}/storage/{repo_id}/{file['oid']}?signature={ticket}", "header": {}},
                    "verify": {"href": f"{self.url}/{repo_id}.git/info/lfs/objects/verify", "header": {}},
                }
            answers.append(answer)
        return _json({"transfer": "basic", "objects": answers})

    @_route("PUT", "/storage/.+/(?P<oid>[0-9a-f]{64})", access=None)
    def _upload(self, request: Request, oid: str) -> Reply:
        repository, expected, size = self._uploads.get(request.query.get("signature", [""])[0], (None, "", 0))
        if repository is None or expected != oid:
            raise HubError(403, "SignatureDoesNotMatch")
        if len(request.body) != size or hashlib.sha256(request.body).hexdigest() != oid:
            raise HubError(400, "BadDigest: this is not the content that was announced")
        repository.store(request.body)
        return Reply()

    @_route("POST", f"{_LFS}/verify", access="write")
    def _verify(self, request: Request, repository: Repository) -> Reply:
        wanted = request.json()
        blob = repository.blob(wanted["oid"])
        if not blob.exists() or blob.stat().st_size != wanted["size"]:
            raise HubError(404, f"The object {wanted['oid']} was not uploaded")
        return _json({})

    @_route("POST", f"{_MODEL}/commit/(?P<branch>[^/]+)", access="write")
    def _commit(self, request: Request, repository: Repository, branch: str) -> Reply:
        if branch not in repository.state["branches"]:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        parent = repository.resolve(branch)
        operations = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        header = operations[0]["value"]
        if operations[0]["key"] != "header" or not header.get("summary"):
            raise HubError(400, "A commit begins with a header that has a summary")
        if not parent["id"].startswith(header.get("parentCommit", "")):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        changes: dict[str, Any] = {}
        for operation in operations[1:]:
            value, kind = operation["value"], operation["key"]
            path = value["path"]
            if {"", ".", "..", ".git"} & set(path.removesuffix("/").split("/")):
                raise HubError(400, f"Invalid path: {path}")
            if kind in ("deletedFile", "deletedFolder"):
                what = kind.removeprefix("deleted").lower()
                folder = f"{path.removesuffix('/')}/"
                gone = [file for file in parent["tree"] if (file == path if what == "file" else file.startswith(folder))]
                if not gone:
                    raise HubError(404, f"A {what} with this name doesn't exist: {path}", "EntryNotFound")
                changes |= dict.fromkeys(gone)
            elif kind == "file":
                changes[path] = self._regular(repository, parent["tree"], path, value)
            elif kind == "lfsFile":
                blob = repository.blob(value["oid"])
                size = blob.stat().st_size if blob.exists() else None
                if value["algo"] != "sha256" or size is None or value.get("size", size) != size:
                    problem = "Your push was rejected because an LFS pointer pointed to a file that does not exist."
                    raise HubError(400, f"{problem} Offending file: {path}")
                changes[path] = _large_entry(value["oid"], size)
            else:
                raise HubError(400, f"Unknown operation: {kind}")
        oid = repository.commit(branch, changes, header["summary"], header.get("description", ""), request.user or "")
        url = f"{self.url}/{repository.state['id']}/commit/{oid}"
        return _json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def _regular(self, repository: Repository, tree: dict[str, Any], path: str, value: dict[str, Any]) -> bytes:
        """The content of a file that comes with the commit itself."""
        if value.get("encoding") != "base64":
            raise HubError(400, f"{path}: the encoding must be base64")
        try:
            data = base64.b64decode(value["content"], validate=True)
        except binascii.Error as error:
            raise HubError(400, f"{path}: {error}") from None
        if repository.is_large(tree, path, len(data), data[:512]):
            raise HubError(400, f"Your push was rejected because it contains binary or large files. Offending file: {path}")
        if path == "README.md":
            errors = read_card(data.decode(errors="replace"))[1]
            if errors:
                raise HubError(400, "\n- ".join(["Invalid metadata in README.md.", *errors]))
        return data


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, hub: HubServer):
        self.hub = hub
        self._connections: set[Any] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if isinstance(error, Exception) and not isinstance(error, OSError):  # else the client went away
            self.hub.errors.append(error)

    def close(self) -> None:
        """Leave no connection over which a client could still reach a Hub that is gone."""
        self.server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _handle(self) -> None:
        hub, target = self.server.hub, urllib.parse.urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        action = hub._take_fault(self.command, target.path)
        dropped = action == "drop-response" or (action == "drop" and not length)
        body = self.rfile.read(length // 2 if action == "drop" else length)
        if len(body) < length:
            hub.requests.append((self.command, target.path, None))
            self.close_connection = True
            return
        if callable(action):
            action()
        query = urllib.parse.parse_qs(target.query, keep_blank_values=True)
        request = Request(self.command, target.path, query, self.headers, body)
        status = 411 if "Transfer-Encoding" in self.headers else action if isinstance(action, int) else None
        reply = hub._answer(request, status)
        if status == 411:
            self.close_connection = True  # the body is still to come
        # Before the client can know of the answer: a test looks right after it.
        if target.path != "/api/agent-harnesses":  # asked for once by every process
            hub.requests.append((self.command, target.path, None if dropped else reply.status))
        self._send(reply, dropped)

    do_DELETE = do_GET = do_HEAD = do_PATCH = do_POST = do_PUT = _handle

    def _send(self, reply: Reply, dropped: bool) -> None:
        phrase = HTTPStatus(reply.status).phrase
        fields = {"Content-Length": str(len(reply.body)), **reply.headers}
        if self.close_connection:  # else a client may reuse it before it sees it closed
            fields["Connection"] = "close"
        lines = [f"HTTP/1.1 {reply.status} {phrase}", *(f"{name}: {value}" for name, value in fields.items())]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        body = b"" if self.command == "HEAD" else reply.body
        if dropped:
            head, body = (head, body[: len(body) // 2]) if len(body) > 1 else (head[: len(head) // 2], b"")
            self.close_connection = True
        self.wfile.write(head + body)
