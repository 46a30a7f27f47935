"""The learning rate of a new head."""

import pytest
import torch
import torch.nn.functional as F

from hf_robust_transfer import PixelClassifier
from hf_robust_transfer.transfer import head_learning_rate


@pytest.mark.parametrize(("family", "size"), [("timm-convnext", 8), ("timm-vit", 8), ("timm-resnet", 32)])
def test_the_heads_learning_rate_follows_from_the_features_and_is_stable(tiny, digit_batch, family, size):
    classifier = PixelClassifier(*tiny(family))
    images, labels = digit_batch(size=size, count=64)
    rate = head_learning_rate(classifier.train(), images)
    assert classifier.training
    with torch.no_grad():
        features = classifier.eval().outputs(images).features
    assert rate == pytest.approx(10 / (1 + (features**2).sum(1).mean().item()), rel=0.05)  # two digits
    # The loss of a head that SGD trains at this rate goes down all the way; at thirty times the rate it does not.
    for factor, falls in ((1, True), (30, False)):
        torch.manual_seed(0)
        head = torch.nn.Linear(features.shape[1], 10)
        optimizer = torch.optim.SGD(head.parameters(), lr=factor * rate, momentum=0.9)
        losses = []
        for _ in range(200):
            loss = F.cross_entropy(head(features), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert (max(losses) == pytest.approx(losses[0], rel=0.05) and losses[-1] < losses[0]) == falls
