"""External checkpoints, in the layouts their authors save them in, become models of ours with the same logits."""

import argparse
import pickle
from collections import OrderedDict, defaultdict, deque
from pathlib import Path

import dill
import numpy as np
import pytest
import timm
import torch
import torchvision
from external_networks import (
    CIFAR_MEAN,
    CIFAR_STD,
    AttackerModel,
    CifarResNet18,
    ImageNormalizer,
    InputNormalize,
    Payload,
    PreActivationBlock,
    ResNetWithStatistics,
    TradesWideResNet,
    assert_same_logits,
    lively,
    prefixed,
    saved,
)
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import AutoImageProcessor

from hf_robust_transfer.data import to_pixels
from hf_robust_transfer.modeling import PixelClassifier, import_checkpoint, load_model, pixel_statistics
from hf_robust_transfer.modeling.importing import read_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
ANIMALS = {0: "cat", 1: "dog", 2: "eel"}
RESNET = {"architecture": "cifar_resnet18"}
WRN = {"architecture": "cifar_wrn", "model_args": {"depth": 16, "width": 2}}


@pytest.mark.parametrize("layout", ["bare", "state_dict, module.", "net, module.", "net", "model_state_dict"])
def test_a_cifar_resnet_of_the_usual_naming_keeps_its_logits(tmp_path, layout):
    network = lively(CifarResNet18())
    assert {"linear.weight", "layer2.0.shortcut.1.running_var"} <= network.state_dict().keys()
    wrapping, _, prefix = layout.partition(", ")
    weights = prefixed(network, prefix)
    content = weights if wrapping == "bare" else {wrapping: weights, "acc": 84.1, "epoch": 30}
    assert_same_logits(network, saved(content, tmp_path), **RESNET)


@pytest.mark.parametrize("sub_block", [True, False], ids=["TRADES", "RobustBench"])
@pytest.mark.parametrize("depth_width", [(16, 2), (10, 1)])
def test_a_wide_residual_network_of_trades_keeps_its_logits(tmp_path, depth_width, sub_block):
    depth, width = depth_width
    network = lively(TradesWideResNet(depth, width, sub_block=sub_block))
    file = saved({"state_dict": prefixed(network)}, tmp_path)
    model, _ = assert_same_logits(network, file, architecture="cifar_wrn", model_args={"depth": depth, "width": width})
    assert list(model.config.id2label.values()) == ["0", "1", "2"]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_of_torchvision_keeps_its_logits(tmp_path, name):
    network = lively(torchvision.models.get_model(name, num_classes=3))
    assert_same_logits(network, saved(network.state_dict(), tmp_path), size=64, architecture=name, image_size=64)


