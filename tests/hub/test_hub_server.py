"""The Hub of the tests answers the real client as the real Hub does: repositories, commits, downloads and failures."""

import importlib
import json
import re
import subprocess
import sys
import threading
import time

import pytest
from hub_repository import read_card
from hub_server import HubServer, needs_own_validation
from huggingface_hub import (
    CommitOperationAdd as Add,
    CommitOperationCopy as Copy,
    CommitOperationDelete as Delete,
    HfApi,
    ModelCard,
    constants,
    get_session,
)
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import get_hf_file_metadata, hf_hub_url, http_get

# What the client sends its requests with has been `httpx` and is `httpx2`.
TransportError = importlib.import_module(HfHubHTTPError.__mro__[1].__module__).TransportError
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own uploads
MODEL = "user/model"
WEIGHTS = bytes(range(256)) * 400
CARD = "---\nlicense: mit\ntags: [robust]\nlibrary_name: timm\ndatasets: [cifar10]\n---\n# A model\n"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer(tmp_path / "hub") as server:
        server.attach(monkeypatch)
        yield server


@pytest.fixture
def api(hub):
    """The client with the write token, and a repository to write to."""
    client = HfApi(endpoint=hub.url, token=hub.write_token)
    client.create_repo(MODEL)
    hub.requests.clear()
    return client


