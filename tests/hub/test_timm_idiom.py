"""timm's own ways of fine-tuning take our checkpoints: other labels, none, other channels, features alone."""

import json

import pytest
import timm
import torch
from timm.models import save_for_hf
from tiny_models import DIGITS, TIMM

from hf_robust_transfer.hub import stand_alone
from hf_robust_transfer.modeling import create_model, import_checkpoint, load_model, replace_head
from hf_robust_transfer.modeling.cifar import NEEDED

LABELS = {0: "cat", 1: "dog", 2: "frog"}
_SWIN = {"img_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
# kind: architecture, its arguments, image size (None: its own)
KINDS = {
    **TIMM,
    "cifar-resnet": ("cifar_resnet18", None, 16),
    "deep-head": ("cifar_wrn", {"depth": 10, "width": 1, "head_args": {"layers": 3, "norm": True}}, 16),
    "conv-head": ("resnetv2_50", {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 16], "stem_chs": 8}, 32),
    "swin": ("swin_tiny_patch4_window7_224", _SWIN, 32),
    "fixed-size-vit": ("test_vit", None, None),
    "mobilenet": ("mobilenetv3_small_050", None, 32),
    "nfnet": ("test_nfnet", None, 32),
}


def saved(model, folder):
    model.save_pretrained(folder)
    stand_alone(folder)
    return f"local-dir:{folder}"


def check_idiom(model, name):
    """timm's ways to load a checkpoint give the model's own weights, wherever they are asked for."""
    stem, size = model.timm_model, model.config.pretrained_cfg["input_size"]
    pixels = torch.rand(2, *size)
    with torch.no_grad():
        logits, features = model(pixel_values=pixels).logits, stem.forward_head(stem.forward_features(pixels), True)
        plain = timm.create_model(name, pretrained=True).eval()
        assert torch.allclose(plain(pixels), logits, atol=1e-5)
        seven = timm.create_model(name, pretrained=True, num_classes=7).eval()
        assert seven(pixels).shape == (2, 7)
        none = timm.create_model(name, pretrained=True, num_classes=0).eval()
        found = {"seven": seven.forward_head(seven.forward_features(pixels), pre_logits=True), "none": none(pixels)}
        of_head = model.config.model_args.get("head_args")  # timm starts a head of several layers anew as a whole
        for way in found if not of_head else ():
            assert torch.allclose(found[way], features, atol=1e-5), way
    grey, own = timm.create_model(name, pretrained=True, in_chans=1).state_dict(), stem.state_dict()
    (first,) = (key for key in own if own[key].shape != grey[key].shape)
    assert torch.allclose(grey.pop(first), own[first].sum(1, keepdim=True), atol=1e-6)  # of a grey image seen as RGB
    assert all(torch.equal(tensor, own[key]) for key, tensor in grey.items())
    sums = {tensor.double().sum().item() for tensor in model.state_dict().values()}
    try:
        extractor = timm.create_model(name, pretrained=True, features_only=True).eval()
    except (AssertionError, IndexError, RuntimeError) as error:
        arguments = {key: value for key, value in model.config.model_args.items() if key != "head_args"}
        with pytest.raises(type(error)):  # as the architecture does without our weights
            timm.create_model(model.config.architecture.partition(".")[0], features_only=True, **arguments)
    else:
        loaded = {tensor.double().sum().item() for tensor in extractor.state_dict().values()}
        assert loaded <= sums and len(loaded) > 2
        with torch.no_grad():
            maps = extractor(pixels)
        if all(each.shape[1] == channels for each, channels in zip(maps, extractor.feature_info.channels(), strict=True)):
            sides = [-(-size[-1] // reduction) for reduction in extractor.feature_info.reduction()]
            assert [each.shape[-1] for each in maps] == sides


@pytest.mark.parametrize("kind", KINDS)
def test_timm_loads_a_checkpoint_of_ours_in_all_its_ways(tmp_path, kind):
    architecture, model_args, size = KINDS[kind]
    model, _ = create_model(architecture, id2label=LABELS, model_args=model_args, image_size=size)
    check_idiom(model, saved(model, tmp_path))


def test_so_it_does_after_new_labels_and_after_an_import(tmp_path):
    architecture, model_args, size = TIMM["timm-resnet"]
    model, _ = create_model(architecture, id2label=LABELS, model_args=model_args, image_size=size)
    replace_head(model, DIGITS)
    check_idiom(model, saved(model, tmp_path / "relabelled"))
    torch.save(model.timm_model.state_dict(), tmp_path / "weights.pt")
    imported, _ = import_checkpoint(
        tmp_path / "weights.pt", architecture=architecture, model_args=model_args, image_size=size, id2label=DIGITS
    )
    check_idiom(imported, saved(imported, tmp_path / "imported"))


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit"])
def test_a_folder_of_timm_s_own_making_is_a_source_and_is_one_again(tmp_path, architecture):
    theirs = timm.create_model(architecture, num_classes=3)
    names = list(LABELS.values())
    described = {name: f"a {name}, furry" for name in names}
    save_for_hf(theirs, tmp_path / "theirs", model_config={"label_names": names, "label_descriptions": described})
    model, _ = load_model(str(tmp_path / "theirs"))
    assert model.config.id2label == LABELS
    pixels = torch.rand(2, *model.config.pretrained_cfg["input_size"])
    with torch.no_grad():
        assert torch.allclose(model(pixel_values=pixels).logits, theirs.eval()(pixels), atol=1e-5)
    relabelled, _ = load_model(str(tmp_path / "theirs"), id2label={0: "red", 1: "green"})
    name = saved(relabelled, tmp_path / "ours")
    check_idiom(relabelled, name)
    pretrained_cfg = timm.create_model(name).pretrained_cfg
    assert pretrained_cfg["label_names"] == ["red", "green"] and not pretrained_cfg.get("label_descriptions")


def test_a_folder_of_an_older_version_learns_where_its_layers_are(tmp_path):
    model, _ = create_model("cifar_wrn", id2label=LABELS, model_args={"depth": 10, "width": 1}, image_size=8)
    name = saved(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("classifier", "first_conv", "fixed_input_size", "pool_size"):
        del config["pretrained_cfg"][key]
    config["architecture"] = "cifar_wrn.pip_install_hf-robust-transfer"
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_idiom(load_model(str(tmp_path))[0], saved(load_model(str(tmp_path))[0], tmp_path / "again"))
    stand_alone(tmp_path)
    check_idiom(model, name)
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == f"cifar_wrn.{NEEDED}"
