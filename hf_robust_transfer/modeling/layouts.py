"""What the networks of others call their layers, in timm's names, and the normalisation that they keep beside them."""

import re
import sys
from collections.abc import Container, Iterable, Mapping

from torch import Tensor, nn

from ..errors import UsageError

# What `DataParallel`, MadryLab's AttackerModel and its Attacker, RobustBench and the weight averages of revisiting-at put
# before the network's own names.
_PREFIXES = re.compile(r"^(?:(?:module|attacker|model|base_model)\.)+")
_SEQUENTIAL = re.compile(r"^(?:(?:module|attacker|model|base_model)\.)*([01])\.")
# Where they keep their normalisation: MadryLab's model and attacker, RobustBench's first layer and its network classes.
MEANS = ("normalizer.new_mean", "normalize.new_mean", "normalize.mean", "mu", "mean")
STDS = ("normalizer.new_std", "normalize.new_std", "normalize.std", "sigma", "std")
_UNUSED = "sub_block1."  # WideResNets of TRADES have these layers, but never apply them
_CONV_STEM = re.compile(r"^(?:stem|patch_embed\.proj)\.stem\.")


def _mobilenet() -> tuple[tuple[str, str], ...]:
    """The layers of torchvision's MobileNetV2 in timm's names, block by block."""
    renaming = [
        (r"^features\.0\.0\.", "conv_stem."),
        (r"^features\.0\.1\.", "bn1."),
        (r"^features\.1\.conv\.0\.0\.", "blocks.0.0.conv_dw."),
        (r"^features\.1\.conv\.0\.1\.", "blocks.0.0.bn1."),
        (r"^features\.1\.conv\.1\.", "blocks.0.0.conv_pw."),
        (r"^features\.1\.conv\.2\.", "blocks.0.0.bn2."),
        (r"^features\.18\.0\.", "conv_head."),
        (r"^features\.18\.1\.", "bn2."),
        (r"^classifier\.1\.", "classifier."),
    ]
    parts = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "2": "conv_pwl", "3": "bn3"}
    blocks = [(stage, block) for stage, count in enumerate((2, 3, 4, 3, 3, 1), 1) for block in range(count)]
    for index, (stage, block) in enumerate(blocks, 2):
        for theirs, ours in parts.items():
            renaming.append((rf"^features\.{index}\.conv\.{re.escape(theirs)}\.", f"blocks.{stage}.{block}.{ours}."))
    return tuple(renaming)


RENAMINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "timm, torchvision": (),
    "ResNet for CIFAR": ((r"\bshortcut\.", "downsample."), (r"^linear\.", "fc.")),
    "WideResNet for CIFAR": (
        (r"^conv1\.", "stem.conv."),
        (r"^block1\.layer\.", "stages.0.blocks."),
        (r"^block2\.layer\.", "stages.1.blocks."),
        (r"^block3\.layer\.", "stages.2.blocks."),
        (r"\.bn([12])\.", r".norm\1."),
        (r"\.convShortcut\.", ".downsample.conv."),
        (r"^bn1\.", "norm."),
        (r"^fc\.", "head.fc."),
    ),
    "WideResNet of DeepMind": (
        (r"^init_conv\.", "stem.conv."),
        (r"^layer\.(\d+)\.block\.", r"stages.\1.blocks."),
        (r"\.batchnorm_0\.", ".norm1."),
        (r"\.batchnorm_1\.", ".norm2."),
        (r"\.conv_1\.", ".conv2."),
        (r"\.conv_0\.", ".conv1."),
        (r"\.shortcut\.", ".downsample.conv."),
        (r"^batchnorm\.", "norm."),
        (r"^logits\.", "head.fc."),
    ),
    "MobileNetV2 of torchvision": _mobilenet(),
    "DenseNet of torchvision, before its 0.3": ((r"\.(norm|conv)\.([12])\.", r".\1\2."),),
}
"""From the names in a file to timm's: patterns and what replaces them, all of a scheme in their order. One scheme is tried
after the other until a name fits the architecture; a further one is a further row."""


def own_names(names: Iterable[str]) -> dict[str, str]:
    """The network's own names for those in a file, without what is wrapped around it; left out is what is never applied.

    Example:
        >>> own_names(["module.model.fc.bias", "module.attacker.model.fc.bias"])
        {'module.model.fc.bias': 'fc.bias', 'module.attacker.model.fc.bias': 'fc.bias'}
    """
    names = list(names)
    places: dict[str, set[str]] = {}
    for name in names:
        if found := _SEQUENTIAL.match(name):
            places.setdefault(found[1], set()).add(name[found.end() :])
        else:
            places.setdefault("", set()).add(name)
    # `Sequential(network)`, or one with a normalisation before it.
    sequential = places.keys() == {"0"} or (places.keys() == {"0", "1"} and places["0"] == {"mean", "std"})
    own = {}
    for name in names:
        bare = _SEQUENTIAL.sub("", name) if sequential else name
        bare = _PREFIXES.sub("", bare)
        if not bare.startswith(_UNUSED):
            own[name] = bare
    return own


def fitted(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Weights under the names that an architecture of timm has for them, as far as they are known.

    Names that `RENAMINGS` knows are renamed one by one. Where that doesn't make them fit, they go through what timm itself
    does to old and original checkpoints of the architecture (``checkpoint_filter_fn``, as for Swin), unless that would
    resample a tensor for images of another size.

    Args:
        weights: by the network's own names.
        network: of timm.

    Raises:
        UsageError: two tensors would get one name, or the layers are of a kind that timm doesn't have.
    """
    expected = network.state_dict()
    if any(_CONV_STEM.match(name) for name in weights):
        raise UsageError(
            "the network has the convolutional stem of Singh et al. 2023 (…-ConvStem), which timm's architectures lack: use"
            " their ConvNeXt-T, ConvNeXt-B, ViT-S or ViT-B without it"
        )
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        add(renamed, _renamed(name, expected), tensor)
    if _fits(renamed, expected):
        return renamed
    of_timm = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if of_timm is not None:
        try:
            filtered = of_timm(dict(weights), network)
        except Exception:  # it is of other weights
            return renamed
        # What lies elsewhere in memory, timm has made anew.
        own = {tensor.untyped_storage().data_ptr() for tensor in weights.values()}
        if _fits(filtered, expected) and {each.untyped_storage().data_ptr() for each in filtered.values()} <= own:
            return dict(filtered)
    return renamed


def add(weights: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Add a tensor; it may be there already, but not with other values.

    Raises:
        UsageError: it is.
    """
    if name in weights and not (weights[name].shape == value.shape and weights[name].equal(value)):
        raise UsageError(f"holds two different tensors for {name}: save the one network's state_dict() alone")
    weights[name] = value


def _renamed(name: str, expected: Container[str]) -> str:
    for scheme in RENAMINGS.values():
        renamed = name
        for pattern, replacement in scheme:
            renamed = re.sub(pattern, replacement, renamed)
        if renamed in expected:
            return renamed
    return name


def _fits(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    def needed(names: Mapping[str, Tensor]) -> set[str]:
        return {name for name in names if not name.endswith("num_batches_tracked")}

    return needed(weights) == needed(expected)