@pytest.fixture
def impatient(monkeypatch):
    """Retries without the waiting in between."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def status_of(error):
    return error.value.response.status_code


def commit(api, files, parent=None, revision=None, message="A commit"):
    operations = [Add(path, data) for path, data in files.items()]
    return api.create_commit(MODEL, operations, commit_message=message, parent_commit=parent, revision=revision)


def steps(hub):
    """The requests in short: the method, and of the path the word that says what it is about."""
    words = re.compile("create|preupload|batch|storage|verify|commit|validate-yaml|revision|tree|resolve")
    return [f"{method} {words.search(path)[0]}" for method, path, _ in hub.requests]


def test_repositories_are_created_once(hub):
    api = HfApi(endpoint=hub.url, token=hub.write_token)
    assert api.whoami()["name"] == "user" and api.whoami()["auth"]["accessToken"]["role"] == "write"
    url = api.create_repo("model")  # of the token's owner
    assert (url.repo_id, str(url)) == (MODEL, f"{hub.url}/user/model")
    with pytest.raises(HfHubHTTPError, match="You already created this model repo") as error:
        api.create_repo(MODEL)
    assert status_of(error) == 409
    assert api.create_repo(MODEL, exist_ok=True) == url
    assert [status for _, path, status in hub.requests if path == "/api/repos/create"] == [200, 409, 409]
    assert api.list_repo_files(MODEL) == [".gitattributes"] == list(hub.files(MODEL))
    assert [(c.title, c.authors) for c in api.list_repo_commits(MODEL)] == [("initial commit", ["user"])]
    assert api.repo_exists(MODEL) and not api.repo_exists("user/other")
    with pytest.raises(BadRequestError, match="models only"):
        api.create_repo("user/data", repo_type="dataset")


def test_files_of_every_kind_come_back_as_committed(hub, api, tmp_path):
    files = {
        "README.md": CARD.encode(),
        "config.json": b'{"a": "\xc3\xa4"}',
        "model.safetensors": WEIGHTS,
        "pictures/of it.png": b"\x89PNG\0" + WEIGHTS[:99],
        "state": b"binary\0data",
        "long.txt": b"word " * (2 * 1024**2 + 1),
        "empty.bin": b"",
    }
    info = commit(api, files, message="All of it")
    assert info.commit_url == f"{hub.url}/user/model/commit/{info.oid}" and info.oid == hub.commits(MODEL)[0]["id"]
    stored = hub.files(MODEL)
    attributes = stored.pop(".gitattributes").decode()
    assert stored == files
    large = {path for path, entry in hub.tree(MODEL).items() if entry["lfs"]}
    assert large == {"model.safetensors", "pictures/of it.png", "state", "long.txt"}
    # What the names do not tell is written down, as on the Hub.
    assert [line.split()[0] for line in attributes.splitlines()[-2:]] == ["state", "long.txt"] and "*.png" in attributes
    assert sorted(steps(hub)) == sorted(
        ["POST validate-yaml", "POST preupload", "POST batch", *["PUT storage", "POST verify"] * 4, "POST commit"]
    )
    for path, data in files.items():
        downloaded = api.hf_hub_download(MODEL, path, cache_dir=tmp_path / "cache")
        assert info.oid in downloaded
        with open(downloaded, "rb") as file:
            assert file.read() == data
    metadata = get_hf_file_metadata(hf_hub_url(MODEL, "model.safetensors", endpoint=hub.url))
    assert (metadata.commit_hash, metadata.size) == (info.oid, len(WEIGHTS))
    assert metadata.etag == hub.tree(MODEL)["model.safetensors"]["sha256"]


def test_listings_of_a_repository(hub, api):
    first = commit(api, {"README.md": CARD.encode(), "a/b/deep.txt": b"1", "a/c.txt": b"2"}).oid
    second = commit(api, {"a/c.txt": b"3", "m.safetensors": WEIGHTS}, message="Second").oid
    assert {item.path for item in api.list_repo_tree(MODEL)} == {".gitattributes", "README.md", "a", "m.safetensors"}
    assert [item.path for item in api.list_repo_tree(MODEL, "a", recursive=True)] == ["a/b", "a/b/deep.txt", "a/c.txt"]
    expanded = {item.path: item for item in api.list_repo_tree(MODEL, recursive=True, expand=True)}
    assert expanded["a/c.txt"].last_commit.oid == second == expanded["a"].last_commit.oid
    assert expanded["a/b"].last_commit.oid == first == expanded["README.md"].last_commit.oid
    assert expanded["m.safetensors"].lfs.sha256 == hub.tree(MODEL)["m.safetensors"]["sha256"]
    assert expanded["m.safetensors"].size == len(WEIGHTS) and expanded["a/c.txt"].lfs is None
    assert [item.path for item in api.get_paths_info(MODEL, ["a", "README.md", "none"])] == ["a", "README.md"]
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(MODEL, "none"))

    info = api.model_info(MODEL, files_metadata=True)
    assert (info.sha, info.private, info.library_name, info.card_data.license) == (second, False, "timm", "mit")
    assert set(info.tags) == {"robust", "timm", "safetensors", "dataset:cifar10", "license:mit"}
    sizes = {sibling.rfilename: (sibling.size, sibling.lfs and sibling.lfs.size) for sibling in info.siblings}
    assert sizes["m.safetensors"] == (len(WEIGHTS), len(WEIGHTS)) and sizes["a/c.txt"] == (1, None)
    assert api.model_info(MODEL, revision=first).sha == first == api.model_info(MODEL, revision=first[:7]).sha
    assert api.model_info(MODEL, expand=["likes"]).sha is None
    commits = api.list_repo_commits(MODEL)
    assert [c.title for c in commits] == ["Second", "A commit", "initial commit"] and commits[1].commit_id == first


def test_long_listings_come_in_pages(tmp_path, monkeypatch):
    with HubServer(tmp_path / "hub", page_size=2) as hub:
        hub.attach(monkeypatch)
        api = HfApi(endpoint=hub.url, token=hub.write_token)
        api.create_repo(MODEL)
        commit(api, {f"{i}.txt": b"." for i in range(4)})
        hub.requests.clear()
        assert len(list(api.list_repo_tree(MODEL))) == 5 and len(hub.requests) == 3


def test_what_has_not_changed_is_not_sent_again(hub, api):
    first = commit(api, {"config.json": b"{}", "a.safetensors": WEIGHTS}).oid
    hub.requests.clear()
    assert commit(api, {"config.json": b"{}", "a.safetensors": WEIGHTS}).oid == first
    assert steps(hub) == ["POST preupload", "POST batch", "GET revision"]
    hub.requests.clear()
    commit(api, {"config.json": b"{ }", "b.safetensors": WEIGHTS})  # the content is there under another name
    assert steps(hub) == ["POST preupload", "POST batch", "POST commit"]
    assert hub.files(MODEL)["b.safetensors"] == WEIGHTS and hub.files(MODEL, first)["config.json"] == b"{}"


def test_folders_are_uploaded_and_files_deleted_and_copied(hub, api, tmp_path):
    folder = tmp_path / "model"
    (folder / "logs").mkdir(parents=True)
    files = {"config.json": b"{}", "w.bin": WEIGHTS, "logs/1.txt": b"1", "notes.tmp": b"", ".gitignore": b"*.tmp\nlogs/\n"}
    for path, data in files.items():
        (folder / path).write_bytes(data)
    commit(api, {"old.txt": b"old", "kept.md": b"kept", "d/1.bin": WEIGHTS[:9], "d/2.txt": b"2"})
    api.upload_folder(repo_id=MODEL, folder_path=folder, delete_patterns="*.txt")
    assert set(hub.files(MODEL)) == {".gitattributes", ".gitignore", "config.json", "w.bin", "kept.md", "d/1.bin"}
    api.create_commit(
        MODEL,
        [Delete("d/"), Delete("kept.md"), Copy("w.bin", "x.bin"), Copy("config.json", "y.json")],
        commit_message="Move",
    )
    files = hub.files(MODEL)
    assert set(files) == {".gitattributes", ".gitignore", "config.json", "w.bin", "x.bin", "y.json"}
    assert files["x.bin"] == WEIGHTS and files["y.json"] == b"{}"
    for path in ("none.txt", "none/"):
        with pytest.raises(RemoteEntryNotFoundError, match="with this name doesn't exist"):
            api.create_commit(MODEL, [Delete(path)], commit_message="Gone")


def test_a_commit_goes_on_top_of_the_parent_it_names(hub, api):
    first = commit(api, {"a.txt": b"1"}).oid
    second = commit(api, {"a.txt": b"2"}, parent=first).oid
    third = commit(api, {"a.txt": b"3"}, parent=second[:7]).oid
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        commit(api, {"a.txt": b"4"}, parent=second)
    assert status_of(error) == 412
    assert [c["id"] for c in hub.commits(MODEL)][:3] == [third, second, first]
    hub.fail("POST", "/commit/main$", 409)
    with pytest.raises(HfHubHTTPError) as error:
        commit(api, {"a.txt": b"4"}, parent=third)
    assert status_of(error) == 409
    # Someone else is faster: after the client looked, before it commits.
    hub.fail("POST", "/commit/main$", lambda: hub.commit(MODEL, {"b.txt": b"b", "b.bin": WEIGHTS}))
    with pytest.raises(HfHubHTTPError) as error:
        commit(api, {"a.txt": b"4"}, parent=third)
    assert status_of(error) == 412
    assert hub.files(MODEL)["a.txt"] == b"3" and hub.files(MODEL)["b.bin"] == WEIGHTS and hub.tree(MODEL)["b.bin"]["lfs"]


def test_commits_at_the_same_time(hub, api):
    head, outcomes = api.model_info(MODEL).sha, []

    def write(name, parent):
        try:
            outcomes.append(commit(api, {f"{name}.txt": name.encode(), f"{name}.bin": name.encode()}, parent).oid)
        except HfHubHTTPError as error:
            outcomes.append(error.response.status_code)

    for parent in (head, None):
        outcomes.clear()
        threads = [threading.Thread(target=write, args=(f"{i}-{parent}", parent)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes.count(412) == (5 if parent else 0)
    assert len(set(outcomes)) == 6 and len(hub.commits(MODEL)) == 1 + 7
    assert len(hub.files(MODEL)) == 1 + 2 * 7  # none lost


def test_branches_and_revisions(hub, api, tmp_path):
    first = commit(api, {"a.txt": b"1"}).oid
    api.create_branch(MODEL, branch="next/one")
    second = commit(api, {"a.txt": b"2"}, revision="next/one").oid
    api.create_branch(MODEL, branch="old", revision=first)
    refs = {branch.name: branch.target_commit for branch in api.list_repo_refs(MODEL).branches}
    assert refs == {"main": first, "next/one": second, "old": first}
    for revision, data in {"main": b"1", "next/one": b"2", first: b"1", second: b"2"}.items():
        with open(api.hf_hub_download(MODEL, "a.txt", revision=revision, cache_dir=tmp_path), "rb") as file:
            assert file.read() == data
    with pytest.raises(HfHubHTTPError) as error:
        api.create_branch(MODEL, branch="old")
    assert status_of(error) == 409
    api.create_branch(MODEL, branch="old", exist_ok=True)
    with pytest.raises(BadRequestError, match="Invalid reference"):
        api.create_branch(MODEL, branch="refs/pr/1")
    with pytest.raises(RevisionNotFoundError):
        commit(api, {"a.txt": b"3"}, revision="none")
    assert api.revision_exists(MODEL, "old") and not api.revision_exists(MODEL, "none")


def test_what_is_missing_has_its_own_error(hub, api, tmp_path):
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download(MODEL, "none.txt", cache_dir=tmp_path)
    head = hub.commits(MODEL)[0]["id"]
    assert (tmp_path / "models--user--model" / ".no_exist" / head / "none.txt").exists()  # the client notes it
    assert not api.file_exists(MODEL, "none.txt") and api.file_exists(MODEL, ".gitattributes")
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(MODEL, ".gitattributes", revision="none", cache_dir=tmp_path)
    for missing in ("user/none", "none"):
        with pytest.raises(RepositoryNotFoundError) as error:
            api.hf_hub_download(missing, "config.json", cache_dir=tmp_path)
        assert status_of(error) == 404


def test_tokens_decide_who_may_do_what(hub, api, tmp_path):
    api.create_repo("user/secret", private=True)
    hub.commit("user/secret", {"a.txt": b"secret"})
    reader, other, stranger, expired = (
        HfApi(endpoint=hub.url, token=token) for token in (hub.read_token, hub.other_token, False, "hf_expired")
    )
    assert reader.model_info("user/secret").private and reader.whoami()["auth"]["accessToken"]["role"] == "read"
    reader.hf_hub_download("user/secret", "a.txt", cache_dir=tmp_path)
    for client, code in ((stranger, 401), (other, 404)):
        for read in (
            lambda client=client: client.model_info("user/secret"),
            lambda client=client: client.hf_hub_download("user/secret", "a.txt", cache_dir=tmp_path / "other"),
        ):
            with pytest.raises(RepositoryNotFoundError) as error:
                read()
            assert status_of(error) == code
        assert client.model_info(MODEL).id == MODEL
    for client, code in ((reader, 403), (other, 403), (stranger, 401), (expired, 401)):
        for write in (
            lambda client=client: client.create_repo("user/new"),
            lambda client=client: client.create_branch(MODEL, branch="b"),
            lambda client=client: commit(client, {"a.txt": b"a"}),
        ):
            with pytest.raises(HfHubHTTPError) as error:
                write()
            assert status_of(error) == code
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        expired.whoami()
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as error:
        expired.model_info(MODEL)
    assert not isinstance(error.value, RepositoryNotFoundError)
    api.auth_check(MODEL, write=True)
    with pytest.raises(HfHubHTTPError):
        reader.auth_check(MODEL, write=True)
    assert len(hub.commits(MODEL)) == 1 and not hub.repository("user/new").folder.exists()


def test_parts_of_files(hub, api):
    commit(api, {"w.bin": WEIGHTS})
    url = hf_hub_url(MODEL, "w.bin", endpoint=hub.url)
    parts = {"5-9": (5, 10), "102390-": (102390, 102400), "-7": (102393, 102400), "9-999999": (9, 102400)}
    for wanted, (start, stop) in parts.items():
        response = get_session().get(url, headers={"Range": f"bytes={wanted}"})
        assert response.status_code == 206 and response.content == WEIGHTS[start:stop]
        assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/102400"
    response = get_session().get(url, headers={"Range": "bytes=102400-"})
    assert response.status_code == 416 and response.headers["Content-Range"] == "bytes */102400"


def test_a_download_that_breaks_off_is_resumed(hub, api, tmp_path, impatient, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**16)  # what it has of a last, shorter chunk the client drops
    weights = WEIGHTS * 20
    commit(api, {"w.bin": weights})
    hub.requests.clear()
    hub.fail("GET", "/resolve/main/w.bin$", "drop", times=2)
    with open(tmp_path / "part", "w+b") as file:
        http_get(hf_hub_url(MODEL, "w.bin", endpoint=hub.url), file, expected_size=len(weights))
        file.seek(0)
        assert file.read() == weights
    assert [status for _, _, status in hub.requests] == [None, None, 206]
    hub.fail("GET", "/resolve/main/w.bin$", "drop")
    downloaded = api.hf_hub_download(MODEL, "w.bin", cache_dir=tmp_path)
    with open(downloaded, "rb") as file:
        assert file.read() == weights
    assert [status for _, _, status in hub.requests[3:]] == [200, None, 206]  # of the HEAD, and of two GETs


def test_an_upload_that_breaks_off_is_sent_again(hub, api, impatient):
    hub.fail("POST", "/preupload/", 500)
    hub.fail("POST", "/objects/batch$", 503)
    hub.fail("PUT", "/storage/", "drop")
    hub.fail("PUT", "/storage/", "drop-response")
    commit(api, {"w.bin": WEIGHTS * 50, "config.json": b"{}"})
    assert hub.files(MODEL)["w.bin"] == WEIGHTS * 50
    assert [status for _, _, status in hub.requests] == [500, 200, 503, 200, None, None, 200, 200, 200]


def test_a_failure_that_stays_is_an_error(hub, api, impatient):
    hub.fail("PUT", "/storage/", 500, times=float("inf"))
    with pytest.raises(RuntimeError, match="Error while uploading"):
        commit(api, {"w.bin": WEIGHTS})
    assert [request[0] for request in hub.requests].count("PUT") == 6 and len(hub.commits(MODEL)) == 1
    hub.fail("GET", "/api/models/user/model$", 401)
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        api.model_info(MODEL)


def test_a_commit_whose_connection_breaks_is_not_sent_again(hub, api):
    hub.fail("POST", "/commit/main$", "drop")
    with pytest.raises(TransportError):
        commit(api, {"a.txt": b"1"})
    assert len(hub.commits(MODEL)) == 1
    hub.fail("POST", "/commit/main$", "drop-response")  # made, but the client does not learn of it
    with pytest.raises(TransportError):
        commit(api, {"a.txt": b"1"})
    assert hub.files(MODEL)["a.txt"] == b"1"
    assert commit(api, {"a.txt": b"1"}).oid == hub.commits(MODEL)[0]["id"] and len(hub.commits(MODEL)) == 2


def test_what_a_commit_may_not_hold(hub, api):
    def post(*operations, header=None, **params):
        lines = [{"key": "header", "value": header or {"summary": "s"}}, *operations]
        return get_session().post(
            f"{hub.url}/api/models/{MODEL}/commit/main",
            content=b"\n".join(json.dumps(line).encode() for line in lines),
            headers={"Authorization": f"Bearer {hub.write_token}"},
            params=params,
        )

    def file(path, content, encoding="base64"):
        return {"key": "file", "value": {"path": path, "content": content, "encoding": encoding}}

    pointer = {"key": "lfsFile", "value": {"path": "w.bin", "algo": "sha256", "oid": "0" * 64, "size": 3}}
    for refused, reason in (
        (post(pointer), "pointed to a file that does not exist"),
        (post(file("w.bin", "AAAA")), "contains binary or large files"),
        (post(file("w.txt", "AAAA")), "contains binary or large files"),
        (post(file("a.txt", "no base64!")), "a.txt"),
        (post(file("a.txt", "text", "utf-8")), "base64"),
        (post(file("../a.txt", "YQ==")), "Invalid path"),
        (post(file("README.md", "LS0tCmxpY2Vuc2U6IDEKLS0tCg==")), '"license" must be a string'),
        (post({"key": "copyFile", "value": {"path": "a"}}), "Unknown operation"),
        (post(header={"summary": ""}), "summary"),
        (post(file("a.txt", "YQ=="), create_pr="1"), "no pull requests"),
    ):
        assert refused.status_code == 400 and reason in refused.json()["error"]
    with pytest.raises(BadRequestError, match="no pull requests"):
        api.upload_file(path_or_fileobj=b"a", path_in_repo="a.txt", repo_id=MODEL, create_pr=True)
    assert len(hub.commits(MODEL)) == 1
    assert post(file("a.txt", "YQ==")).status_code == 200 and hub.files(MODEL)["a.txt"] == b"a"


def test_an_upload_must_be_what_was_announced(hub, api):
    token = {"Authorization": f"Bearer {hub.write_token}"}
    announced = {"oid": "0" * 64, "size": 3}
    wanted = {"operation": "upload", "transfers": ["basic"], "hash_algo": "sha256", "objects": [announced]}
    answer = get_session().post(f"{hub.url}/{MODEL}.git/info/lfs/objects/batch", json=wanted, headers=token)
    actions = answer.json()["objects"][0]["actions"]
    address = actions["upload"]["href"]
    assert get_session().put(address, content=b"abc").status_code == 400
    assert get_session().put(address, content=b"longer").status_code == 400
    assert get_session().put(address.split("?")[0], content=b"abc").status_code == 403
    assert get_session().put(address, content=iter([b"abc"])).status_code == 411  # no length
    assert get_session().post(actions["verify"]["href"], json=announced, headers=token).status_code == 404


@pytest.mark.parametrize(
    "metadata, problem",
    [
        ("license: mit\ntags: robust\nlanguage: [en]", None),
        ("license: [mit", "no valid YAML"),
        ("- a list", "must be an object"),
        ("language: no", '"language" must be'),
        ("datasets: [null]", '"datasets[0]" must be a string'),
        ("pipeline_tag: [x]", '"pipeline_tag" must be a string'),
        ("widget: text", '"widget" must be an array'),
        ("model-index: [{name: m, results: [{task: {type: t}, metrics: [{type: accuracy}]}]}]", "results[0].dataset.type"),
        ("model-index: [{name: m, results: [{task: {type: t}, metrics: [{type: accuracy}]}]}]", "metrics[0].value"),
    ],
)
def test_metadata_of_a_card(metadata, problem):
    errors = read_card(f"---\n{metadata}\n---\nText\n")[1]
    assert not errors if problem is None else problem in "\n".join(errors)


@needs_own_validation
def test_model_cards_are_checked(hub, api):
    ModelCard(CARD).validate()
    with pytest.raises(ValueError, match='- Error: "widget" must be an array'):
        ModelCard(CARD.replace("license: mit", "widget: text")).validate()
    with pytest.raises(ValueError, match="Invalid metadata in README"):
        commit(api, {"README.md": b"---\nlicense: [mit\n---\n", "w.bin": WEIGHTS})
    assert steps(hub)[-1] == "POST validate-yaml"  # before anything is uploaded
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        commit(api, {"README.md": b"# No metadata\n"})
    assert api.model_info(MODEL).card_data is None


@needs_own_validation
def test_a_process_uses_the_hub_by_its_environment(hub, api):
    script = """
