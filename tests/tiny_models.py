"""Tiny models of every family, and what tests that train them share."""

from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_robust_transfer.modeling import classifier_layers

# kind: architecture, its arguments, image size
TIMM = {
    "timm-convnext": ("convnext_tiny", {"patch_size": 1, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}, 8),
    "timm-resnet": ("resnet18", {"channels": [8, 8, 16, 16]}, 32),
    "timm-vit": ("vit_tiny_patch16_224", {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2}, 8),
    "timm-wrn": ("cifar_wrn", {"depth": 10, "width": 1}, 8),
}
# kind: model class, its configuration, processor
TRANSFORMERS = {
    "hf-resnet": (
        ResNetForImageClassification,
        lambda labels: ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 16], depths=[2, 1, 1], layer_type="basic", **labels
        ),
        lambda: ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0),
    ),
    "hf-convnext": (
        ConvNextForImageClassification,
        lambda labels: ConvNextConfig(
            patch_size=2, hidden_sizes=[8, 16], depths=[3, 1], num_stages=2, image_size=8, **labels
        ),
        lambda: ConvNextImageProcessor(size={"shortest_edge": 8}, crop_pct=1.0),
    ),
    "hf-vit": (
        ViTForImageClassification,
        lambda labels: ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=8,
            patch_size=2,
            **labels,
        ),
        lambda: ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.3]),
    ),
    "hf-swin": (
        SwinForImageClassification,
        lambda labels: SwinConfig(
            image_size=8, patch_size=2, embed_dim=8, depths=[3, 1], num_heads=[2, 2], window_size=2, **labels
        ),
        lambda: ViTImageProcessor(size={"height": 8, "width": 8}),
    ),
}
# Arguments of a training that is as plain with an LwF term as without: no warm start, no ramp.
PLAIN = {"learning_rate": 0.01, "warm_start_steps": 0, "unfreeze_warmup_steps": 0}
DIGITS = {index: str(index) for index in range(10)}


def classifier_layer(model):
    """The name and module of the classifier layer of a model with one."""
    (found,) = classifier_layers(model).items()
    return found
