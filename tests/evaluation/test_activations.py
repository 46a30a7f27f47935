"""How far activations move, against what is worked out by hand."""

import pytest
import torch

from hf_robust_transfer import PixelClassifier, blocks
from hf_robust_transfer.evaluation.activations import activation_shift


def test_every_block_is_measured_and_the_model_is_left_as_it_was(tiny, kind):
    classifier = PixelClassifier(*tiny(kind)).train()
    size = 32 if "resnet" in kind else 8
    images = torch.rand(3, 3, size, size)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    shift = activation_shift(classifier, images, (images + 0.1 * torch.rand_like(images)).clamp(0, 1))
    names = [block.name for block in blocks(classifier.model)]
    assert list(shift)[-1] == "features" and len(shift) > 2
    assert list(shift)[:-1] == [name for name in names if name in shift]
    assert all(values.shape == (3,) and (values > 0).all() for values in shift.values())
    assert classifier.training and not any(module._forward_hooks for module in classifier.modules())
    for name, value in classifier.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_change_is_relative_to_the_clean_activation(tiny):
    classifier = PixelClassifier(*tiny("timm-convnext"))
    images = torch.rand(2, 3, 8, 8)
    adversarial = (images + 0.2 * torch.rand_like(images)).clamp(0, 1)
    shift = activation_shift(classifier, images, adversarial)
    assert activation_shift(classifier, images, images)["features"].tolist() == [0, 0]
    with torch.no_grad():
        clean, moved = (classifier.outputs(each).features for each in (images, adversarial))
        stem = classifier.model.timm_model.stem
        stems = [stem((each - classifier.mean) / classifier.std).flatten(1) for each in (images, adversarial)]
    for name, (before, after) in {"features": (clean, moved), "stem": stems}.items():
        for row in range(2):
            by_hand = ((after[row] - before[row]) ** 2).sum().sqrt() / (before[row] ** 2).sum().sqrt()
            assert shift[name][row].item() == pytest.approx(by_hand.item(), rel=1e-4)
