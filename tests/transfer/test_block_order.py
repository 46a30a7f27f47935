"""The blocks of a backbone are counted in the order in which they run."""

from functools import partial

import pytest
import torch
from backbones import SEVEN, stock

from hf_robust_transfer.modeling import create_model
from hf_robust_transfer.modeling.heads import is_of_head
from hf_robust_transfer.transfer import blocks, freeze

DEIT3 = {"img_size": 32, "depth": 3, "embed_dim": 16, "num_heads": 2}
KINDS = {
    "PVT": (lambda: stock("PvtForImageClassification", "pvt"), 64),
    "ViT": (lambda: stock("ViTForImageClassification", "vit"), 16),
    "timm's DeiT III": (lambda: create_model("deit3_small_patch16_224", id2label=SEVEN, model_args=DEIT3), 32),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_parameter_is_in_one_block_and_blocks_run_in_their_order(kind):
    make, side = KINDS[kind]
    model, _ = make()
    named = {name: index for index, block in enumerate(blocks(model)) for name in block.parameters}
    assert sorted(named) == sorted(name for name, _ in model.named_parameters() if not is_of_head(name, model))
    ran = []
    for name, index in named.items():
        owner = model.get_submodule(name.rpartition(".")[0])
        if not list(owner.children()):  # of a module with others inside, its own parameters may come last
            owner.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
    model(pixel_values=torch.rand(1, 3, side, side))
    assert ran == sorted(ran) and len(set(ran)) > 2


def test_the_first_blocks_of_pvt_are_its_first_stages_with_their_layers():
    model, _ = stock("PvtForImageClassification", "pvt")
    freeze(model, 2)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    in_layers = partial(filter, lambda name: ".block." in name or ".layer." in name)
    assert list(in_layers(frozen)) and len(list(in_layers(frozen))) < len(list(in_layers(dict(model.named_parameters()))))
