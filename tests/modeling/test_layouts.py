"""Robust networks for ImageNet and CIFAR, built here in the layouts that their authors publish, become models of ours."""

import argparse

import dill
import pytest
import timm
import torch
import torchvision
from external_networks import (
    CIFAR10_OF_DEEPMIND,
    CIFAR100_OF_DEEPMIND,
    AttackerModel,
    CifarResNet50,
    DeepMindWideResNet,
    ImageNormalizer,
    assert_same_logits,
    lively,
    prefixed,
    saved,
)
from torch import nn

from hf_robust_transfer.modeling import create_model, import_checkpoint, pixel_statistics
from hf_robust_transfer.modeling.layouts import fitted, own_names

SWIN = {
    "architecture": "swin_tiny_patch4_window7_224",
    "model_args": {"img_size": 28, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2]},
}
VIT = {
    "architecture": "vit_small_patch16_224",
    "model_args": {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
}
CONVNEXT = {"architecture": "convnext_tiny", "model_args": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}}
XCIT = {"architecture": "xcit_small_12_p16_224", "model_args": {"depth": 2, "embed_dim": 32, "num_heads": 4}}
RESNET = {"architecture": "resnet50", "model_args": {"act_layer": "gelu", "channels": [8, 8, 16, 16]}}
SILU = {"architecture": "cifar_wrn_silu", "model_args": {"depth": 16, "width": 2}}


def network_of(options):
    network = timm.create_model(options["architecture"], num_classes=3, **options["model_args"])
    for name, parameter in network.named_parameters():  # else layer scales of 1e-6 leave nothing of the blocks
        if name.endswith(("gamma", "gamma1", "gamma2", "gamma3")):
            nn.init.uniform_(parameter, 0.1, 1)
    return lively(network)


def as_of_old(network, prefix=""):
    """A Swin's weights as timm named them before its version 0.9: downsampling ends a stage, buffers are in the file."""
    old = {}
    for name, tensor in network.state_dict().items():
        first, number, *rest = name.split(".")
        if first == "layers" and rest[0] == "downsample":
            name = ".".join((first, str(int(number) - 1), *rest))
        old[prefix + name.replace("head.fc.", "head.")] = tensor
    for name, module in network.named_modules():
        if hasattr(module, "relative_position_index"):
            old[f"{prefix}{name}.relative_position_index"] = module.relative_position_index
    old[f"{prefix}layers.0.blocks.1.attn_mask"] = network.layers[0].blocks[1].attn_mask
    return old


def test_a_resnet_50_of_madrylab_for_cifar_keeps_its_logits(tmp_path):
    channels = (4, 8, 8, 16)
    whole = lively(AttackerModel(CifarResNet50(channels=channels)))
    file = saved({"model": prefixed(whole)}, tmp_path, pickle_module=dill, _use_new_zipfile_serialization=False)
    assert_same_logits(whole, file, architecture="cifar_resnet50", model_args={"channels": channels})


@pytest.mark.parametrize("options", [SWIN, VIT, CONVNEXT, RESNET], ids=lambda options: options["architecture"])
def test_networks_of_ares_keep_their_logits(tmp_path, options):
    network = network_of(options)
    weights = as_of_old(network) if options is SWIN else network.state_dict()
    size = options["model_args"].get("img_size", 64)
    assert_same_logits(network, saved(weights, tmp_path), size, image_size=size, **options)


@pytest.mark.parametrize("options", [SWIN, VIT], ids=lambda options: options["architecture"])
def test_networks_of_robustbench_for_imagenet_keep_their_logits_and_normalisation(tmp_path, options):
    network = network_of(options)
    whole = nn.Sequential()
    whole.add_module("normalize", ImageNormalizer())
    whole.add_module("model", network)
    weights = dict(as_of_old(network, "model.") if options is SWIN else prefixed(network, "model."))
    weights |= {f"normalize.{name}": each for name, each in whole.normalize.state_dict().items()}
    size = options["model_args"].get("img_size", 64)
    assert_same_logits(whole.eval(), saved({"state_dict": weights}, tmp_path), size, image_size=size, **options)


def test_networks_of_singh_keep_their_logits(tmp_path):
    network = network_of(CONVNEXT)
    weights = prefixed(network, "module.base_model.")
    assert_same_logits(network, saved(weights, tmp_path), 64, image_size=64, **CONVNEXT)


@pytest.mark.parametrize("place", ["stem.stem.0", "patch_embed.proj.stem.3"])
def test_the_convolutional_stem_of_singh_is_refused_as_one_that_timm_lacks(place):
    with pytest.raises(ValueError, match=r"the network has the convolutional stem of Singh .* without it"):
        fitted({f"{place}.weight": torch.zeros(8, 3, 3, 3)}, nn.Linear(1, 1))


