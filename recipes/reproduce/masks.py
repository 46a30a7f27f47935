"""Tiny networks for handwritten digits, and what masks their gradients."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from hf_robust_transfer.attacks import pgd
from hf_robust_transfer.threat_model import ThreatModel

EPS = ThreatModel("linf", 0.1)
Function = Callable[[Tensor], Tensor]


@cache
def digits() -> tuple[Tensor, Tensor]:
    """All digits as grey pixels (N, 1, 8, 8) in [0, 1], and their labels."""
    loaded = load_digits()
    return torch.tensor(loaded.images / 16, dtype=torch.float32)[:, None], torch.tensor(loaded.target)


def convolutional(classes: int = 10, norm: nn.Module | None = None, middle: nn.Module | None = None) -> nn.Sequential:
    """A tiny convolutional network."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        norm or nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        middle or nn.Identity(),
        nn.Linear(256, classes),
    )


class Vit(nn.Module):
    """A tiny vision transformer over patches of 2×2 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 32, 2, stride=2)
        self.positions = nn.Parameter(torch.zeros(16, 32))
        self.block = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.block(self.patches(images).flatten(2).mT + self.positions).mean(1))


def train(
    model: nn.Module, *, steps: int = 400, classes: int = 10, robust: bool = False, temperature: float = 1.0
) -> nn.Module:
    """Train on the first digits, naturally or adversarially."""
    images, labels = (each[:-400] for each in digits())
    images, labels = images[labels < classes], labels[labels < classes]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        rows = torch.randint(len(images), (64,), generator=generator)
        batch = pgd(model, images[rows], labels[rows], EPS, steps=3, step_size=0.05, seed=step) if robust else images[rows]
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(batch) / temperature, labels[rows]).backward()
        optimizer.step()
    return model.eval()


@cache
def natural() -> nn.Module:
    """The network that most masks are put on."""
    torch.manual_seed(0)
    return train(convolutional())


@cache
def robust() -> nn.Module:
    """The same, trained adversarially."""
    torch.manual_seed(0)
    return train(convolutional(), robust=True)


class Around(nn.Module):
    """A network between two functions, of its images and of its logits."""

    def __init__(self, network: nn.Module, before: Function | None = None, after: Function | None = None) -> None:
        super().__init__()
        self.before, self.network, self.after = before, network, after

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images if self.before is None else self.before(images))
        return logits if self.after is None else self.after(logits)


def straight_through(step: Function) -> Function:
    """A function whose gradient is taken for the identity's."""
    return lambda images: images + (step(images) - images).detach()


def gradient(change: Function) -> Function:
    """The identity, whose gradient is changed."""

    def apply(images: Tensor) -> Tensor:
        images = images * 1
        if images.requires_grad:
            images.register_hook(change)
        return images

    return apply


def partly_right(share: float) -> Function:
    """A gradient that is right in this share of the pixels, the same in each call, and in the others noise of its size."""
    right = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(1)) < share

    def change(gradient: Tensor) -> Tensor:
        size = gradient.flatten(1).std(1).view(-1, 1, 1, 1)
        return torch.where(right, gradient, torch.randn_like(gradient) * size)

    return change


def staircase(images: Tensor) -> Tensor:
    """Pixels in nine grey levels."""
    return (images * 8).round() / 8


def jpeg(images: Tensor) -> Tensor:
    """What JPEG does: coefficients of the cosine transform, rounded."""
    n = torch.arange(8.0)
    cosine = torch.cos(torch.pi * (n[None] + 0.5) * n[:, None] / 8) * 0.5
    cosine[0] /= 2**0.5
    coefficients = ((cosine @ images @ cosine.T) * 8).round() / 8
    return cosine.T @ coefficients @ cosine


def thermometer(images: Tensor) -> Tensor:
    """Eight levels, each on or off, summed up again."""
    levels = (torch.arange(8.0) + 0.5).view(-1, 1, 1, 1, 1) / 8
    return (images > levels).float().mean(0)


def smoothing(sigma: float) -> Function:
    """Gaussian noise, new in each call."""
    return lambda images: images + sigma * torch.randn_like(images)


def resized(images: Tensor) -> Tensor:
    """Shrunk or enlarged by a random amount and put back (Xie et al. 2018)."""
    size = int(torch.randint(6, 13, ()))
    there = F.interpolate(images, size=(size, size), mode="bilinear")
    return F.interpolate(there, size=images.shape[-2:], mode="bilinear")


def one_hot(logits: Tensor) -> Tensor:
    """The answer alone."""
    return F.one_hot(logits.argmax(1), logits.shape[1]).float()


def rippled(logits: Tensor) -> Tensor:
    """With a ripple on them, whose slope is steeper than theirs."""
    return logits + 2 * torch.sin(40 * logits)


class Winners(nn.Module):
    """The tenth of the features that is largest; the others are zero (k-winners-take-all, Xiao et al. 2020)."""

    def forward(self, features: Tensor) -> Tensor:
        least = features.topk(features.shape[1] // 10, dim=1).values[:, -1:]
        return torch.where(features >= least, features, 0)


class Detached(nn.Module):
    """Nearly all of the logits from one network, without gradients, and a gradient from another one."""

    def __init__(self, network: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.network, self.other = network, other

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).detach() + 0.05 * self.other(images)


class Remembering(nn.Module):
    """A network that knows some images, and is surer of their labels near them."""

    def __init__(self, network: nn.Module, known: list[dict[str, Any]]) -> None:
        super().__init__()
        self.network = network
        self.images = torch.stack([item["pixel_values"].flatten() for item in known])
        self.labels = torch.tensor([item["labels"] for item in known])

    def forward(self, images: Tensor) -> Tensor:
        distances, nearest = (images.flatten(1)[:, None] - self.images).abs().amax(2).min(1)
        logits = self.network(images)
        return logits + 15 * (distances < 0.15)[:, None] * F.one_hot(self.labels[nearest], logits.shape[1])


def in_places(change: Function, where: Function) -> Function:
    """The identity, whose gradient is changed for some images only: those for which a function (B, ...) -> (B,) is true."""

    def apply(images: Tensor) -> Tensor:
        chosen = where(images.detach()).view(-1, 1, 1, 1)
        return gradient(lambda found: torch.where(chosen, change(found), found))(images)

    return apply


def unsure(images: Tensor) -> Tensor:
    """Where the natural network's two largest logits are close."""
    first, second = natural()(images).topk(2).values.unbind(1)
    return first - second < 4


def off_grid(images: Tensor) -> Tensor:
    """Images that are not in the sixteen grey levels of the data."""
    return ((images * 16 - (images * 16).round()).abs() > 1e-3).flatten(1).any(1)
