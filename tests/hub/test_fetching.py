"""Robust sources by name, from a Hub on loopback: fetched once, imported, proven, and named in what is made of them."""

import json
import resource
import shutil
import subprocess
import sys
import threading
from dataclasses import replace

import made_sources as made
import pytest
import timm
import torch
from data_folders import write_splits
from hub_server import HubServer
from huggingface_hub import ModelCard, constants
from safetensors.torch import load, save
from transformers import AutoModelForImageClassification

from hf_robust_transfer.cli.main import run_command
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.hub import publish
from hf_robust_transfer.hub.origin import describe_origin
from hf_robust_transfer.modeling import PixelClassifier, load_model
from hf_robust_transfer.modeling.fetching import fetch_source, source_folder
from hf_robust_transfer.modeling.source_list import SOURCES
from hf_robust_transfer.provenance import Origin, TrainedFor
from hf_robust_transfer.sharing import check_for_secrets, shareable

LABELS = {0: "cat", 1: "dog"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer(tmp_path / "hub") as server:
        server.attach(monkeypatch)
        for source in made.ALL:
            monkeypatch.setitem(SOURCES, source.name, source)
        yield server


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


def fill(hub, source, license="mit"):
    """Put what a source names on the Hub; its commit, and a function from normalised images to what it gives."""
    if source is made.MADRY:
        network = made.classifier(source)
        return made.repository(hub, source.repo_id, {source.files[0]: made.madry_file(network)}, license), network
    if source is made.CIFAR:  # saved by `DataParallel`, beside what training needed
        network = made.cifar_network()
        weights = {f"module.0.{name}": tensor for name, tensor in network.state_dict().items()}
        commit = made.repository(hub, source.repo_id, {source.files[0]: made.saved({"model_state_dict": weights})}, license)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (source.mean, source.std))
        return commit, lambda images: network(images * std + mean)
    if source is made.CONVNEXT:
        trunk, weights = made.convnext_in_open_clip()
        projection = weights["visual.head.proj.weight"]
        commit = made.repository(hub, source.repo_id, {source.files[1]: made.saved(weights)}, license)
        return commit, lambda images: trunk(images) @ projection.T
    clip = made.clip_model()
    files = made.of_transformers(clip) if source is made.LEAF else {source.files[1]: made.saved(made.in_open_clip(clip))}
    commit = made.repository(hub, source.repo_id, files, license)
    return commit, lambda images: clip.visual_projection(clip.vision_model(images).pooler_output)


@pytest.mark.parametrize("source", made.ALL[:5], ids=lambda source: source.name)
def test_a_source_is_loaded_by_its_name_and_gives_what_the_original_gives(hub, cache, source):
    commit, original = fill(hub, source)
    model, processor = load_model(source.name, cache_dir=cache)
    side = source.input_size
    images = torch.rand(2, 3, side, side)
    normalised = (images - torch.tensor(source.mean).view(3, 1, 1)) / torch.tensor(source.std).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(PixelClassifier(model, processor)(images), original(normalised), rtol=1e-4, atol=1e-4)
    record = TrainedFor.of(model.config)
    origin = record.origin
    assert (record.norm, record.eps) == (source.norm, source.eps) == (origin.norm, origin.eps)
    assert (origin.name, origin.model_id, origin.revision) == (source.name, source.repo_id, commit)
    assert origin.license == "mit" and len(origin.sha256) == 64
    if source is made.MADRY:
        assert model.config.id2label[0] == "tench, Tinca tinca" and model.num_labels == 1000
    if source is made.CIFAR:
        assert model.config.id2label[9] == "truck" and model.num_labels == 10

    # The second time nobody is asked.
    hub.requests.clear()
    again, _ = load_model(source.name, id2label=LABELS, cache_dir=cache)
    assert not hub.requests and again.config.id2label == LABELS and again.name_or_path == source.name