def test_an_xcit_of_debenedetti_with_the_arguments_of_its_training_keeps_its_logits(tmp_path):
    network = network_of(XCIT)
    content = {"arch": "xcit", "args": argparse.Namespace(lr=0.1), "state_dict": network.state_dict()}
    file = saved(content, tmp_path).rename(tmp_path / "xcit-s12.pth.tar")
    assert_same_logits(network, file, 64, image_size=64, **XCIT)


def test_the_layers_of_a_densenet_of_salman_are_timm_s():
    with torch.device("meta"):
        theirs = torchvision.models.densenet161().state_dict()
        ours = timm.create_model("densenet161")
    old = {name.replace("norm1", "norm.1").replace("conv2", "conv.2"): each for name, each in theirs.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    expected = {name: each.shape for name, each in ours.state_dict().items()}
    for weights in (theirs, old):
        assert {name: each.shape for name, each in fitted(weights, ours).items()} == expected


@pytest.mark.slow
def test_a_densenet_of_salman_keeps_its_logits(tmp_path):
    whole = lively(AttackerModel(torchvision.models.densenet161(num_classes=3)))
    assert_same_logits(whole, saved({"model": prefixed(whole)}, tmp_path), 64, architecture="densenet161", image_size=64)


def test_a_mobilenet_of_salman_keeps_its_logits_and_takes_imagenet_s_names(tmp_path):
    whole = lively(AttackerModel(torchvision.models.mobilenet_v2()))
    file = saved({"model": prefixed(whole)}, tmp_path)
    model, _ = assert_same_logits(whole, file, 64, architecture="mobilenetv2_100", id2label=None, image_size=64)
    labels = list(model.config.id2label.values())
    assert len(labels) == len(set(labels)) == 1000 and model.config.num_labels == 1000
    assert labels[0] == "tench, Tinca tinca" and labels[134] == "crane" and labels[517] == "crane (n03126707)"


def test_wide_resnet50_4_of_salman_is_timm_s_with_twice_the_width():
    with torch.device("meta"):
        blocks = torchvision.models.resnet.Bottleneck, [3, 4, 6, 3]
        theirs = torchvision.models.ResNet(*blocks, width_per_group=256).state_dict()
        ours = timm.create_model("wide_resnet50_2", base_width=256).state_dict()
    assert {name: each.shape for name, each in theirs.items()} == {name: each.shape for name, each in ours.items()}


@pytest.mark.parametrize(
    ("prefix", "statistics", "buffers"),
    [
        ("", CIFAR10_OF_DEEPMIND, False),
        ("module.0.", CIFAR100_OF_DEEPMIND, False),
        ("module.", ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), True),
    ],
    ids=["Gowal and Rebuffi", "Wang", "Bartoldson and RobustBench"],
)
def test_a_wide_resnet_with_silu_keeps_its_logits_and_its_normalisation(tmp_path, prefix, statistics, buffers):
    depth, width = (10, 1) if buffers else (16, 2)
    classes = 100 if statistics is CIFAR100_OF_DEEPMIND else 10
    network = lively(DeepMindWideResNet(depth, width, classes, statistics, buffers))
    file = saved({"model_state_dict": prefixed(network, prefix)}, tmp_path)
    arguments = {**SILU, "model_args": {"depth": depth, "width": width}}
    _, processor = assert_same_logits(network, file, classes=classes, **arguments)
    assert pixel_statistics(processor) == statistics


def test_a_wide_resnet_with_silu_of_other_classes_needs_its_normalisation_named(tmp_path):
    file = saved(DeepMindWideResNet(classes=43).state_dict(), tmp_path)
    with pytest.raises(ValueError, match="mean and std"):
        import_checkpoint(file, **SILU)
    import_checkpoint(file, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), **SILU)


def test_a_wide_resnet_with_relu_is_no_other_architecture(tmp_path):
    with pytest.raises(ValueError, match=r"depth=32 must be 6n \+ 4"):
        create_model("cifar_wrn_silu", id2label={0: "a"}, model_args={"depth": 32})


def test_a_normalisation_before_the_network_in_a_sequence_is_its_own():
    names = ["module.0.mean", "module.0.std", "module.1.fc.bias"]
    assert own_names(names) == {"module.0.mean": "mean", "module.0.std": "std", "module.1.fc.bias": "fc.bias"}
    assert own_names(["0.weight", "1.weight"]) == {"0.weight": "0.weight", "1.weight": "1.weight"}


def test_weights_that_timm_would_resample_for_another_size_are_refused(tmp_path):
    larger = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, **SWIN["model_args"], window_size=14)
    with pytest.raises(ValueError, match="do not fit"):
        import_checkpoint(saved(as_of_old(larger), tmp_path), id2label={0: "a", 1: "b", 2: "c"}, **SWIN)
