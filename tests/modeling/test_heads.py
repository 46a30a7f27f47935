"""Heads of every kind: their layers, what is drawn anew for new labels, and what else keeps its weights."""

import pytest
import timm
import torch
from backbones import NEW, SEVEN, stock
from timm.data import resolve_data_config
from torch import nn

from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.modeling import PixelClassifier, classifier_layers, create_model, load_model
from hf_robust_transfer.modeling.classifier import takes_channels_last
from hf_robust_transfer.modeling.heads import head, is_of_head, logits_of_features, replace_head

KINDS = {
    "one linear layer": ("test_vit", None, 1),
    "a 1×1 convolution": ("resnetv2_18", None, 1),
    "two after batch-norm": ("levit_128s", {"embed_dim": (16, 32, 32), "num_heads": (2, 2, 2), "depth": (1, 1, 1)}, 2),
    "after attention pooling": ("vit_base_patch16_siglip_224", {"depth": 1, "embed_dim": 16, "num_heads": 2}, 1),
    "after pooling by an MLP": ("test_convnext", None, 1),
}


def images(processor):
    size = resolve_data_config(processor.data_config)["input_size"] if hasattr(processor, "data_config") else (3, 16, 16)
    return torch.rand(3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_of_any_kind_gives_the_logits_of_its_features_and_is_drawn_anew_alone(kind):
    architecture, model_args, count = KINDS[kind]
    model, processor = create_model(architecture, id2label=SEVEN, model_args=model_args)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    replace_head(model, NEW)
    classifier = PixelClassifier(model.eval(), processor)
    assert len(classifier_layers(model)) == count
    with torch.no_grad():
        logits, features = classifier.outputs(images(processor))
        assert logits.shape == (3, len(NEW))
        torch.testing.assert_close(logits_of_features(model, features), logits)
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert changed and all(is_of_head(name, model) for name in changed)
    assert all(any(name.startswith(layer) for name in changed) for layer in classifier_layers(model))


def test_both_heads_of_a_distilled_deit_take_part():
    model, processor = stock("DeiTForImageClassificationWithTeacher", "deit")
    classifier = PixelClassifier(model, processor)
    with torch.no_grad():
        logits, features = classifier.outputs(images(processor))
        parts = features.split(features.shape[1] // 2, dim=1)
        layers = classifier_layers(model).values()
        by_hand = sum(layer(part) for layer, part in zip(layers, parts, strict=True)) / 2
    torch.testing.assert_close(logits, by_hand)


def test_volos_second_head_is_part_of_the_head():
    model, _ = create_model("volo_d1_224", id2label=SEVEN, model_args={"img_size": 32})
    assert set(classifier_layers(model)) == {"timm_model.head"}
    assert set(head(model)) == {"timm_model.head", "timm_model.aux_head"}


@pytest.mark.parametrize("architecture", ["test_vit", "vit_base_patch16_siglip_224", "test_convnext"])
def test_a_checkpoint_without_a_head_gets_one(architecture, tmp_path):
    small = {} if architecture.startswith("test") else {"depth": 1, "embed_dim": 16, "num_heads": 2}
    headless = timm.create_model(architecture, num_classes=0, **small)
    timm.models.save_for_hf(headless, tmp_path, model_args=small or None)
    with pytest.raises(UsageError, match="it has no head and no labels of its own: give it id2label"):
        load_model(str(tmp_path))
    model, processor = load_model(str(tmp_path), id2label=NEW)
    for name, value in headless.state_dict().items():
        torch.testing.assert_close(model.timm_model.state_dict()[name], value)
    assert PixelClassifier(model, processor)(images(processor)).shape == (3, len(NEW))


def test_a_model_without_labels_is_refused():
    class Nothing(nn.Module):
        num_labels = 3

    with pytest.raises(UsageError, match="Nothing has no linear layer whose outputs are its 3 labels"):
        classifier_layers(Nothing())


def test_strided_pointwise_convolutions_of_few_channels_keep_their_format():
    assert takes_channels_last(nn.Conv2d(3, 8, 3, stride=2)) and takes_channels_last(nn.Conv2d(8, 8, 1, stride=2))
    assert takes_channels_last(nn.Conv2d(3, 8, 1))
    assert not takes_channels_last(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 8, 1, stride=2)))
