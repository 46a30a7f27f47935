import copy

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import group_parameters
from tiny_models import classifier_layer
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    BeitConfig,
    BeitForImageClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    ViTImageProcessor,
    pipeline,
)

from hf_robust_transfer.data import to_pixels
from hf_robust_transfer.hub import stand_alone
from hf_robust_transfer.modeling import (
    PixelClassifier,
    classifier_layers,
    create_model,
    load_model,
    pixel_statistics,
    replace_head,
)
from hf_robust_transfer.modeling.cifar import PaddedShortcut
from hf_robust_transfer.modeling.classifier import accept_features, full_precision
from hf_robust_transfer.modeling.heads import linear_layers

ANIMALS = {0: "cat", 1: "dog", 2: "eel"}


def size_of(kind):
    return 32 if "resnet" in kind else 8


def photograph(kind, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size_of(kind), size_of(kind), 3), dtype=np.uint8))


def pixels_of(image):
    return torch.tensor(np.asarray(image) / 255, dtype=torch.float32).permute(2, 0, 1)[None]


def saved(model, processor, folder):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def assert_same_weights(model, other):
    torch.testing.assert_close(dict(model.state_dict()), dict(other.state_dict()), rtol=0, atol=0)


# The classifier over pixels


def test_logits_are_those_of_the_model_on_the_image_as_its_processor_normalises_it(tiny, kind):
    model, processor = tiny(kind)
    image = photograph(kind)
    with torch.no_grad():
        expected = model(pixel_values=processor(image, return_tensors="pt")["pixel_values"]).logits
        logits = PixelClassifier(model, processor)(pixels_of(image))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert logits.shape == (1, 10)


def test_features_times_the_classifier_layer_give_the_logits(tiny, kind):
    classifier = PixelClassifier(*tiny(kind))
    with torch.no_grad():
        logits, features = classifier.outputs(torch.rand(3, 3, size_of(kind), size_of(kind)))
        _, layer = classifier_layer(classifier.model)
        torch.testing.assert_close(features @ layer.weight.T + layer.bias, logits)
    assert features.shape == (3, layer.in_features)


