"""Published robust checkpoints in small: files in the layouts of those who wrote them, and sources that name them."""

import io
import json

import timm
import torch
from external_networks import CIFAR10_OF_DEEPMIND, DeepMindWideResNet, lively
from hub_repository import Repository
from safetensors.torch import save
from transformers import CLIPConfig, CLIPModel

from hf_robust_transfer.modeling.source_list import CLIP_NORMALISATION, IMAGENET_NORMALISATION, SOURCES, Source

SMALL_CLIP = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
_CLIP = {"norm": "linf", "eps": "2/255", "input_size": 8, "mean": CLIP_NORMALISATION[0], "std": CLIP_NORMALISATION[1]}
_CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "patch_size": 1}

MADRY = Source(
    name="small-madry",
    architecture="resnet18",
    norm="l2",
    eps="3",
    license="mit",
    repo_id="madrylab/small-models",
    files=("resnet18_l2_eps3.ckpt",),
    input_size=32,
    model_args={"channels": [8, 8, 16, 16]},
    reference="Salman et al.",
)
LEAF = Source(
    name="small-leaf",
    architecture="vit_large_patch14_clip_quickgelu_224",
    license="mit",
    repo_id="LEAF-CLIP/small",
    files=("model*.safetensors", "pytorch_model*.bin"),
    layout="transformers",
    model_args=SMALL_CLIP,
    **_CLIP,
)
OPEN_CLIP = Source(
    name="small-open-clip",
    architecture="vit_large_patch14_clip_quickgelu_224",
    license="mit",
    repo_id="chs20/small",
    files=("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    layout="open_clip",
    model_args=SMALL_CLIP,
    **_CLIP,
)
CONVNEXT = Source(
    name="small-open-clip-convnext",
    architecture="convnext_base",
    license="mit",
    repo_id="chs20/small-convnext",
    files=("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    layout="open_clip",
    model_args=_CONVNEXT,
    **_CLIP,
)
BY_FILE = Source(
    name="small-ares",
    architecture="convnext_tiny",
    norm="linf",
    eps="4/255",
    url="https://example.org/ARES_small_AT.pth",
    input_size=8,
    model_args=_CONVNEXT,
)
CIFAR = Source(
    name="small-wang",
    architecture="cifar_wrn_silu",
    norm="linf",
    eps="8/255",
    repo_id="wzekai99/small",
    files=("checkpoint/cifar10_linf_wrn.pt",),
    license="mit",
    classes=SOURCES["wang2023-cifar10-wrn-28-10-linf-eps8"].classes,
    input_size=32,
    mean=CIFAR10_OF_DEEPMIND[0],
    std=CIFAR10_OF_DEEPMIND[1],
    crop_pct=1.0,
    model_args={"depth": 10, "width": 1},
)
ALL = (MADRY, LEAF, OPEN_CLIP, CONVNEXT, CIFAR, BY_FILE)


def saved(content):
    """What `torch.save` writes."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def classifier(source):
    """The network of a source of an ImageNet classifier, drawn at random."""
    return timm.create_model(source.architecture, num_classes=1000, **source.model_args).eval()


def cifar_network():
    """A WideResNet of Wang et al., which normalises by itself."""
    return lively(DeepMindWideResNet(depth=10, width=1))


def madry_file(network, **more):
    """As MadryLab's `robustness` saves an AttackerModel: the network twice, its normaliser, an epoch, an optimizer."""
    weights = {}
    for place in ("module.model.", "module.attacker.model."):
        weights |= {place + name: tensor for name, tensor in network.state_dict().items()}
    for place in ("module.normalizer.", "module.attacker.normalize."):
        for name, values in zip(("new_mean", "new_std"), IMAGENET_NORMALISATION, strict=True):
            weights[place + name] = torch.tensor(values)[:, None, None]
    return saved({"model": weights, "epoch": 89, "optimizer": {"state": {}, "param_groups": []}, "schedule": None, **more})


def clip_model(hidden_act="quick_gelu"):
    """A CLIP of `transformers` for 8×8 images."""
    common = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**common, "image_size": 8, "patch_size": 4, "hidden_act": hidden_act}
    text = {**common, "vocab_size": 50, "max_position_embeddings": 8}
    return CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=12)).eval()


def of_transformers(model):
    """The files of a repository, as `save_pretrained` writes them; no image processor."""
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return {
        "config.json": json.dumps(model.config.to_dict()).encode(),
        "model.safetensors": save(weights, {"format": "pt"}),
    }


def in_open_clip(model):
    """The state dict of a CLIP of `transformers` by the names of open_clip, as far as its image tower goes."""
    theirs, ours = model.state_dict(), {}
    for name, tensor in theirs.items():
        if name.startswith("vision_model.") and ".self_attn.k_proj" not in name and ".self_attn.v_proj" not in name:
            new = name.removeprefix("vision_model.").replace("encoder.layers", "transformer.resblocks")
            for old, replacement in {
                "embeddings.class_embedding": "class_embedding",
                "embeddings.patch_embedding": "conv1",
                "embeddings.position_embedding.weight": "positional_embedding",
                "pre_layrnorm": "ln_pre",
                "post_layernorm": "ln_post",
                "layer_norm": "ln_",
                "self_attn.q_proj.": "attn.in_proj_",
                "self_attn": "attn",
                "mlp.fc1": "mlp.c_fc",
                "mlp.fc2": "mlp.c_proj",
            }.items():
                new = new.replace(old, replacement)
            if "q_proj" in name:
                parts = [theirs[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
                tensor = torch.cat(parts)
            if not new.endswith("position_ids"):
                ours[f"visual.{new}"] = tensor
    ours["visual.proj"] = theirs["visual_projection.weight"].T.contiguous()
    return ours | {"logit_scale": torch.tensor(4.6), "text_projection": torch.rand(3, 12), "ln_final.weight": torch.ones(3)}


def convnext_in_open_clip(projected=12):
    """A ConvNeXt of timm and the state dict of an open_clip model around it."""
    trunk = timm.create_model("convnext_base", num_classes=0, **_CONVNEXT).eval()
    projection = torch.randn(projected, trunk.num_features) / 4
    weights = {f"visual.trunk.{name}": tensor for name, tensor in trunk.state_dict().items()}
    return trunk, weights | {"visual.head.proj.weight": projection, "logit_scale": torch.tensor(4.6)}


def repository(hub, repo_id, files, license="mit"):
    """A repository with a card on the Hub of the tests."""
    Repository.create(hub.folder / "repositories" / repo_id.replace("/", "--"), repo_id, private=False)
    card = f"---\nlicense: {license}\n---\n# Robust\n".encode()
    return hub.commit(repo_id, {"README.md": card, **files})
