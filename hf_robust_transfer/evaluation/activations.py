"""How far an attack moves what a network computes, block by block."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks.eval_mode import untouched
from ..modeling.classifier import PixelClassifier, full_precision
from ..transfer.block_order import blocks


def activation_shift(classifier: PixelClassifier, images: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
    """The relative change ‖h(x') − h(x)‖₂ / ‖h(x)‖₂ of each block's activations h, in eval mode and float32.

    Args:
        classifier: the model, on its device.
        images: clean images x in [0, 1], (B, C, H, W).
        adversarial: an adversarial image x' for each, (B, C, H, W).

    Returns:
        By the block's name, as `hf_robust_transfer.blocks` gives it and in its order, the change of each sample, (B,);
        last ``features``, of the input of the classifier layer. Blocks that are no module of their own are left out.

    Raises:
        ValueError: the backbone has no blocks to tell apart.

    Example:
        >>> from hf_robust_transfer.modeling import create_model
        >>> classifier = PixelClassifier(*create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"}))
        >>> images = torch.rand(2, 3, 32, 32)
        >>> shift = activation_shift(classifier, images, images)
        >>> list(shift)[:2], shift["features"].tolist()
        (['conv1', 'layer1.0'], [0.0, 0.0])
    """
    clean, moved = (_activations(classifier, each) for each in (images, adversarial))
    return {name: (moved[name] - clean[name]).norm(dim=1) / clean[name].norm(dim=1) for name in clean}


def _activations(classifier: PixelClassifier, images: Tensor) -> dict[str, Tensor]:
    """The output of each block, flattened to (B, …), and the penultimate features."""
    backbone: nn.Module = getattr(classifier.model, "timm_model", classifier.model)
    modules = dict(backbone.named_modules())
    names = [block.name for block in blocks(classifier.model) if block.name in modules]
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            first = output if isinstance(output, Tensor) else output[0]
            found[name] = first.detach().flatten(1)

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in names]
    try:
        with torch.no_grad(), untouched(classifier), full_precision(classifier):
            features = classifier.outputs(images).features
    finally:
        for handle in handles:
            handle.remove()
    return {**{name: found[name] for name in names}, "features": features}