def test_asking_for_features_leaves_no_hook_behind_also_when_the_model_raises(tiny):
    classifier = PixelClassifier(*tiny("hf-vit"))
    classifier.outputs(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError):
        classifier.outputs(torch.rand(1, 3, 9, 9))
    assert not any(module._forward_pre_hooks for module in classifier.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_reach_the_pixels_through_the_normalisation(tiny, dtype):
    model, processor = tiny("hf-vit")
    classifier = PixelClassifier(model, processor).to(dtype)
    images = torch.rand(1, 3, 8, 8, dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(classifier(images)[0, 3], images)
    std = torch.tensor([0.2, 0.25, 0.3], dtype=dtype).view(1, 3, 1, 1)
    normalised = ((images - torch.tensor([0.4, 0.5, 0.6], dtype=dtype).view(1, 3, 1, 1)) / std).detach().requires_grad_()
    (of_normalised,) = torch.autograd.grad(model(pixel_values=normalised).logits[0, 3], normalised)
    torch.testing.assert_close(gradient, of_normalised / std)


def test_the_classifier_adds_nothing_to_the_weights_of_its_model(tiny):
    model, processor = tiny("timm-wrn")
    classifier = PixelClassifier(model, processor)
    assert classifier.state_dict().keys() == {f"model.{name}" for name in model.state_dict()}


def test_full_precision_switches_autocast_off(tiny):
    classifier = PixelClassifier(*tiny("hf-vit"))
    images = torch.rand(2, 3, 8, 8)
    expected = classifier(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert classifier(images).dtype == torch.bfloat16
        with full_precision(classifier):
            assert torch.equal(classifier(images), expected)
        assert classifier(images).dtype == torch.bfloat16


def test_statistics_are_those_of_the_processor_on_both_sides(tiny):
    assert pixel_statistics(tiny("hf-vit")[1]) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    assert pixel_statistics(tiny("timm-wrn")[1]) == ((0.0,) * 3, (1.0,) * 3)
    _, processor = create_model("cifar_resnet18", id2label=ANIMALS, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert pixel_statistics(processor) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_a_processor_that_does_not_normalise_leaves_the_pixels_alone():
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, do_normalize=False)
    config = BeitConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        id2label=ANIMALS,
    )
    model = BeitForImageClassification(config).eval()
    assert pixel_statistics(processor) == ((0.0,) * 3, (1.0,) * 3)
    pixels = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(PixelClassifier(model, processor)(pixels), model(pixel_values=pixels).logits)


def test_a_model_with_two_heads_has_two_classifier_layers():
    config = DeiTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, id2label=ANIMALS)
    layers = classifier_layers(DeiTForImageClassificationWithTeacher(config))
    assert list(layers) == ["cls_classifier", "distillation_classifier"]


def test_a_layer_inside_the_backbone_with_as_many_outputs_is_not_taken_for_the_classifier(tiny):
    model, _ = tiny("hf-vit", {index: f"class {index}" for index in range(16)})  # 16 is its hidden size too
    assert classifier_layer(model)[0] == "classifier"


# Saving and loading


def test_saving_and_loading_gives_the_same_logits_labels_and_normalisation(tiny, kind, tmp_path):
    model, processor = tiny(kind, ANIMALS)
    loaded, loaded_processor = load_model(saved(model, processor, tmp_path))
    images = torch.rand(2, 3, size_of(kind), size_of(kind))
    with torch.no_grad():
        logits = PixelClassifier(loaded, loaded_processor)(images)
        torch.testing.assert_close(logits, PixelClassifier(model, processor)(images))
    assert_same_weights(loaded, model)
    assert loaded.config.id2label == ANIMALS and not loaded.training
    assert loaded.config.label2id == {"cat": 0, "dog": 1, "eel": 2}


def test_the_saved_folder_serves_a_pipeline_that_agrees(tiny, kind, tmp_path):
    model, processor = tiny(kind, ANIMALS)
    classify = pipeline("image-classification", model=saved(model, processor, tmp_path), device="cpu")
    image = photograph(kind).resize((50, 40))
    scores = {answer["label"]: answer["score"] for answer in classify(image, top_k=3)}
    with torch.no_grad():
        expected = PixelClassifier(model, processor)(to_pixels(processor)(image)[None]).softmax(1)[0]
    assert scores == pytest.approx(dict(zip(ANIMALS.values(), expected.tolist(), strict=True)), abs=1e-5)


def test_a_checkpoint_in_half_precision_is_loaded_in_float32(tiny, tmp_path):
    model, processor = tiny("hf-vit")
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, _ = load_model(str(tmp_path))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


# New heads


def test_a_new_head_keeps_every_bit_of_the_backbone_and_its_labels_are_saved(tiny, kind, tmp_path):
    model, processor = tiny(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    head_name, _ = classifier_layer(model)
    replace_head(model, ANIMALS)
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name in before:
        assert torch.equal(after[name], before[name]) != name.startswith(f"{head_name}."), name

    saved(model, processor, tmp_path)
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert reloaded.config.id2label == ANIMALS
    assert reloaded.config.label2id == {"cat": 0, "dog": 1, "eel": 2}
    assert reloaded.num_labels == reloaded.config.num_labels == 3
    images = torch.rand(2, 3, size_of(kind), size_of(kind))
    with torch.no_grad():
        torch.testing.assert_close(reloaded(pixel_values=images).logits, model(pixel_values=images).logits)
    assert_same_weights(reloaded, model)


def test_a_new_head_works_in_a_pipeline_after_a_second_change_of_labels(tiny, tmp_path):
    model, processor = load_model(saved(*tiny("timm-convnext"), tmp_path / "source"), id2label=ANIMALS)
    folder = saved(model, processor, tmp_path / "first")
    model, processor = load_model(folder, id2label={0: "left", 1: "right"})
    classify = pipeline("image-classification", model=saved(model, processor, tmp_path / "second"), device="cpu")
    assert {answer["label"] for answer in classify(photograph("timm-convnext"))} == {"left", "right"}


@pytest.mark.parametrize("family", ["timm-convnext", "hf-vit"])
def test_other_names_get_a_fresh_head_even_where_their_number_is_the_same(tiny, tmp_path, family):
    model, processor = tiny(family, ANIMALS)
    folder = saved(model, processor, tmp_path)
    _, old = classifier_layer(model)
    for names in ({0: "cat", 1: "dog", 2: "fly"}, {0: "dog", 1: "cat", 2: "eel"}):
        loaded, _ = load_model(folder, id2label=names)
        assert not torch.equal(classifier_layer(loaded)[1].weight, old.weight)
        assert loaded.config.id2label == names
        assert loaded.config.label2id == {label: index for index, label in names.items()}


@pytest.mark.parametrize("family", ["timm-convnext", "hf-vit"])
def test_the_checkpoints_own_labels_keep_its_head(tiny, tmp_path, family):
    model, processor = tiny(family, ANIMALS)
    loaded, _ = load_model(saved(model, processor, tmp_path), id2label=dict(ANIMALS))
    assert torch.equal(classifier_layer(loaded)[1].weight, classifier_layer(model)[1].weight)


def test_a_new_head_has_the_dtype_of_the_old_one(tiny):
    for family in ("timm-convnext", "hf-vit"):
        model, _ = tiny(family)
        model.to(torch.bfloat16)
        replace_head(model, ANIMALS)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


# Errors


def test_an_unknown_name_is_refused_with_what_it_could_have_been():
    with pytest.raises(
        ValueError, match=r"no-such-model.*neither a folder.*nor a timm\s+architecture.*nor a reachable Hub id"
    ):
        load_model("someone/no-such-model")
    with pytest.raises(ValueError, match="resnet18"):
        create_model("resnet18_", id2label=ANIMALS)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(str(tmp_path))


def test_the_architecture_of_a_checkpoint_cannot_be_changed(tiny, tmp_path):
    folder = saved(*tiny("timm-wrn"), tmp_path)
    with pytest.raises(ValueError, match="leave them out"):
        load_model(folder, model_args={"depth": 16})


def test_an_untrained_architecture_needs_labels():
    with pytest.raises(ValueError, match="id2label"):
        load_model("resnet18")


@pytest.mark.parametrize(
    ("architecture", "model_args"),
    [
        ("resnet18", {"no_such_argument": 3}),
        ("convnext_tiny", {"depths": [1, 1], "dims": [8, 8, 8, 8]}),
        ("cifar_wrn", {"depth": 30}),
    ],
)
def test_arguments_that_an_architecture_refuses_are_named(architecture, model_args):
    with pytest.raises(ValueError, match=next(iter(model_args))):
        create_model(architecture, id2label=ANIMALS, model_args=model_args)


def test_an_untrained_model_has_timms_own_initialisation():
    model, _ = create_model("cifar_resnet18", id2label=ANIMALS)
    weight = model.timm_model.layer1[0].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)  # He et al. (2015), by fan-out


# Networks for small images


def wide_resnet_parameters(depth, width, classes, convolutional_shortcuts):
    """Counted from the papers: 3×3 convolutions without bias, each block two of them, a batch norm before each."""
    channels, total, previous = (16 * width, 32 * width, 64 * width), 3 * 16 * 9, 16
    for wide in channels:
        for block in range((depth - 2) // 6):
            inside = previous if block == 0 else wide
            total += 2 * inside + inside * wide * 9 + 2 * wide + wide * wide * 9
            total += inside * wide if convolutional_shortcuts and inside != wide else 0
        previous = wide
    return total + 2 * previous + previous * classes + classes


@pytest.mark.parametrize("depth", [10, 16, 28, 34, 14, 32])
def test_a_wide_residual_network_has_the_depth_and_parameters_of_the_paper(depth):
    model = timm.create_model("cifar_wrn", depth=depth, width=2, num_classes=7)
    original = depth % 6 == 4
    assert sum(p.numel() for p in model.parameters()) == wide_resnet_parameters(depth, 2, 7, original)
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    shortcuts = [module for module in layers if getattr(module, "kernel_size", None) == (1, 1)]
    assert len(layers) - len(shortcuts) == (depth - 2 if original else depth)
    assert len(shortcuts) == (3 if original else 0)


def test_wrn_28_10_has_the_36_479_194_parameters_of_the_literature():
    with torch.device("meta"):
        model = timm.create_model("cifar_wrn", depth=28, width=10, num_classes=10)
    assert sum(parameter.numel() for parameter in model.parameters()) == 36_479_194


@pytest.mark.parametrize(("depth", "slope"), [(16, 0.0), (14, 0.1)])
def test_a_wide_residual_network_keeps_the_resolution_of_its_stem_and_halves_it_twice(depth, slope):
    model = timm.create_model("cifar_wrn", depth=depth, width=2, num_classes=5).eval()
    features = model.forward_features(torch.rand(2, 3, 32, 32))
    assert features.shape == (2, 128, 8, 8)
    assert model.stem(torch.rand(2, 3, 32, 32)).shape == (2, 16, 32, 32)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    assert features.min() < 0 if slope else features.min() == 0


def test_a_block_of_a_wide_residual_network_is_what_the_paper_draws():
    model = timm.create_model("cifar_wrn", depth=10, width=2).eval()
    block = model.stages[1].blocks[0]
    features = torch.randn(2, 32, 8, 8)
    with torch.no_grad():
        for norm in (block.norm1, block.norm2):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

        def normalise(norm, values):
            shape = (1, -1, 1, 1)
            scaled = (values - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + 1e-5).sqrt()
            return (scaled * norm.weight.view(shape) + norm.bias.view(shape)).relu()

        active = normalise(block.norm1, features)
        inner = normalise(block.norm2, nn.functional.conv2d(active, block.conv1.weight, stride=2, padding=1))
        expected = nn.functional.conv2d(inner, block.conv2.weight, padding=1)
        expected += nn.functional.conv2d(active, block.downsample.conv.weight, stride=2)
        torch.testing.assert_close(block(features), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arguments", [{"depth": 30}, {"depth": 4}, {"depth": 2}, {"depth": -2}, {"depth": 16, "width": 0}])
def test_a_depth_or_width_that_no_wide_residual_network_has_is_refused(arguments):
    with pytest.raises(ValueError, match="depth"):
        timm.create_model("cifar_wrn", **arguments)


def test_the_padded_shortcut_averages_squares_of_four_and_adds_channels_of_zeros():
    features = torch.arange(16.0).view(1, 1, 4, 4)
    shrunk = PaddedShortcut(1, 3, stride=2)(features)
    assert shrunk.tolist() == [[[[0, 0], [0, 0]], [[2.5, 4.5], [10.5, 12.5]], [[0, 0], [0, 0]]]]
    assert torch.equal(PaddedShortcut(1, 1, stride=1)(features), features)
    assert not list(PaddedShortcut(1, 3, stride=2).parameters())


def test_the_cifar_resnet_18_is_the_usual_one():
    model = timm.create_model("cifar_resnet18", num_classes=10).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_173_962  # kuangliu/pytorch-cifar's count
    assert model.forward_features(torch.rand(1, 3, 32, 32)).shape == (1, 512, 4, 4)


@pytest.mark.parametrize("name", ["cifar_resnet18", "cifar_wrn"])
def test_timm_knows_the_networks_and_their_blocks(name):
    assert timm.is_model(name) and name in timm.list_models("cifar_*")
    arguments = {"depth": 16, "width": 1} if name == "cifar_wrn" else {}
    model = timm.create_model(name, num_classes=3, **arguments)
    groups = group_parameters(model, model.group_matcher())
    assert sorted(parameter for group in groups.values() for parameter in group) == sorted(dict(model.named_parameters()))
    assert len(groups) >= 8
    model.reset_classifier(7)
    assert model.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 7)
    assert model.forward_head(model.forward_features(torch.rand(1, 3, 32, 32)), pre_logits=True).dim() == 2


# Heads of several layers

DEEP = {"layers": 3, "norm": True, "dropout": 0.5}


@pytest.mark.parametrize(("architecture", "model_args"), [("cifar_resnet18", {}), ("cifar_wrn", {"depth": 10, "width": 1})])
def test_a_deep_head_is_saved_and_loads_everywhere(architecture, model_args, tmp_path):
    model, processor = create_model(architecture, id2label=ANIMALS, model_args=model_args, image_size=8)
    folder = saved(model, processor, tmp_path / "source")
    deep, processor = load_model(folder, id2label={0: "left", 1: "right"}, head_args=DEEP)
    sizes = [layer.weight.shape for layer in linear_layers(classifier_layer(deep)[1])]
    width = sizes[0][1]
    assert sizes == [(width, width), (width, width), (2, width)]
    assert {type(module) for module in classifier_layer(deep)[1]} == {nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout}
    backbone = {name: value for name, value in model.state_dict().items() if "fc." not in name}
    assert all(torch.equal(deep.state_dict()[name], value) for name, value in backbone.items())

    folder = saved(deep, processor, tmp_path / "deep")
    stand_alone(folder)
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        expected = deep(pixel_values=images).logits
        reloaded = AutoModelForImageClassification.from_pretrained(folder).eval()
        torch.testing.assert_close(reloaded(pixel_values=images).logits, expected)
        by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        torch.testing.assert_close(by_timm(images), expected)
        logits, features = PixelClassifier(deep, processor).outputs(images)
        assert features.shape == (2, width)  # the extractor's, whatever the head
        torch.testing.assert_close(classifier_layer(deep)[1](features), logits)
    plain, _ = load_model(folder, id2label=ANIMALS)
    assert isinstance(classifier_layer(plain)[1], nn.Linear) and "head_args" not in plain.config.model_args
    again, _ = load_model(folder)
    assert_same_weights(again, deep)


@pytest.mark.parametrize(
    ("family", "head_args", "message"),
    [
        ("timm-convnext", {"layers": 2}, "such as cifar_resnet18 or cifar_wrn"),
        ("hf-vit", {"layers": 2}, "such as cifar_resnet18 or cifar_wrn"),
        ("timm-wrn", {"depth": 2}, "refused"),
        ("timm-wrn", {"layers": 0}, "at least one layer"),
        ("timm-wrn", {"layers": 2, "dropout": 1.0}, "dropout in"),
        ("timm-wrn", {"layers": 1, "norm": True}, "hidden layers"),
    ],
)
def test_a_head_that_cannot_be_had_is_refused(tiny, family, head_args, message):
    model, _ = tiny(family)
    with pytest.raises(ValueError, match=message):
        replace_head(model, ANIMALS, head_args)


@pytest.mark.parametrize("family", ["timm-convnext", "hf-vit"])
def test_a_copy_of_a_model_that_accepts_features_answers_with_its_own_head(tiny, family):
    model, processor = tiny(family)
    accept_features(model)
    classifier = PixelClassifier(model, processor)
    features = classifier.outputs(torch.rand(2, 3, 8, 8)).features
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in classifier_layer(copied)[1].parameters():
            parameter.zero_()
    assert not PixelClassifier(copied, processor).from_features(features).logits.any()
    assert classifier.from_features(features).logits.any()
    replace_head(model, {0: "cat", 1: "dog"})
    assert classifier.outputs(torch.rand(2, 3, 8, 8)).logits.shape == (2, 2)
    assert classifier.from_features(features).logits.shape == (2, 2)
