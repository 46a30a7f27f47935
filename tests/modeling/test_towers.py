"""The image towers of CLIP models give as timm's what they give in the library that they are from."""

import pytest
import torch
from made_sources import LEAF, OPEN_CLIP, SMALL_CLIP, clip_model, convnext_in_open_clip, in_open_clip

from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.modeling import create_model
from hf_robust_transfer.modeling.towers import of_open_clip, of_transformers


def network(architecture=LEAF.architecture, labels=12, **model_args):
    id2label = {index: str(index) for index in range(labels)}
    return create_model(architecture, id2label=id2label, model_args={**SMALL_CLIP, **model_args})[0].timm_model.eval()


@pytest.mark.parametrize(
    "activation, architecture", [("quick_gelu", LEAF.architecture), ("gelu", "vit_large_patch14_clip_224")]
)
def test_a_tower_of_transformers_gives_its_embeddings(activation, architecture):
    model, images = clip_model(activation), torch.randn(3, 3, 8, 8)
    tower = network(architecture)
    tower.load_state_dict(of_transformers(model.state_dict(), tower, model.config.to_dict()))
    with torch.no_grad():
        embedded = model.visual_projection(model.vision_model(images).pooler_output)
        torch.testing.assert_close(tower(images), embedded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", ["visual.", ""], ids=["a whole model", "the tower's own state dict"])
def test_a_tower_of_open_clip_gives_its_embeddings(prefix):
    model, images = clip_model(), torch.randn(3, 3, 8, 8)
    weights = in_open_clip(model)
    if not prefix:
        weights = {name.removeprefix("visual."): each for name, each in weights.items() if name.startswith("visual.")}
    tower = network(OPEN_CLIP.architecture)
    tower.load_state_dict(of_open_clip(weights, tower))
    with torch.no_grad():
        embedded = model.visual_projection(model.vision_model(images).pooler_output)
        torch.testing.assert_close(tower(images), embedded, rtol=1e-4, atol=1e-5)


def test_a_convnext_of_open_clip_gives_its_embeddings():
    trunk, weights = convnext_in_open_clip()
    model_args = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "patch_size": 1}
    tower = create_model("convnext_base", id2label={i: str(i) for i in range(12)}, model_args=model_args)[
        0
    ].timm_model.eval()
    tower.load_state_dict(of_open_clip(weights, tower))
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(tower(images), trunk(images) @ weights["visual.head.proj.weight"].T)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"num_attention_heads": 4}, "num_attention_heads 4, but the architecture 2"),
        ({"hidden_act": "gelu"}, "hidden_act GELU, but the architecture QuickGELU"),
        ({"hidden_act": "relu"}, "hidden_act relu"),
    ],
)
def test_what_shapes_do_not_show_is_compared_with_the_configuration(change, words):
    model = clip_model()
    config = model.config.to_dict()
    config["vision_config"].update(change)
    with pytest.raises(UsageError, match=words):
        of_transformers(model.state_dict(), network(), config)


def test_files_without_such_a_tower_are_refused():
    model = clip_model()
    text = {name: each for name, each in model.state_dict().items() if name.startswith("text_model")}
    with pytest.raises(UsageError, match="no image tower of CLIPModel"):
        of_transformers(text, network(), {})
    incomplete = {name: each for name, each in model.state_dict().items() if "layers.1.self_attn.k_proj" not in name}
    with pytest.raises(UsageError, match=r"lacks a part of blocks\.1\.attn\.qkv"):
        of_transformers(incomplete, network(), model.config.to_dict())
