import copy

import pytest
import torch
from timm.layers import DropPath
from tiny_models import classifier_layer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.modeling_outputs import ImageClassifierOutput

from hf_robust_transfer.modeling import create_model, replace_head
from hf_robust_transfer.transfer import blocks, describe, eval_where_frozen, freeze
from hf_robust_transfer.transfer.freezing import parse_freeze


def backbone_parameters(model):
    head_name, _ = classifier_layer(model)
    return [name for name, _ in model.named_parameters() if not name.startswith(f"{head_name}.")]


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


class FlatConfig(PreTrainedConfig):
    model_type = "flat"


class Flat(PreTrainedModel):
    """A classifier without any sequence of modules."""

    config_class = FlatConfig

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.classifier = nn.Linear(4, config.num_labels)
        self.post_init()

    def forward(self, pixel_values):
        return ImageClassifierOutput(logits=self.classifier(self.norm(self.convolution(pixel_values)).mean((2, 3))))


@pytest.fixture
def flat():
    return Flat(FlatConfig(num_labels=10)).eval()


def test_the_blocks_share_out_all_parameters_of_the_backbone(tiny, kind):
    model, _ = tiny(kind)
    found = blocks(model)
    assert sorted(name for block in found for name in block.parameters) == sorted(backbone_parameters(model))
    assert len(found) >= 3 and all(block.parameters for block in found)
    assert len({block.name for block in found}) == len(found)


def test_the_blocks_come_in_the_order_in_which_the_forward_pass_reaches_them(tiny, kind):
    model, _ = tiny(kind)
    found = blocks(model)
    block_of = {name: number for number, block in enumerate(found) for name in block.parameters}
    reached = []

    def follow(prefix):
        def hook(module, inputs):
            reached.extend(
                block_of[f"{prefix}.{name}"]
                for name, _ in module.named_parameters(recurse=False)
                if f"{prefix}.{name}" in block_of
            )

        return hook

    for name, module in model.named_modules():
        module.register_forward_pre_hook(follow(name))
    size = 32 if "resnet" in kind else 8
    model(pixel_values=torch.rand(1, 3, size, size))
    assert reached == sorted(reached)
    assert set(reached) == set(range(len(found)))


def test_known_architectures_have_the_blocks_that_their_papers_count():
    with torch.device("meta"):
        vit = ViTForImageClassification(ViTConfig())
        swin = SwinForImageClassification(SwinConfig())
    resnet = TimmWrapperForImageClassification(TimmWrapperConfig(architecture="resnet50", num_labels=3))
    wide, _ = create_model("cifar_wrn", id2label={0: "cat", 1: "dog"}, model_args={"depth": 32, "width": 1})
    assert len(blocks(resnet)) == 1 + 3 + 4 + 6 + 3
    assert len(blocks(vit)) == 1 + 12
    assert len(blocks(swin)) == 1 + 2 + 2 + 6 + 2
    assert len(blocks(wide)) == 1 + 3 * 5


def test_a_timm_model_without_group_matcher_has_blocks_by_its_sequences():
    model = TimmWrapperForImageClassification(
        TimmWrapperConfig(architecture="pit_ti_224", num_labels=3, model_args={"base_dims": [8, 8, 8]})
    )
    assert not hasattr(model.timm_model, "group_matcher")
    found = blocks(model)
    assert [name for block in found for name in block.parameters] == backbone_parameters(model)
    assert len(found) >= 2 + 6 + 4


@pytest.mark.parametrize("what", ["none", 0, "0"])
def test_freezing_nothing_leaves_everything_as_it_is(tiny, kind, what):
    model, _ = tiny(kind)
    freeze(model, what)
    assert trainable(model) == set(dict(model.named_parameters()))
    model.requires_grad_(False)
    freeze(model, what)
    assert trainable(model) == set()


