"""What a checkpoint's weights have to be, and what of a source may be new."""

import json
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import classifier_layer
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.modeling import load_model
from hf_robust_transfer.modeling.weights import building_at_most, not_finite

NEW = {0: "cat", 1: "dog"}


@pytest.fixture
def saved(tiny, tmp_path):
    """A function (kind, weights) -> the folder of a tiny model whose tensors a function has changed."""

    def save(kind, change=None):
        model, processor = tiny(kind)
        model.save_pretrained(tmp_path / kind)
        processor.save_pretrained(tmp_path / kind)
        if change is not None:
            file = tmp_path / kind / "model.safetensors"
            tensors = load_file(file)
            change(tensors)
            save_file(tensors, file, metadata={"format": "pt"})
        return str(tmp_path / kind), model

    return save


def test_a_whole_checkpoint_loads_as_it_was_saved(saved, kind):
    folder, model = saved(kind)
    loaded, _ = load_model(folder)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_any_tensor_that_is_missing_is_refused_but_for_a_head_that_is_to_be_trained(saved, kind):
    folder, model = saved(kind)
    head = classifier_layer(model)[0]
    names = [name for name in load_file(f"{folder}/model.safetensors") if not name.endswith("num_batches_tracked")]
    inside = [name for name in names if not name.startswith(f"{head}.")]
    for name in (inside[0], inside[len(inside) // 2], f"{head}.weight", f"{head}.bias"):
        folder, _ = saved(kind, lambda tensors, name=name: tensors.pop(name))
        with pytest.raises(UsageError, match="is missing"):
            load_model(folder)
        if name.startswith(head):
            loaded, _ = load_model(folder, id2label=NEW)
            assert loaded.config.id2label == NEW and not not_finite(loaded)
        else:
            with pytest.raises(UsageError, match="is missing"):
                load_model(folder, id2label=NEW)


def test_a_missing_head_for_the_same_labels_is_drawn_as_a_new_one(saved, tiny):
    head = classifier_layer(tiny("hf-vit")[0])[0]
    folder, model = saved("hf-vit", lambda tensors: [tensors.pop(f"{head}.{part}") for part in ("weight", "bias")])
    loaded, _ = load_model(folder, id2label=dict(model.config.id2label))
    layer = classifier_layer(loaded)[1]
    assert layer.bias.abs().max() == 0 and 0.01 < layer.weight.std() < 0.03


@pytest.mark.parametrize("kind", ["timm-wrn", "hf-resnet"])
def test_counters_of_batches_may_be_missing(saved, kind):
    def drop(tensors):
        for name in [name for name in tensors if name.endswith("num_batches_tracked")]:
            del tensors[name]

    folder, model = saved(kind, drop)
    loaded = load_model(folder)[0].state_dict()
    kept = {name for name in loaded if not name.endswith("num_batches_tracked")}
    assert kept and all(torch.equal(loaded[name], model.state_dict()[name]) for name in kept)


def test_what_was_pretrained_for_something_else_is_a_source_and_no_model(tmp_path, tiny):
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=2
    )
    ViTModel(config, add_pooling_layer=True).save_pretrained(tmp_path)
    tiny("hf-vit")[1].save_pretrained(tmp_path)
    assert any("pooler" in name for name in load_file(tmp_path / "model.safetensors"))
    load_model(str(tmp_path), id2label=NEW)
    with pytest.raises(UsageError, match="missing"):
        load_model(str(tmp_path))
    shallower = {**json.loads((tmp_path / "config.json").read_text()), "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(shallower))
    with pytest.raises(UsageError, match="unknown to the architecture"):
        load_model(str(tmp_path), id2label=NEW)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_and_statistics_that_are_no_numbers_are_refused(saved, kind, value):
    for part in ("weight", "bias", "running_var"):

        def spoil(tensors, part=part):
            for name in [name for name in tensors if name.endswith(part)][-1:]:
                tensors[name].view(-1)[-1] = value

        folder, model = saved(kind, spoil)
        if any(name.endswith(part) for name in model.state_dict()):
            for options in ({}, {"id2label": NEW}):
                with pytest.raises(UsageError, match="not finite"):
                    load_model(folder, **options)


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_hidden_layers": 18004},
        {"num_hidden_layers": 10**9},
        {"hidden_size": 10**9, "num_attention_heads": 1},
        {"intermediate_size": 10**6},
        {"num_labels": 10**9},
        {"image_size": 10**6, "patch_size": 2},
    ],
)
def test_a_configuration_of_absurd_sizes_is_refused_at_once(saved, sizes):
    folder, _ = saved("hf-vit")
    file = f"{folder}/config.json"
    with open(file) as opened:
        config = json.load(opened)
    with open(file, "w") as opened:
        json.dump({**config, **sizes}, opened)
    began = time.process_time()
    with pytest.raises(UsageError, match=r"which is more than there can be|which no image classifier has"):
        load_model(folder)
    assert time.process_time() - began < 10


def test_a_model_of_the_size_that_is_allowed_is_built():
    with building_at_most(10**6):
        model = ViTForImageClassification(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    assert sum(parameter.numel() for parameter in model.parameters()) < 10**6
    with pytest.raises(UsageError, match="more than 6,000 tensors"), building_at_most(10**12), torch.device("meta"):
        ViTForImageClassification(ViTConfig(hidden_size=16, num_hidden_layers=10**6, num_attention_heads=2))