@pytest.mark.parametrize("kind", ["in parts", "pickled"])
def test_a_clip_of_transformers_may_be_in_several_files_or_pickled(hub, cache, kind):
    clip = made.clip_model()
    files = made.of_transformers(clip)
    weights = load(files.pop("model.safetensors"))
    if kind == "pickled":
        files["pytorch_model.bin"] = made.saved(weights)
    else:
        names = sorted(weights)
        for part in (0, 1):
            files[f"model-0000{part + 1}-of-00002.safetensors"] = save({name: weights[name] for name in names[part::2]})
        files["model.safetensors.index.json"] = b"{}"
    made.repository(hub, made.LEAF.repo_id, files)
    model, _ = load_model(made.LEAF.name, cache_dir=cache)
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        expected = clip.visual_projection(clip.vision_model(images).pooler_output)
        torch.testing.assert_close(model(images).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_local_folder_goes_before_a_source_of_its_name(hub, cache, tiny, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    for part in tiny("timm-convnext"):
        part.save_pretrained(made.MADRY.name)
    hub.requests.clear()
    assert load_model(made.MADRY.name, cache_dir=cache)[0].config.architecture == "convnext_tiny"
    assert not hub.requests and "small-madry is a folder here" in caplog.text


def test_another_revision_is_another_source(hub, cache):
    first, _ = fill(hub, made.MADRY)
    second = hub.commit(made.MADRY.repo_id, {made.MADRY.files[0]: made.madry_file(made.classifier(made.MADRY))})
    models = [load_model(made.MADRY.name, cache_dir=cache, revision=each)[0] for each in (first, "main")]
    assert [TrainedFor.of(model.config).origin.revision for model in models] == [first, second]


# ---- what can go wrong ----


def test_without_a_network_it_is_said_how_to_go_on(hub, cache, monkeypatch):
    fill(hub, made.MADRY)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UsageError, match=r"not here yet.*hf download madrylab/small-models.*sources small-madry --file FILE"
    ):
        load_model("small-madry", cache_dir=cache)
    assert not list(source_folder(made.MADRY, cache_dir=cache).parent.glob("small*y-????????"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    load_model("small-madry", cache_dir=cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    load_model("small-madry", cache_dir=cache)  # kept


@pytest.mark.parametrize(
    "change, files, words",
    [
        ({"sha256": 64 * "0"}, {}, "is not the file of small-madry: its sha256"),
        ({"files": ("another.ckpt",)}, {}, "cannot be downloaded .*Entry Not Found"),
        ({"repo_id": "madrylab/none"}, {}, "cannot be downloaded"),
        ({"architecture": "resnet34"}, {}, "do not fit resnet34"),
        ({}, {"classes": 10}, "10 classes, not of ImageNet's 1000"),
        ({}, {"broken": float("inf")}, "not finite"),
        ({}, {"huge": 1e38}, "logits that are not finite"),
        ({}, {"bytes": b"<!doctype html><html>quota</html>"}, "a web page"),
    ],
)
def test_a_source_that_is_not_what_it_should_be_is_refused_and_not_kept(hub, cache, monkeypatch, change, files, words):
    network = timm.create_model("resnet18", num_classes=files.get("classes", 1000), **made.MADRY.model_args)
    network.fc.bias.data[0] = files.get("broken", 0.0)
    if "huge" in files:
        network.fc.weight.data *= files["huge"]
        network.bn1.bias.data += 1e5
    made.repository(hub, made.MADRY.repo_id, {made.MADRY.files[0]: files.get("bytes", made.madry_file(network))})
    source = replace(made.MADRY, **change)
    monkeypatch.setitem(SOURCES, source.name, source)
    with pytest.raises(UsageError, match=words):
        load_model(source.name, cache_dir=cache)
    assert not [each for each in source_folder(source, cache_dir=cache).parent.iterdir() if each.suffix != ".lock"]


def test_a_full_disk_leaves_nothing_half(hub, cache):
    fill(hub, made.MADRY)
    fetch_source(made.MADRY, cache_dir=cache)
    shutil.rmtree(source_folder(made.MADRY, cache_dir=cache))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(UsageError, match="source small-madry cannot be kept in"):
            fetch_source(made.MADRY, cache_dir=cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    left = [each.name for each in source_folder(made.MADRY, cache_dir=cache).parent.iterdir()]
    assert all(name.endswith(".lock") for name in left)
    load_model("small-madry", cache_dir=cache)


def test_what_a_killed_process_left_is_cleared_away(hub, cache):
    fill(hub, made.MADRY)
    folder = source_folder(made.MADRY, cache_dir=cache)
    stale = folder.with_name(f".{folder.name}-abc") / folder.name
    stale.mkdir(parents=True)
    (stale / "config.json").write_text("{")
    load_model("small-madry", cache_dir=cache)
    assert not stale.parent.exists()


def test_of_two_at_once_one_imports(hub, cache):
    fill(hub, made.MADRY)
    folders, errors = [], []

    def fetch():
        try:
            folders.append(fetch_source(made.MADRY, cache_dir=cache))
        except Exception as error:  # of another thread, for this one
            errors.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(set(folders)) == 1
    assert sum(path.endswith(".ckpt") for method, path, _ in hub.requests if method == "GET") == 1


# ---- sources on no Hub, and the list ----


def test_the_file_of_a_source_on_no_hub_is_imported_once_and_then_has_its_name(hub, cache, tmp_path, error_of, capsys):
    error = error_of("finetune", "--model_name_or_path", "small-ares", "--output_dir", tmp_path / "run")
    assert "dataset" in error  # the data comes first
    with pytest.raises(UsageError, match=r"download its file from https://example\.org/ARES_small_AT\.pth.*--file FILE"):
        load_model("small-ares", cache_dir=cache)
    network = made.classifier(made.BY_FILE)
    file = tmp_path / "ARES_small_AT.pth"
    file.write_bytes(made.saved({"state_dict": network.state_dict(), "epoch": 3}))
    run_command("sources", ["small-ares", "--file", str(file), "--cache_dir", cache])
    assert "--model_name_or_path small-ares" in capsys.readouterr().out
    model, _ = load_model("small-ares", cache_dir=cache)
    assert TrainedFor.of(model.config).origin.url == made.BY_FILE.url
    assert "delete" in error_of("sources", "small-ares", "--file", file, "--cache_dir", cache)
    run_command("sources", ["small", "--cache_dir", cache])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("small")}
    assert "  here  " in lines["small-ares"] and "  here  " not in lines["small-madry"] and len(lines) == 6


def test_the_file_of_a_clip_needs_its_configuration_beside_it(hub, cache, tmp_path):
    clip = made.clip_model()
    files = made.of_transformers(clip)
    (tmp_path / "model.safetensors").write_bytes(files["model.safetensors"])
    with pytest.raises(UsageError, match=r"model\.safetensors needs the config\.json of its repository beside it"):
        fetch_source(made.LEAF, file=tmp_path / "model.safetensors", cache_dir=cache)
    (tmp_path / "config.json").write_bytes(files["config.json"])
    fetch_source(made.LEAF, file=tmp_path / "model.safetensors", cache_dir=cache)
    model, _ = load_model("small-leaf", cache_dir=cache)
    assert TrainedFor.of(model.config).origin.revision is None


def test_what_is_said_of_a_source_s_origin_may_be_published():
    for source in SOURCES.values():
        known = {"model_id": source.repo_id, "url": source.url, "license": source.license, "eps": source.eps}
        origin = Origin(name=source.name, norm=source.norm, reference=source.reference, **known)
        check_for_secrets("README.md", describe_origin(origin))
        assert shareable(origin.to_dict()) == origin.to_dict()


def test_the_list_is_json_too_and_says_when_nothing_is_found(capsys, error_of):
    run_command("sources", ["resnet18", "linf-eps4", "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    assert found["name"] == "salman2020-resnet18-linf-eps4" and found["robust"] == 25.32
    assert "no source has 'nonsense'" in error_of("sources", "nonsense")
    assert "is the file of one source" in error_of("sources", "resnet18", "--file", "a.pt")


# ---- what is made of them ----


def finetune(source, images, output, cache, *options):
    run_command(
        "finetune",
        [
            *("--model_name_or_path", source, "--dataset_name", str(images), "--output_dir", str(output)),
            *("--max_steps", "2", "--per_device_train_batch_size", "8", "--eval_attack_steps", "1", "--use_cpu"),
            *("--disable_tqdm", "true", "--report_to", "none", "--cache_dir", cache, "--cache_features", "false"),
            *("--max_eval_samples", "4", "--max_test_samples", "4"),
            *options,
        ],
    )


@pytest.fixture
def images(tmp_path, digits):
    folder = tmp_path / "images"
    write_splits(folder, digits, train=range(48), test=range(48, 64))
    return folder


def test_a_transfer_from_a_named_source_is_published_with_its_base_and_licence(hub, cache, tmp_path, images):
    fill(hub, made.LEAF, license="cc-by-nc-4.0")
    folder = tmp_path / "run"
    finetune(made.LEAF.repo_id, images, folder, cache)  # the only source of its repository
    publish(folder, "user/first", token=hub.write_token)
    card = ModelCard(hub.files("user/first")["README.md"].decode())
    assert card.data.base_model == "LEAF-CLIP/small" and card.data.license == "cc-by-nc-4.0"
    assert "no commercial use" in card.text and "small-leaf" in card.text and "linf, ε = 2/255" in card.text
    with pytest.raises(UsageError, match=r"--license apache-2\.0 is not open to this model"):
        publish(folder, "user/first", token=hub.write_token, license="apache-2.0")
    # Stock libraries load it.
    AutoModelForImageClassification.from_pretrained(folder)
    timm.create_model(f"local-dir:{folder}", pretrained=True)


@pytest.mark.slow
@pytest.mark.parametrize("published", [False, True])
def test_what_is_made_of_what_was_made_of_a_source_is_bound_as_well(hub, cache, tmp_path, images, published):
    fill(hub, made.LEAF, license="cc-by-nc-4.0")
    first, second = tmp_path / "first", tmp_path / "second"
    finetune("small-leaf", images, first, cache)
    if published:
        publish(first, "user/first", token=hub.write_token)
    finetune("user/first" if published else str(first), images, second, cache, "--transfer", "frozen")
    publish(second, "user/second", token=hub.write_token)
    card = ModelCard(hub.files("user/second")["README.md"].decode())
    assert card.data.license == "cc-by-nc-4.0" and "small-leaf" in card.text
    assert card.data.base_model == ("user/first" if published else "LEAF-CLIP/small")


@pytest.mark.slow
@pytest.mark.parametrize(
    "source", [made.MADRY, made.OPEN_CLIP, made.CONVNEXT, made.CIFAR, made.BY_FILE], ids=lambda source: source.name
)
def test_every_kind_of_source_is_transferred_and_published(hub, cache, tmp_path, images, source):
    if source is made.BY_FILE:
        file = tmp_path / "ARES_small_AT.pth"
        file.write_bytes(made.saved(made.classifier(source).state_dict()))
        fetch_source(source, file=file, cache_dir=cache)
    else:
        fill(hub, source)
    finetune(source.name, images, tmp_path / "run", cache)
    publish(tmp_path / "run", "user/mine", token=hub.write_token)
    card = ModelCard(hub.files("user/mine")["README.md"].decode())
    assert card.data.base_model == source.repo_id and card.data.license == source.license
    assert source.name in card.text
    environment = hub.environment()
    own = "import hf_robust_transfer.modeling.cifar; " if source is made.CIFAR else ""
    code = own + (
        "import sys, timm; from transformers import pipeline; from PIL import Image\n"
        "print(pipeline('image-classification', model='user/mine')(Image.new('RGB', (8, 8)))[0]['label'])\n"
        "timm.create_model('hf-hub:user/mine', pretrained=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