@pytest.mark.parametrize("what", ["none", 1, 2, "backbone"])
def test_a_freeze_only_freezes(tiny, kind, what):
    model, _ = tiny(kind)
    found = blocks(model)
    by_the_user = {*found[0].parameters[:1], *found[2].parameters, f"{classifier_layer(model)[0]}.bias"}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in by_the_user)
    before = trainable(model)
    for choice in (what, "none", what, 1, what):  # also after others were frozen and released
        freeze(model, choice)
        assert trainable(model) <= before
    count = {"none": 0, "backbone": len(found)}.get(what, what)
    assert trainable(model) == before - {name for block in found[:count] for name in block.parameters}
    freeze(model, "none")
    assert trainable(model) == before


def test_a_copy_knows_what_was_frozen_here(tiny):
    model, _ = tiny("timm-wrn")
    next(model.parameters()).requires_grad_(False)
    before = trainable(model)
    freeze(model, "backbone")
    copied = copy.deepcopy(model)
    freeze(copied, "none")
    assert trainable(copied) == before and len(trainable(model)) == 2


def test_freezing_the_backbone_trains_the_classifier_layer_alone(tiny, kind):
    model, _ = tiny(kind)
    freeze(model, "backbone")
    head_name, _ = classifier_layer(model)
    assert trainable(model) == {f"{head_name}.weight", f"{head_name}.bias"}


def test_freezing_k_blocks_freezes_those_and_no_others(tiny, kind):
    model, _ = tiny(kind)
    found = blocks(model)
    for count in (len(found), 1, 2):  # going down, too: nothing stays frozen from an earlier choice
        freeze(model, count)
        frozen = {name for block in found[:count] for name in block.parameters}
        assert trainable(model) == set(dict(model.named_parameters())) - frozen
    freeze(model, str(len(found)))
    everything_but_head = trainable(model)
    freeze(model, "backbone")
    assert trainable(model) == everything_but_head


@pytest.mark.parametrize("what", ["head", "-1", -1, "2.5", "", None, "Backbone"])
def test_what_cannot_be_frozen_is_refused(tiny, what):
    with pytest.raises(ValueError, match="'none', 'backbone' or the number"):
        freeze(tiny("timm-wrn")[0], what)
    assert parse_freeze(3) == parse_freeze("3") == 3


def test_more_blocks_than_there_are_is_an_error_that_says_how_many_there_are(tiny):
    model, _ = tiny("timm-wrn")
    with pytest.raises(ValueError, match="has 4 blocks"):
        freeze(model, 5)
    assert trainable(model) == set(dict(model.named_parameters()))


def test_an_architecture_without_sequences_can_be_frozen_whole_but_not_by_blocks(flat):
    with pytest.raises(ValueError, match="freeze='backbone'"):
        freeze(flat, 1)
    freeze(flat, "backbone")
    assert trainable(flat) == {"classifier.weight", "classifier.bias"}
    assert "backbone" in describe(flat) and "trainable: 50 of 170 parameters" in describe(flat)


@pytest.mark.parametrize(
    ("architecture", "model_args", "size"),
    [
        ("cifar_wrn", {"depth": 16, "width": 1, "drop_path_rate": 0.3}, 8),
        ("resnet18", {"channels": [8, 8, 16, 16], "drop_path_rate": 0.3}, 32),
        ("convnext_tiny", {"patch_size": 1, "depths": [1, 1, 2, 1], "dims": [8, 8, 8, 8], "drop_path_rate": 0.3}, 8),
        (
            "vit_tiny_patch16_224",
            {
                "img_size": 8,
                "patch_size": 2,
                "embed_dim": 16,
                "depth": 3,
                "num_heads": 2,
                "drop_path_rate": 0.3,
                "proj_drop_rate": 0.1,
                "pos_drop_rate": 0.1,
            },
            8,
        ),
    ],
)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_frozen_blocks_run_in_eval_mode_and_the_others_in_train_mode(architecture, model_args, size, count):
    labels = {index: str(index) for index in range(10)}
    model, _ = create_model(architecture, id2label=labels, model_args=model_args, image_size=size)
    freeze(model, count)
    model.train()
    eval_where_frozen(model)
    found = blocks(model)
    frozen = {name for block in found[:count] for name in block.parameters}
    places = tuple(f"timm_model.{block.name}." for block in found)
    random = []
    for name, module in model.named_modules():
        own = {f"{name}.{parameter}" for parameter, _ in module.named_parameters(recurse=False)}
        if own and name != "timm_model":  # a vision transformer's tokens belong to the whole of it
            assert module.training == (not own <= frozen), name
        if isinstance(module, nn.Dropout | DropPath) and name.startswith(places):
            random.append(name)
            assert module.training != name.startswith(places[:count]), name
    assert random
    assert model.training


