"""The image towers of CLIP models, as timm's architectures: what its class token, or its pooled features, are projected to.

That embedding, and no other feature, is what FARE and TeCoA make robust. `CLIPForImageClassification` of `transformers`
classifies by the mean of the patch tokens instead, which no term of their loss has seen.
"""

import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError

_RENAMED = (
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.(\d+)\.layer_norm([12])\.", r"blocks.\1.norm\2."),
    (r"^encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layers\.(\d+)\.mlp\.", r"blocks.\1.mlp."),
)
_ATTENTION = re.compile(r"^encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)$")
_ACTIVATIONS = {"quick_gelu": "QuickGELU", "gelu": "GELU"}


def of_open_clip(weights: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The image tower of an open_clip model, or what its ``visual.state_dict()`` is, in timm's names.

    Args:
        weights: by open_clip's names.
        network: of timm, as the tower is.

    Raises:
        UsageError: there is no image tower of this kind in it.
    """
    if not any(name.startswith("visual.") for name in weights):
        weights = {f"visual.{name}": tensor for name, tensor in weights.items()}
    tower = {name: tensor for name, tensor in weights.items() if name.startswith("visual.")}
    try:
        return dict(sys.modules[type(network).__module__].checkpoint_filter_fn(tower, network))
    except (AttributeError, KeyError, LookupError, RuntimeError, ValueError) as error:
        raise UsageError(f"holds no image tower of open_clip ({type(error).__name__}: {error})") from error


def of_transformers(weights: Mapping[str, Tensor], network: nn.Module, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The image tower of a `CLIPModel`, or of a `CLIPVisionModelWithProjection`, in timm's names.

    Args:
        weights: by the names of `transformers`.
        network: of timm, as the tower is.
        config: of the model, as JSON; what the weights' shapes don't show is compared with the network.

    Raises:
        UsageError: there is no projected image tower in it, or one with other heads or another activation.
    """
    projection = weights.get("visual_projection.weight")
    tower = {
        name.removeprefix("vision_model."): tensor for name, tensor in weights.items() if name.startswith("vision_model.")
    }
    if projection is None or not tower:
        raise UsageError("holds no image tower of CLIPModel: expected vision_model.… and visual_projection.weight")
    _check_config(config, network)
    found: dict[str, Tensor] = {"head.weight": projection, "head.bias": torch.zeros(len(projection))}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tower.items():
        if name.endswith("position_ids"):
            continue
        if (attention := _ATTENTION.match(name)) is not None:
            parts.setdefault(f"blocks.{attention[1]}.attn.qkv.{attention[3]}", {})[attention[2]] = tensor
            continue
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        missing = {"cls_token": 3, "pos_embed": 3}.get(name, tensor.ndim) - tensor.ndim
        found[name] = tensor[(None,) * missing]
    for name, part in parts.items():
        if part.keys() != {"q", "k", "v"}:
            raise UsageError(f"lacks a part of {name}: it has {', '.join(sorted(part))} of q, k and v")
        found[name] = torch.cat([part["q"], part["k"], part["v"]])
    return found


def _check_config(config: Mapping[str, Any], network: Any) -> None:
    # What the file leaves out has the defaults of `transformers`.
    vision = {"num_attention_heads": 12, "hidden_act": "quick_gelu", **(config.get("vision_config") or config)}
    block = network.blocks[0]
    own = {"num_attention_heads": block.attn.num_heads, "hidden_act": type(block.mlp.act).__name__}
    stated = {**own, **{name: vision[name] for name in own}}
    stated["hidden_act"] = _ACTIVATIONS.get(stated["hidden_act"], stated["hidden_act"])
    for name, value in own.items():
        if stated[name] != value:
            raise UsageError(f"has {name} {stated[name]}, but the architecture {value}")