def training_state(network):
    """What lies beside the weights in a checkpoint of MadryLab's robustness."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.rand(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.1 ** (epoch // 50))
    return {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "epoch": 150, "amp": None}


@pytest.mark.parametrize(
    "options",
    [{}, {"_use_new_zipfile_serialization": False}, {"pickle_module": dill}],
    ids=["zip", "before PyTorch 1.6", "dill"],
)
@pytest.mark.parametrize(
    ("network", "arguments"), [(CifarResNet18, RESNET), (TradesWideResNet, WRN)], ids=["resnet", "wrn"]
)
def test_a_checkpoint_of_madrylab_keeps_its_logits_and_its_own_normalisation(tmp_path, network, arguments, options):
    whole = AttackerModel(network())
    beside = training_state(whole)
    lively(whole)
    weights = prefixed(whole)
    for name in ("module.normalizer.new_mean", "module.attacker.normalize.new_std", "module.attacker.model.conv1.weight"):
        assert name in weights
    file = saved({"model": weights, **beside}, tmp_path, **options)
    _, processor = assert_same_logits(whole, file, **arguments)
    assert pixel_statistics(processor) == (CIFAR_MEAN, CIFAR_STD)


@pytest.mark.parametrize("prefix", ["module.attacker.", "attacker.", "module.model.", "model.model."])
def test_half_of_a_checkpoint_of_madrylab_is_enough(tmp_path, prefix):
    network = lively(CifarResNet18())
    weights = prefixed(network, f"{prefix}model.")
    assert_same_logits(network, saved({"state_dict": weights}, tmp_path), **RESNET)


def test_an_imagenet_resnet_of_madrylab_keeps_its_logits(tmp_path):
    whole = lively(AttackerModel(torchvision.models.resnet18(num_classes=3)))
    assert_same_logits(whole, saved({"model": prefixed(whole)}, tmp_path), 64, architecture="resnet18", image_size=64)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_normalisation_of_a_robustbench_model_is_its_own(tmp_path, prefix):
    layers = OrderedDict(normalize=ImageNormalizer(), model=TradesWideResNet(sub_block=False))
    whole = lively(nn.Sequential(layers))
    _, processor = assert_same_logits(whole, saved(prefixed(whole, prefix), tmp_path), **WRN)
    assert pixel_statistics(processor) == (CIFAR_MEAN, CIFAR_STD)
    inside = lively(ResNetWithStatistics())
    assert_same_logits(inside, saved(prefixed(inside, prefix), tmp_path), **RESNET)


def test_a_normalisation_that_is_given_goes_before_the_files_own(tmp_path):
    whole = lively(AttackerModel(TradesWideResNet()))
    file = saved({"model": prefixed(whole)}, tmp_path)
    whole.normalizer = InputNormalize((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert_same_logits(whole, file, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), **WRN)
    whole.normalizer = InputNormalize(CIFAR_MEAN, (0.4, 0.5, 0.6))
    assert_same_logits(whole, file, std=(0.4, 0.5, 0.6), **WRN)


def test_two_different_networks_in_one_file_are_refused(tmp_path):
    weights = prefixed(AttackerModel(TradesWideResNet()))
    weights["module.attacker.model.fc.bias"] = weights["module.attacker.model.fc.bias"] + 1
    with pytest.raises(ValueError, match=r"checkpoint\.pt holds two different tensors for fc\.bias"):
        import_checkpoint(saved({"model": weights}, tmp_path), id2label=ANIMALS, **WRN)
    weights = prefixed(TradesWideResNet())
    weights["module.mu"], weights["module.normalize.mean"] = torch.full((3,), 0.4), torch.full((3,), 0.5)
    with pytest.raises(ValueError, match=r"two different tensors for normalizer\.new_mean"):
        import_checkpoint(saved(weights, tmp_path), id2label=ANIMALS, **WRN)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"mean": (125.3, 123.0, 113.9)}, r"those of pixels in \[0, 1\]: divide those of 0 … 255 by 255"),
        ({"std": (63.0, 62.1, 66.7)}, "divide"),
        ({"std": (0.2, 0.0, 0.2)}, "divide"),
        ({"mean": (0.5,)}, "a number for each of the 3 colour channels"),
    ],
)
def test_a_normalisation_in_other_units_is_refused(tmp_path, statistics, message):
    file = saved(TradesWideResNet().state_dict(), tmp_path)
    with pytest.raises(ValueError, match=message):
        import_checkpoint(file, id2label=ANIMALS, **WRN, **statistics)


# Files of every kind


@pytest.fixture(scope="module")
def weights():
    """The weights of a network of three classes, as its author would have saved them."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return timm.create_model("test_resnet", num_classes=3).state_dict()


def assert_imported(file, weights):
    model, _ = import_checkpoint(file, architecture="test_resnet", id2label=ANIMALS)
    assert model.config.id2label == ANIMALS
    torch.testing.assert_close(dict(model.timm_model.state_dict()), dict(weights), rtol=0, atol=0)


