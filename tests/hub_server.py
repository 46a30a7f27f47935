"""A Hugging Face Hub on loopback, for tests: what `huggingface_hub` uses of its protocol for model repositories.

    with HubServer(tmp_path) as hub:
        HfApi(endpoint=hub.url, token=hub.write_token).create_repo("user/model")
        subprocess.run([...], env=hub.environment())

Repositories live in the folder given, so a second server on it goes on where the first one stopped. As on the real Hub, a
new repository holds a `.gitattributes`, a commit adds to it the large files that its patterns do not cover, and README.md
is refused with invalid metadata. Left out: Xet storage, uploads in several parts, pull requests, tags, datasets and Spaces,
redirects of downloads, and the Hub's lists of the licences, languages and tasks that metadata may name.
"""

import contextlib
import inspect
import os
import re
import socket
import sys
import tempfile
import threading
import urllib.parse
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
from hub_answers import ROUTES, Answers
from hub_repository import INVALID_TOKEN, HubError, Reply, Repository, Request, as_json, large_entry
from huggingface_hub import ModelCard

needs_own_validation = pytest.mark.skipif(
    "https://huggingface.co/api" in inspect.getsource(ModelCard.validate),
    reason="this huggingface_hub has cards checked by huggingface.co, whatever Hub it is to use",
)


class HubServer(Answers):
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
                    changes[path] = large_entry(repository.store(data), len(data))
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
                raise HubError(status, INVALID_TOKEN if status == 401 else f"Fault {status}")
            with self._lock:
                return self._dispatch(request)
        except HubError as error:
            return as_json(error.body, error.status, error.headers)
        except Exception as error:  # one of this file: no client tries a 501 again, and the test learns of it
            self.errors.append(error)
            return as_json({"error": f"The Hub of the tests failed: {error!r}"}, 501)

    def _dispatch(self, request: Request) -> Reply:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token:
            if token not in self._accounts:
                raise HubError(401, INVALID_TOKEN)
            request.user, request.role = self._accounts[token]
        for methods, pattern, access, function in ROUTES:
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
        return as_json(items[start : start + size], headers=headers)


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