def test_what_frozen_blocks_compute_is_the_same_at_every_pass_and_leaves_their_statistics(tiny):
    model, _ = create_model(
        "resnet18",
        id2label={0: "cat", 1: "dog"},
        model_args={"channels": [8, 8, 16, 16], "drop_path_rate": 0.5},
        image_size=32,
    )
    freeze(model, 7)
    model.train()
    eval_where_frozen(model)
    images = torch.rand(4, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reached = []
    model.timm_model.layer3[1].register_forward_hook(lambda module, inputs, output: reached.append(output.detach().clone()))
    model(pixel_values=images)
    model(pixel_values=images)
    assert torch.equal(reached[0], reached[1])
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith("timm_model.layer4") for name in changed)


@pytest.mark.parametrize("family", ["hf-vit", "hf-swin"])
def test_dropout_of_a_frozen_transformers_backbone_is_off(tiny, family):
    model, _ = tiny(family)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    images = torch.rand(4, 3, 8, 8)
    freeze(model, "backbone")
    model.train()
    eval_where_frozen(model)
    assert torch.equal(model(pixel_values=images).logits, model(pixel_values=images).logits)
    freeze(model, 1)
    model.train()
    eval_where_frozen(model)
    assert not torch.equal(model(pixel_values=images).logits, model(pixel_values=images).logits)


@pytest.mark.parametrize("family", ["timm-resnet", "timm-wrn", "hf-resnet"])
def test_all_batch_norm_can_be_kept_on_its_running_statistics(tiny, family):
    model, _ = tiny(family)
    freeze(model, "none")
    model.train()
    eval_where_frozen(model)
    assert all(module.training for module in model.modules())
    eval_where_frozen(model, batch_norm=True)
    for module in model.modules():
        assert module.training != isinstance(module, _BatchNorm)
    assert trainable(model) == set(dict(model.named_parameters()))


def test_a_new_heads_batch_norm_goes_on_measuring(tiny):
    model, _ = tiny("timm-wrn")
    replace_head(model, {0: "cat", 1: "dog"}, {"layers": 2, "norm": True, "dropout": 0.5})
    head = set(classifier_layer(model)[1].modules())
    for what in ("none", "backbone"):
        freeze(model, what)
        model.train()
        eval_where_frozen(model, batch_norm=True)
        for module in model.modules():
            if isinstance(module, _BatchNorm | nn.Dropout) and (module in head or isinstance(module, _BatchNorm)):
                assert module.training == (module in head)


def test_the_table_names_every_block_its_size_and_whether_it_trains(tiny, kind):
    model, _ = tiny(kind)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    found = blocks(model)
    freeze(model, 2)
    header, *rows, last = describe(model).splitlines()
    assert header.split() == ["block", "name", "parameters", "state"] and len(rows) == len(found) + 1
    for number, (block, row) in enumerate(zip(found, rows, strict=False), 1):
        size = sum(sizes[name] for name in block.parameters)
        assert row.split() == [str(number), block.name, f"{size:,}", "frozen" if number <= 2 else "trains"]
    assert rows[-1].split()[0] == "head" and rows[-1].split()[-1] == "trains"
    frozen = sum(sizes[name] for block in found[:2] for name in block.parameters)
    assert last == f"trainable: {sum(sizes.values()) - frozen:,} of {sum(sizes.values()):,} parameters"


def test_a_block_that_trains_in_part_is_called_so(tiny):
    model, _ = tiny("timm-wrn")
    model.timm_model.stages[0].blocks[0].norm1.weight.requires_grad_(False)
    assert "trains in part" in describe(model).splitlines()[2]