@pytest.mark.parametrize("wrapping", [None, "state_dict", "model_state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_are_found_in_the_usual_wrappings(weights, tmp_path, wrapping, prefix):
    content = {f"{prefix}{name}": tensor for name, tensor in weights.items()}
    file = saved({wrapping: content, "epoch": 5, "accuracy": 0.5} if wrapping else content, tmp_path)
    assert_imported(file, weights)


def test_weights_without_batch_norm_counters_are_complete_and_more_counters_do_no_harm(weights, tmp_path):
    without = {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
    assert_imported(saved(without, tmp_path), weights)
    assert_imported(saved({**weights, "norm.num_batches_tracked": torch.tensor(7)}, tmp_path), weights)


def test_weights_in_half_precision_become_float32(weights, tmp_path):
    half = {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}
    assert_imported(saved(half, tmp_path), {name: half[name].to(tensor.dtype) for name, tensor in weights.items()})


def test_a_safetensors_file_is_read(weights, tmp_path):
    save_file(weights, tmp_path / "model.safetensors")
    assert_imported(tmp_path / "model.safetensors", weights)


def test_an_imported_model_is_saved_and_loaded_like_any_other(weights, tmp_path):
    statistics = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    model, processor = import_checkpoint(
        saved(weights, tmp_path), architecture="test_resnet", id2label=ANIMALS, image_size=24, **statistics
    )
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoImageProcessor.from_pretrained(tmp_path / "saved")
    assert pixel_statistics(loaded) == pixel_statistics(processor) == tuple(statistics.values())
    assert to_pixels(loaded)(Image.new("RGB", (50, 40))).shape == (3, 24, 24)


def test_labels_that_are_not_given_are_as_many_as_the_weights_have(weights, tmp_path):
    model, processor = import_checkpoint(saved(weights, tmp_path), architecture="test_resnet")
    assert model.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    torch.testing.assert_close(dict(model.timm_model.state_dict()), dict(weights), rtol=0, atol=0)
    model.save_pretrained(tmp_path / "saved")
    reloaded, _ = load_model(str(tmp_path / "saved"))
    assert reloaded.config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    assert PixelClassifier(reloaded, processor)(torch.rand(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("write", "read"),
    [(torch.save, lambda file: torch.load(file, weights_only=False)), (pickle.dump, pickle.load)],
    ids=["torch", "pickle"],
)
@pytest.mark.parametrize("wrap", [lambda payload: payload, lambda payload: {"state_dict": {}, "optimizer": payload}])
def test_a_file_with_code_is_refused_and_the_code_does_not_run(tmp_path, write, read, wrap):
    trace, file = tmp_path / "it ran", tmp_path / "model.pt"
    with file.open("wb") as opened:
        write(wrap(Payload(f"touch '{trace}'")), opened)
    with pytest.raises(ValueError, match="run code"):
        import_checkpoint(file, architecture="test_resnet", id2label=ANIMALS)
    assert not trace.exists()
    with file.open("rb") as opened:
        read(opened)
    assert trace.exists(), "the file would have done no harm, so the test proves nothing"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("beside", "named"),
    [
        (argparse.Namespace(arch="resnet50"), ("argparse.Namespace",)),
        (np.float64(84.1), ("numpy.dtype", "numpy._core.multiarray.scalar")),
        (lambda epoch: 0.1, ("dill._dill._create_function", "dill._dill._create_code")),
        (deque([0.5, 0.25], 3), ("collections.deque",)),
        ({"history": defaultdict(list, {1: [0.5]}), "seen": {1, 2}}, ()),
    ],
    ids=["arguments", "numpy", "function", "deque", "containers"],
)
def test_objects_beside_the_weights_are_left_aside_and_named(weights, tmp_path, beside, named, zipped):
    content = {"args": beside, "model": {f"module.{name}": tensor for name, tensor in weights.items()}, "again": beside}
    file = saved(content, tmp_path, pickle_module=dill, _use_new_zipfile_serialization=zipped)
    assert set(named) <= set(read_checkpoint(file).others)
    assert_imported(file, weights)


def test_a_whole_pickled_module_is_refused_with_advice(tmp_path):
    file = saved(timm.create_model("test_resnet", num_classes=3), tmp_path)
    with pytest.raises(ValueError, match=r"state_dict\(\)"):
        import_checkpoint(file, architecture="test_resnet", id2label=ANIMALS)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<!DOCTYPE html>\n<html><head><title>Quota exceeded</title></head></html>\n", "but a web page: the download"),
        (b'\xef\xbb\xbf\r\n <HTML lang="en"><body>Virus scan warning</body></HTML>', "but a web page"),
        (b'<?xml version="1.0"?>\n<!-- sign in --><html xmlns="http://www.w3.org/1999/xhtml">', "but a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 22406603\n", "begins with b'version ht"),
        (b"", "begins with b''"),
        (b"PK\x03\x04 cut off", "begins with b'PK"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'shape': (1,)}", "begins with b..x93NUMPY"),
    ],
    ids=["HTML", "HTML after a mark", "XHTML", "LFS pointer", "empty", "truncated", "NumPy"],
)
def test_a_file_that_is_no_checkpoint_is_refused_as_such_and_not_for_code_in_it(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is not a PyTorch checkpoint.*{reason}") as refused:
        import_checkpoint(tmp_path / name, architecture="test_resnet", id2label=ANIMALS)
    assert "weights_only" not in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path, zipped):
    file = saved({"state_dict": nn.BatchNorm2d(3).state_dict()}, tmp_path, _use_new_zipfile_serialization=zipped)
    content = file.read_bytes()
    places = np.random.default_rng(0).integers(0, len(content), 150).tolist()
    cut_off = [content[:place] for place in places]
    changed = [content[:place] + bytes([content[place] ^ 0x5A]) + content[place + 1 :] for place in places]
    read = 0
    for damaged in cut_off + changed:
        file.write_bytes(damaged)
        try:
            read_checkpoint(file)
            read += 1
        except ValueError as error:
            assert str(error).startswith(f"{file} ") and "\n" not in str(error)
    assert read <= len(changed)  # where the damage is in a number, or between the records, nobody can tell


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"epoch": 5}, {}, torch.zeros(3), {0: torch.zeros(2)}])
def test_a_checkpoint_without_weights_by_name_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match="state dict"):
        import_checkpoint(saved(content, tmp_path), architecture="test_resnet", id2label=ANIMALS)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for name, reason in (("absent.pt", "No such file"), (".", "Is a directory")):
        with pytest.raises(ValueError, match=f"{tmp_path / name} cannot be read: {reason}"):
            import_checkpoint(tmp_path / name, architecture="test_resnet", id2label=ANIMALS)


