"""What the Hub of the tests answers: the part of its protocol that `huggingface_hub` uses for model repositories."""

import base64
import binascii
import hashlib
import json
import re
import secrets
import urllib.parse
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from hub_repository import HubError, Reply, Repository, Request, as_json, ignored, large_entry, pointer_file, read_card

_Answer = Callable[..., Reply]
ROUTES: list[tuple[set[str], re.Pattern[str], str | None, _Answer]] = []
_REPOSITORY = r"(?P<repository>[^/]+(?:/[^/]+)?)"
_MODEL = f"/api/models/{_REPOSITORY}"
_LFS = rf"/{_REPOSITORY}\.git/info/lfs/objects"


def _route(methods: str, pattern: str, access: str | None = "read") -> Callable[[_Answer], _Answer]:
    """Register what answers the requests; where `access` is set, it gets the repository that the pattern names."""

    def register(function: _Answer) -> _Answer:
        ROUTES.append((set(methods.split()), re.compile(pattern), access, function))
        return function

    return register


class Answers:
    """What each request is answered, by a server that keeps the repositories, the accounts and the uploads."""

    url: str
    folder: Path
    _uploads: dict[str, tuple[Repository, str, int]]

    def repository(self, repo_id: str) -> Repository:
        """The repository of that name."""
        raise NotImplementedError

    def _page(self, request: Request, items: list[Any]) -> Reply:
        raise NotImplementedError

    # ------------------------------------------------------------------ accounts and repositories

    @_route("GET", "/api/whoami-v2", access=None)
    def _whoami(self, request: Request) -> Reply:
        if request.user is None:
            raise HubError(401, "Invalid username or password.")
        token = {"displayName": request.role, "role": request.role, "createdAt": "2024-01-01T00:00:00.000Z"}
        account = {"type": "user", "id": request.user, "name": request.user, "fullname": request.user, "orgs": []}
        return as_json(account | {"auth": {"type": "access_token", "accessToken": token}})

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
        return as_json(known)

    @_route("POST", "/api/validate-yaml", access=None)
    def _validate(self, request: Request) -> Reply:
        _, errors, warnings = read_card(request.json()["content"])
        status = 400 if errors else 200
        if request.headers.get("Accept") == "text/plain":
            lines = [f"- Error: {line}" for line in errors] + [f"- Warning: {line}" for line in warnings]
            return Reply("\n".join(lines).encode(), status, {"Content-Type": "text/plain; charset=utf-8"})
        messages = {"errors": errors, "warnings": warnings}
        return as_json({kind: [{"message": line} for line in lines] for kind, lines in messages.items()}, status)

    @_route("GET", f"{_MODEL}/auth-check")
    def _may_read(self, request: Request, repository: Repository) -> Reply:
        return as_json({})

    @_route("GET", f"{_MODEL}/auth-check/write", access="write")
    def _may_write(self, request: Request, repository: Repository) -> Reply:
        return as_json({})

    @_route("POST", f"{_MODEL}/branch/(?P<branch>[^/]+)", access="write")
    def _create_branch(self, request: Request, repository: Repository, branch: str) -> Reply:
        if branch.startswith("refs/"):
            raise HubError(400, f"Invalid reference for a branch: {branch}")
        if branch in repository.state["branches"]:
            raise HubError(409, f"Reference already exists: refs/heads/{branch}")
        repository.set_branch(branch, repository.resolve(request.json().get("startingPoint", "main"))["id"])
        return as_json({})

    # ------------------------------------------------------------------ what is in a repository

    @_route("GET", f"{_MODEL}/refs")
    def _refs(self, request: Request, repository: Repository) -> Reply:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
            for name, oid in repository.state["branches"].items()
        ]
        return as_json({"branches": branches, "converts": [], "tags": [], "pullRequests": []})

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
        return as_json(self._describe(form, repository, revision, [path.strip("/") for path in form.get("paths", [])]))

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
                    lfs = {"lfs": {"oid": sha256, "size": size, "pointerSize": len(pointer_file(sha256, size))}}
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
                    pointer = pointer_file(entry["sha256"], entry["size"])
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
        return as_json(info)

    @_route("GET HEAD", f"/{_REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def _download(self, request: Request, repository: Repository, revision: str, path: str) -> Reply:
        commit = repository.resolve(revision)
        headers = {"X-Repo-Commit": commit["id"], "Accept-Ranges": "bytes"}
        if path not in commit["tree"]:
            error = HubError(404, "Entry not found", "EntryNotFound")
            return as_json(error.body, error.status, error.headers | headers)
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
            answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": ignored(path, gitignore)}
            if path in tree:
                answer["oid"] = tree[path]["sha256" if tree[path]["lfs"] else "oid"]
            answers.append(answer)
        return as_json({"files": answers})

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
        return as_json({"transfer": "basic", "objects": answers})

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
        return as_json({})

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
                changes[path] = large_entry(value["oid"], size)
            else:
                raise HubError(400, f"Unknown operation: {kind}")
        oid = repository.commit(branch, changes, header["summary"], header.get("description", ""), request.user or "")
        url = f"{self.url}/{repository.state['id']}/commit/{oid}"
        return as_json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

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
