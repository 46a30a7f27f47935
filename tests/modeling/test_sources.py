"""The robust sources that have a name: what is said of them can be, and what is no robust source is known as such."""

import json

import pytest
import timm
import torch
from timm.models import list_pretrained

from hf_robust_transfer.modeling.source_list import SOURCES
from hf_robust_transfer.modeling.sources import ADVISED, find_source, matching, near, not_robust
from hf_robust_transfer.threat_model import ThreatModel


def test_every_source_says_what_it_is():
    assert len(SOURCES) > 50 and ADVISED in SOURCES
    for name, source in SOURCES.items():
        assert source.name == name == name.lower() and not timm.is_model(name) and "/" not in name
        assert timm.is_model(source.architecture)
        ThreatModel(source.norm, source.eps)
        assert all(value is None or 0 < value < 100 for value in (source.clean, source.robust))
        assert source.robust is None or source.robust < source.clean
        assert source.reference and (source.figures or source.clean is None)
        if source.layout != "embedded":
            assert (source.repo_id is None) != (source.url is None) and (source.files or source.url)
        json.dumps(source.__dict__)


def test_the_families_are_all_there():
    for architecture in ("resnet18", "resnet50", "wide-resnet50-2"):
        for eps in ("0.5", "1", "2", "4", "8"):
            assert SOURCES[f"salman2020-{architecture}-linf-eps{eps}"].repo_id == "madrylab/robust-imagenet-models"
        for eps in ("0", "0.01", "0.03", "0.05", "0.1", "0.25", "0.5", "1", "3", "5"):
            assert SOURCES[f"salman2020-{architecture}-l2-eps{eps}"].norm == "l2"
    for name in ("liu2023-resnet152-linf-eps4", "liu2023-wide-resnet50-2-linf-eps4"):
        assert SOURCES[name].model_args == {"act_layer": "gelu"}  # of which their weights show nothing
    for name in ("gowal2021-cifar10-wrn-28-10", "wang2023-cifar10-wrn-70-16", "bartoldson2024-cifar10-wrn-94-16"):
        assert SOURCES[f"{name}-linf-eps8"].architecture == "cifar_wrn_silu"
    assert {source.layout for source in SOURCES.values()} == {"checkpoint", "open_clip", "transformers", "embedded"}
    assert find_source("LEAF-CLIP/CLIP-ViT-L-FARE2").layout == "transformers"
    assert SOURCES["salman2020-resnet50-l2-eps1"].files == ("resnet50_l2_eps1.ckpt",)
    assert SOURCES["salman2020-resnet50-linf-eps1"].files == ("resnet50_linf_eps1.0.ckpt",)


@pytest.mark.slow
def test_the_numbers_of_parameters_are_those_of_the_architectures():
    known = {}
    for source in SOURCES.values():
        classes = len(source.classes or range(1000)) if source.layout in ("checkpoint", "embedded") else 0
        key = source.architecture, classes, str(source.model_args)
        if key not in known:
            with torch.device("meta"):
                network = timm.create_model(source.architecture, num_classes=classes, **source.model_args)
            known[key] = sum(each.numel() for each in network.parameters()) / 1e6
        assert source.parameters == pytest.approx(known[key], rel=0.02), source.name


def test_sources_are_found_by_name_by_repository_and_by_words():
    assert find_source(ADVISED).architecture == "resnet50"
    assert find_source("chs20/fare4-clip").name == "schlarmann2024-clip-vit-l-14-fare4"
    assert find_source("madrylab/robust-imagenet-models") is None  # holds many
    assert "it holds" in near("madrylab/robust-imagenet-models") and ADVISED in near("salman2020-resnet50-linf-4")
    assert near("microsoft/resnet-50") == ""
    assert {source.norm for source in matching("RESNET50 l2")} == {"l2"}
    assert [source.name for source in matching("swin-l-*")] == [
        "liu2023-swin-l-linf-eps4",
        "rodriguez2024-swin-l-linf-eps4",
    ]
    assert len(matching(None)) == len(SOURCES) and not matching("nonsense")


def test_exactly_timm_s_adversarial_weights_are_known_as_not_robust():
    found = {name for name in list_pretrained() if not_robust(f"timm/{name}")}
    efficientnets = {f"tf_efficientnet_b{size}.ap_in1k" for size in range(9)}
    assert found == efficientnets | {"inception_v3.tf_adv_in1k", "inception_resnet_v2.tf_ens_adv_in1k"}
    for name in ("tf_efficientnet_b0_ap", "adv_inception_v3", "ens_adv_inception_resnet_v2"):  # of older timm
        assert not_robust(name)
    config = {"architecture": "tf_efficientnet_b3", "pretrained_cfg": {"tag": "ap_in1k"}}
    assert "AdvProp" in not_robust("downloads/mine", config)
    assert "AdvProp" in not_robust("someone/efficientnet-b0-advprop")
    # What was trained here since is judged by what it withstands.
    assert not_robust("outputs/mine", {**config, "robust_training": {"norm": "linf"}}) is None
    for name in (
        *SOURCES,
        "me/adv-trained-resnet",
        "timm/resnet50.a1_in1k",
        "timm/vit_small_patch16_rope_ape_224.naver_in1k",
    ):
        assert not_robust(name) is None
