"""Residual networks for small images, registered with timm: ``cifar_resnet18``, ``cifar_resnet50``, ``cifar_wrn``,
``cifar_wrn_silu``.

They are timm's own ResNet and ResNetV2 with the stem of the CIFAR papers, a 3×3 convolution of stride 1 without pooling,
so that everything timm knows about those (heads, parameter groups, features) holds for them. ``import
hf_robust_transfer.modeling.cifar`` registers them; all that loads models with this package does so by itself.
"""

from functools import partial
from typing import Any

import torch.nn.functional as F
from timm.layers import BatchNormAct2d, ClassifierHead, create_conv2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn

from ..errors import UsageError

_CIFAR_CFG = {
    "input_size": (3, 32, 32),
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "num_classes": 10,
}

# timm lets a tag follow the name after a dot. Saved checkpoints have this one, so that whoever loads them without this
# package reads what is missing, in timm ("Unknown model (cifar_wrn.(no version …))") and in transformers ("The model
# architecture 'cifar_wrn.(no version …)' is not supported in your version of timm", which it then advises to upgrade).
NEEDED = "(no version of timm has it; pip install hf-robust-transfer and import hf_robust_transfer.modeling.cifar)"
_TAGS = (NEEDED, "pip_install_hf-robust-transfer")  # the latter of checkpoints of 0.1.0
_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
_CIFAR100 = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
_OWN: dict[str, dict[str, Any]] = {
    "cifar_resnet18": {"first_conv": "conv1", "classifier": "fc"},
    "cifar_resnet50": {"first_conv": "conv1", "classifier": "fc"},
    "cifar_wrn": {"first_conv": "stem.conv", "classifier": "head.fc"},
    "cifar_wrn_silu": {"first_conv": "stem.conv", "classifier": "head.fc", "mean": _CIFAR10[0], "std": _CIFAR10[1]},
}
default_cfgs = generate_default_cfgs(
    {f"{name}.{tag}": {**_CIFAR_CFG, **own} for tag in _TAGS for name, own in _OWN.items()}
)


def mlp_head(features: int, classes: int, *, layers: int = 1, norm: bool = False, dropout: float = 0.0) -> nn.Module:
    """A head of fully connected layers, the hidden ones as wide as the features and followed by ReLU.

    Args:
        features: D, the size of its input (B, D).
        classes: the size of its output (B, classes); 0 gives a head that does nothing, as timm has it.
        layers: how many; with 1, the linear head that every classifier has.
        norm: batch-norm before each ReLU.
        dropout: the share of hidden activations to drop after each ReLU, in training.

    Raises:
        ValueError: an option out of range, or ``norm`` or ``dropout`` without a hidden layer to apply it to.

    Example:
        >>> [type(module).__name__ for module in mlp_head(8, 2, layers=2, dropout=0.5)]
        ['Linear', 'ReLU', 'Dropout', 'Linear']
    """
    if layers < 1 or not 0 <= dropout < 1:
        raise UsageError(f"a head needs at least one layer and a dropout in [0, 1), not layers={layers}, dropout={dropout}")
    if layers == 1:
        if norm or dropout:
            raise UsageError("a head's norm and dropout belong to its hidden layers: give it layers=2 or more")
        return nn.Linear(features, classes) if classes else nn.Identity()
    hidden: list[nn.Module] = []
    for _ in range(layers - 1):
        hidden += [nn.Linear(features, features), *([nn.BatchNorm1d(features)] if norm else []), nn.ReLU()]
        hidden += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*hidden, nn.Linear(features, classes)) if classes else nn.Identity()