import json, sys
from huggingface_hub import ModelCard, hf_hub_download, snapshot_download, upload_folder, whoami
card = ModelCard(sys.stdin.read())
card.push_to_hub("user/model")
folder = snapshot_download("user/model")
upload_folder(repo_id="user/model", folder_path=folder, path_in_repo="copy", ignore_patterns=".gitattributes")
print(json.dumps({
    "folder": folder,
    "card": str(ModelCard.load("user/model")),
    "weights": hf_hub_download("user/model", "copy/w.safetensors"),
    "user": whoami()["name"],
}))
"""
    commit(api, {"w.safetensors": WEIGHTS})
    environment = hub.environment()
    run = subprocess.run([sys.executable, "-c", script], input=CARD, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["card"] == str(ModelCard(CARD)) and result["user"] == "user"
    assert result["folder"].startswith(environment["HF_HOME"])
    with open(result["weights"], "rb") as file:
        assert file.read() == WEIGHTS
    assert set(hub.files(MODEL)) == {".gitattributes", "README.md", "w.safetensors", "copy/README.md", "copy/w.safetensors"}
    assert hub.environment()["HF_HOME"] != environment["HF_HOME"] and "HF_TOKEN" not in hub.environment(token=False)


def test_a_hub_that_is_gone_and_one_that_comes_back(tmp_path, monkeypatch):
    with HubServer(tmp_path) as hub:
        hub.attach(monkeypatch)
        api = HfApi(endpoint=hub.url, token=hub.write_token)
        api.create_repo(MODEL, private=True)
        head = commit(api, {"w.bin": WEIGHTS}).oid
    with pytest.raises(TransportError):
        api.model_info(MODEL)
    with HubServer(tmp_path) as hub:
        info = HfApi(endpoint=hub.url, token=hub.read_token).model_info(MODEL)
        assert (info.sha, info.private) == (head, True) and hub.files(MODEL)["w.bin"] == WEIGHTS


def test_its_own_failures_are_not_lost(tmp_path, monkeypatch):
    with pytest.raises(json.JSONDecodeError), HubServer(tmp_path) as hub:
        hub.attach(monkeypatch)
        assert get_session().post(f"{hub.url}/api/validate-yaml", content=b"{").status_code == 501


def test_a_request_it_does_not_know_is_no_silent_success(hub, api):
    with pytest.raises(HfHubHTTPError, match="does not know POST") as error:
        api.create_tag(MODEL, tag="v1")
    assert status_of(error) == 501