# Weights that do not fit


def test_missing_unknown_and_misshapen_tensors_are_named(tmp_path):
    weights = dict(TradesWideResNet().state_dict())
    del weights["block2.layer.0.convShortcut.weight"]
    weights["block2.layer.0.scale"] = torch.zeros(1)
    weights["block1.layer.1.bn2.bias"] = torch.zeros(5)
    with pytest.raises(ValueError) as refused:
        import_checkpoint(saved(weights, tmp_path), id2label=ANIMALS, **WRN)
    assert str(refused.value).endswith(
        "checkpoint.pt: the weights do not fit cifar_wrn with {'depth': 16, 'width': 2}:"
        " 1 missing from the file (stages.1.blocks.0.downsample.conv.weight),"
        " 1 unknown to the architecture (block2.layer.0.scale),"
        " 1 of another shape (stages.0.blocks.1.norm2.bias (5,) instead of (32,))"
    )


class PreActivationResNet18(nn.Module):
    """As in fast_adversarial: like the usual CIFAR ResNet by most of its names, but another network."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        for number, (inside, outside) in enumerate(((64, 64), (64, 128), (128, 256), (256, 512)), start=1):
            blocks = (PreActivationBlock(inside, outside, 1), PreActivationBlock(outside, outside, 1))
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.bn = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, 3)


@pytest.mark.parametrize(
    ("network", "arguments", "message"),
    [
        (TradesWideResNet, RESNET, r"fit cifar_resnet18: .* unknown to the architecture \(block1\.layer\.0\.bn1"),
        (CifarResNet18, WRN, r"missing from the file \(stages\."),
        (
            CifarResNet18,
            {"architecture": "resnet18"},
            r"1 of another shape \(conv1\.weight \(64, 3, 3, 3\) instead",
        ),
        (PreActivationResNet18, RESNET, r"missing from the file \(bn1\.weight"),
        (TradesWideResNet, {**WRN, "model_args": {"depth": 10, "width": 2}}, r"unknown .*block1\.layer\.1\."),
        (TradesWideResNet, {**WRN, "model_args": {"depth": 22, "width": 2}}, r"missing .*stages\.0\.blocks\.2\."),
        (TradesWideResNet, {**WRN, "model_args": {"depth": 16, "width": 1}}, r"shape .*\(32, 16, 3, 3\) instead of"),
        (TradesWideResNet, {"architecture": "test_convnext"}, "do not fit test_convnext"),
    ],
    ids=["WRN", "ResNet", "stem", "pre-activation", "depth 10", "depth 22", "width", "ConvNeXt"],
)
def test_weights_of_another_architecture_are_refused_by_name(tmp_path, network, arguments, message):
    file = saved({"net": prefixed(network())}, tmp_path)
    for labels in (ANIMALS, None):
        with pytest.raises(ValueError, match=message):
            import_checkpoint(file, id2label=labels, **arguments)


def test_labels_of_another_number_are_refused(weights, tmp_path):
    with pytest.raises(ValueError, match="has weights for 3 classes, but there are 2 labels"):
        import_checkpoint(saved(weights, tmp_path), architecture="test_resnet", id2label={0: "left", 1: "right"})