class CifarResNet(ResNet):
    """timm's ResNet with a 3×3 stem of stride 1 and no pooling (He et al. 2016 as commonly used on 32×32 images).

    Args:
        head_args: arguments of `mlp_head`, for a head of several layers.
    """

    def __init__(self, *, in_chans: int = 3, head_args: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(in_chans=in_chans, **kwargs)
        self.conv1 = create_conv2d(in_chans, 64, 3)
        self.maxpool = nn.Sequential()  # does nothing
        self.feature_info = _without_strides_of_stem(self.feature_info)
        self.fc = mlp_head(self.num_features, self.num_classes, **(head_args or {}))

    def reset_classifier(
        self, num_classes: int, global_pool: str | None = None, head_args: dict[str, Any] | None = None
    ) -> None:
        """Give it a new head, as timm does, of several layers where ``head_args`` of `mlp_head` say so."""
        super().reset_classifier(num_classes, global_pool)
        self.fc = mlp_head(self.num_features, num_classes, **(head_args or {})).train(self.training)


class PaddedShortcut(nn.Module):
    """The parameter-free shortcut: average pooling where the stride is 2, zero channels where the width grows."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = (out_channels - in_channels) // 2

    def forward(self, features: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H/stride, W/stride)."""
        if self.stride > 1:
            features = F.avg_pool2d(features, self.stride)
        return F.pad(features, (0, 0, 0, 0, self.padding, self.padding))


class WideResNet(ResNetV2):
    """A wide residual network (Zagoruyko & Komodakis, arXiv 1605.07146) of any depth and width, on timm's ResNetV2.

    Args:
        depth: 6n + 4 (16, 28, 34, …) is the original, with 1×1 convolutions as shortcuts where shapes change; 6n + 2
            (32, …) is the variant of Madry et al. (arXiv 1706.06083) and of the robust-transfer paper, with parameter-free
            shortcuts and leaky ReLU (slope 0.1); other than in their code, every shortcut that changes shapes takes the
            activated input, not the first stage's alone. n is the number of blocks in each of the three stages.
        width: the widening factor; the stages have 16, 32 and 64 times as many channels.
        silu: the variant of DeepMind (Gowal et al. 2020, arXiv 2010.03593): SiLU, and convolutions of stride 2 that pad the
            last row and column alone. Its depth is of the form 6n + 4.
        head_args: arguments of `mlp_head`, for a head of several layers.

    Raises:
        ValueError: a depth of neither form, or a width below 1.
    """

    def __init__(
        self,
        *,
        depth: int = 28,
        width: int = 10,
        num_classes: int = 10,
        in_chans: int = 3,
        silu: bool = False,
        head_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        blocks, form = divmod(depth, 6)
        if silu and form != 4:
            raise UsageError(f"depth={depth} must be 6n + 4 (16, 28, 34, …)")
        if form == 4 or (form == 2 and depth > 2):
            blocks = (depth - form) // 6
        else:
            raise UsageError(f"depth={depth} must be 6n + 4 (16, 28, 34, …) or 6n + 2 (14, 32, …)")
        if blocks < 1 or width < 1:
            raise UsageError(f"depth={depth}, width={width}: at least one block per stage and a width of 1 are needed")
        padded = form == 2
        super().__init__(
            layers=[blocks] * 3,
            channels=(16 * width, 32 * width, 64 * width),
            stem_chs=16,
            basic=True,
            bottle_ratio=1.0,
            num_classes=num_classes,
            in_chans=in_chans,
            act_layer=partial(nn.LeakyReLU, negative_slope=0.1) if padded else nn.SiLU if silu else nn.ReLU,
            norm_layer=BatchNormAct2d,
            conv_layer=partial(create_conv2d, padding="same") if silu else create_conv2d,
            **kwargs,
        )
        self.stem = nn.Sequential()
        self.stem.add_module("conv", create_conv2d(in_chans, 16, 3))
        self.feature_info = _without_strides_of_stem(self.feature_info)
        self.head = ClassifierHead(self.num_features, num_classes, pool_type="avg", drop_rate=self.drop_rate)
        self.head.fc = mlp_head(self.num_features, num_classes, **(head_args or {}))
        if padded:
            for stage in self.stages:
                block: Any = stage.get_submodule("blocks.0")
                block.downsample = PaddedShortcut(block.conv1.in_channels, block.conv1.out_channels, block.conv1.stride[0])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def reset_classifier(
        self, num_classes: int, global_pool: str | None = None, head_args: dict[str, Any] | None = None
    ) -> None:
        """Give it a new head, as timm does, of several layers where ``head_args`` of `mlp_head` say so."""
        super().reset_classifier(num_classes, global_pool)
        self.head.fc = mlp_head(self.num_features, num_classes, **(head_args or {})).train(self.training)


def _without_strides_of_stem(feature_info: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What timm says of the features on the way, whose stems halve the size twice."""
    return [{**info, "reduction": max(info["reduction"] // 4, 1)} for info in feature_info]


def statistics_of(classes: int) -> tuple[tuple[float, float, float], tuple[float, float, float]] | None:
    """The mean and standard deviation that the originals of `cifar_wrn_silu` have in their code, not among their weights.

    Args:
        classes: how many they tell apart: 10 of CIFAR-10, 100 of CIFAR-100; None is known of others.
    """
    return {10: _CIFAR10, 100: _CIFAR100}.get(classes)


def _fitting(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights without those of a head for other labels, of which timm itself would leave out a single layer only."""
    pretrained_cfg: Any = model.pretrained_cfg
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    return {
        name: tensor
        for name, tensor in weights.items()
        if not name.startswith(f"{pretrained_cfg['classifier']}.") or own.get(name) == tensor.shape
    }


_OF_WIDE_RESNETS: dict[str, Any] = {
    "feature_cfg": {"flatten_sequential": True, "out_indices": (0, 1, 2, 3)},
    "pretrained_filter_fn": _fitting,
}


@register_model
def cifar_resnet18(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-18 for 32×32 images: 11.2 million parameters, 0.56 GMACs."""
    options: dict[str, Any] = {"block": BasicBlock, "layers": (2, 2, 2, 2), "pretrained_filter_fn": _fitting}
    return build_model_with_cfg(CifarResNet, "cifar_resnet18", pretrained, **options, **kwargs)


@register_model
def cifar_resnet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-50 for 32×32 images, that of MadryLab's robust models for CIFAR-10: 23.5 million parameters, 1.3 GMACs."""
    options: dict[str, Any] = {"block": Bottleneck, "layers": (3, 4, 6, 3), "pretrained_filter_fn": _fitting}
    return build_model_with_cfg(CifarResNet, "cifar_resnet50", pretrained, **options, **kwargs)


@register_model
def cifar_wrn(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """A wide residual network for 32×32 images; ``depth`` and ``width`` as for `WideResNet`, by default WRN-28-10."""
    return build_model_with_cfg(WideResNet, "cifar_wrn", pretrained, **_OF_WIDE_RESNETS, **kwargs)


@register_model
def cifar_wrn_silu(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """DeepMind's wide residual network with SiLU for 32×32 images, that of most robust models for CIFAR since 2020."""
    return build_model_with_cfg(WideResNet, "cifar_wrn_silu", pretrained, **_OF_WIDE_RESNETS, silu=True, **kwargs)
