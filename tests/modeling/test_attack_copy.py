"""The fast copy against the model that it is a copy of."""

import copy
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_robust_transfer.modeling import PixelClassifier
from hf_robust_transfer.modeling.attack_copy import attack_copy, choose_precision


@pytest.fixture
def batch(kind, digit_batch):
    return digit_batch(32 if kind.endswith("resnet") else 8)


def with_statistics(classifier, images):
    """The classifier in eval mode, with batch-norm statistics and weights that are not those of initialisation."""
    classifier.train()
    with torch.no_grad():
        classifier(images)
        for module in classifier.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 2)
                module.bias.uniform_(-1, 1)
    return classifier.eval()


def gradient(classifier, images, labels):
    images = images.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(classifier(images), labels), images)[0]


def test_the_copy_computes_what_the_model_does_and_leaves_it_alone(tiny, kind, batch):
    images, labels = batch
    classifier = with_statistics(PixelClassifier(*tiny(kind)), images)
    before = copy.deepcopy(classifier.state_dict())
    expected, direction = classifier(images), gradient(classifier, images, labels)
    full, low = (attack_copy(classifier, images[:2], precision) for precision in ("float32", "bf16"))
    size = expected.abs().max()
    torch.testing.assert_close(full(images), expected, rtol=0, atol=1e-5 * size.item())
    torch.testing.assert_close(gradient(full, images, labels), direction, rtol=0, atol=1e-4 * direction.abs().max().item())
    in_bf16 = low(images)
    assert in_bf16.dtype == torch.float32 and not torch.equal(in_bf16, full(images))
    torch.testing.assert_close(in_bf16, expected, rtol=0, atol=0.05 * size.item())
    cosine = F.cosine_similarity(gradient(low, images, labels).flatten(1), direction.flatten(1))
    assert cosine.min() > 0.9
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    assert all(parameter.requires_grad for parameter in classifier.parameters())
    with torch.no_grad():
        next(classifier.parameters()).zero_()
    assert torch.equal(low(images), in_bf16)


@pytest.mark.parametrize(("kind", "left"), [("timm-resnet", 0), ("hf-resnet", 0), ("timm-wrn", 4)])
def test_batch_norm_after_a_convolution_is_no_longer_computed(tiny, kind, left, digit_batch, monkeypatch):
    """A pre-activation network keeps the first norm of each of its three blocks, and the last one."""
    images, _ = digit_batch(32 if kind.endswith("resnet") else 8)
    classifier = with_statistics(PixelClassifier(*tiny(kind)), images)
    fast = attack_copy(classifier, images[:2], "float32")
    calls = []
    computed = torch.batch_norm
    monkeypatch.setattr(torch, "batch_norm", lambda *args: calls.append(1) or computed(*args))
    with torch.no_grad():
        fast(images)
        folded = len(calls)
        classifier(images)
    assert folded == left < len(calls) - folded


class Reused(nn.Module):
    """Uses what lies between the convolution and its batch-norm a second time."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, images):
        between = self.convolution(images)
        return self.head((self.norm(between) + between).mean((2, 3)))


class Repeated(nn.Module):
    """Applies one convolution twice, and batch-norm after the second time only."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm, self.head = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 2)

    def forward(self, images):
        return self.head(self.norm(self.convolution(self.convolution(images))).mean((2, 3)))


@pytest.mark.parametrize("network", [Reused, Repeated])
def test_where_folding_would_change_the_function_it_is_not_done(network, digit_batch):
    images, _ = digit_batch(8)
    classifier = with_statistics(network(), images)
    torch.testing.assert_close(attack_copy(classifier, images[:2], "float32")(images), classifier(images))


def test_the_precision_is_that_of_the_hardware_unless_it_is_given():
    assert choose_precision("auto", torch.device("cpu")) in ("bf16", "float32")
    assert choose_precision("auto", torch.device("meta")) == "float32"
    assert choose_precision("fp16", torch.device("cpu")) == "fp16"
    with pytest.raises(ValueError, match="precision='half' is unknown: use auto, float32, bf16, fp16"):
        choose_precision("half", torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_copy_computes_the_same_on_batches_of_any_size(tiny, digit_batch):
    images, labels = digit_batch(8)
    classifier = PixelClassifier(*tiny("timm-convnext"))
    fast = attack_copy(classifier, images[:2], "float32", compiled=True)
    for count in (8, 5, 1):
        torch.testing.assert_close(fast(images[:count]), classifier(images[:count]), rtol=1e-4, atol=1e-5)
        expected = gradient(classifier, images[:count], labels[:count])
        torch.testing.assert_close(gradient(fast, images[:count], labels[:count]), expected, rtol=1e-3, atol=1e-5)
