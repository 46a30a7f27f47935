"""Logits, however a classifier wraps them and whatever floating type it computes in."""

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.logits import logits_of

WRAPPED = {
    "tensor": lambda logits: logits,
    "tuple": lambda logits: (logits, torch.zeros(3)),
    "list": lambda logits: [logits],
    "output": lambda logits: ImageClassifierOutput(loss=torch.zeros(()), logits=logits),
    "dictionary": lambda logits: {"features": torch.zeros(2, 5), "logits": logits},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=list(WRAPPED))
def test_logits_are_found_in_what_a_classifier_returns(wrap):
    images = torch.rand(2, 3, 2, 2)
    assert torch.equal(logits_of(lambda shown: wrap(shown.flatten(1)), images), images.flatten(1))


@pytest.mark.parametrize(
    "output",
    [
        None,
        (),
        {"scores": torch.zeros(2, 3)},
        "cat",
        torch.zeros(2),
        torch.zeros(2, 1),
        torch.zeros(3, 4),
        torch.zeros(2, 3, 4),
        ImageClassifierOutput(logits=None),
    ],
    ids=str,
)
def test_what_holds_no_logits_of_two_classes_is_refused(output):
    with pytest.raises(UsageError, match=r"logits of shape \(2, classes\) with at least 2 classes"):
        logits_of(lambda images: output, torch.rand(2, 3, 2, 2))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integer_pixels_are_refused(dtype):
    with pytest.raises(UsageError, match="as_pixels"):
        logits_of(lambda images: images.flatten(1), torch.ones(2, 3, 2, 2, dtype=dtype))


@pytest.mark.parametrize("own", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_module_takes_images_of_any_floating_type(own, given):
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).to(own)
    images = torch.rand(2, 3, 2, 2).to(given)
    assert torch.equal(logits_of(network, images), network(images.to(own)))


def test_a_module_of_low_precision_that_cannot_take_finer_images_says_so():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).to(torch.bfloat16)
    assert logits_of(network, torch.rand(2, 3, 2, 2).bfloat16()).dtype == torch.bfloat16
    with pytest.raises(UsageError, match=r"computes in torch\.bfloat16, fails on torch\.float32 images"):
        logits_of(network, torch.rand(2, 3, 2, 2))
