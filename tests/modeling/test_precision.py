"""Full precision: what is judged by is float32, and every setting comes back."""

import pytest
import torch
from torch import nn

from hf_robust_transfer.modeling import PixelClassifier
from hf_robust_transfer.modeling.attack_copy import folded_copy
from hf_robust_transfer.modeling.classifier import full_precision, without_tf32

BACKENDS = torch.backends


def told(read):
    try:
        return read()
    except RuntimeError:  # older and newer settings disagree
        return "mixed"


def settings():
    kinds = [BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn, BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv]
    older = [
        lambda: BACKENDS.cudnn.allow_tf32,
        lambda: BACKENDS.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision,
        lambda: BACKENDS.fp32_precision,
    ]
    return [kind.fp32_precision for kind in kinds], [told(read) for read in older]


def set_all(value):
    BACKENDS.fp32_precision = value


ASKED = {
    "nothing": lambda: None,
    "TF32 in matrix products": lambda: setattr(BACKENDS.cuda.matmul, "allow_tf32", True),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "no TF32 in convolutions": lambda: setattr(BACKENDS.cudnn, "allow_tf32", False),
    "TF32 everywhere": lambda: set_all("tf32"),
    "TF32 in convolutions, newer": lambda: setattr(BACKENDS.cudnn.conv, "fp32_precision", "tf32"),
    "no TF32 in convolutions, newer": lambda: setattr(BACKENDS.cudnn.conv, "fp32_precision", "ieee"),
    "TF32 in matrix products, newer": lambda: setattr(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
}


@pytest.fixture
def defaults():
    yield
    set_all("none")
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True


@pytest.mark.parametrize("ask", ASKED.values(), ids=list(ASKED))
def test_tf32_is_off_inside_and_as_before_afterwards_also_when_something_raises(ask, defaults):
    ask()
    before = settings()
    for around in (without_tf32, lambda: full_precision(nn.Linear(2, 2))):
        with pytest.raises(KeyError), around():
            inside = settings()
            raise KeyError
        assert inside[0] == ["ieee"] * 5 and True not in inside[1]
        assert settings() == before


def test_what_inherits_its_precision_still_does_so_afterwards(defaults):
    set_all("tf32")
    with without_tf32():
        pass
    set_all("ieee")
    assert BACKENDS.mkldnn.conv.fp32_precision == "ieee"


def test_folding_is_compared_without_tf32(defaults):
    seen = []

    class Watched(nn.Sequential):
        def forward(self, images):
            seen.append((BACKENDS.cudnn.allow_tf32, BACKENDS.cuda.matmul.allow_tf32))
            return super().forward(images)

    torch.set_float32_matmul_precision("high")
    network = Watched(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)).eval()
    copied = folded_copy(network, torch.rand(2, 3, 4, 4), "float32")
    assert isinstance(copied[1], nn.Sequential)  # it was folded
    assert len(seen) >= 2 and set(seen) == {(False, False)}


@pytest.mark.parametrize("own", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_classifier_takes_pixels_of_any_floating_type_and_refuses_whole_ones(tiny, own):
    model, processor = tiny("timm-convnext")
    classifier = PixelClassifier(model.to(own), processor)
    images = torch.rand(2, 3, 8, 8)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert classifier(images.to(dtype)).dtype == own
    for dtype in (torch.uint8, torch.int64):
        with pytest.raises(ValueError, match="as_pixels"):
            classifier((images * 255).to(dtype))
