"""Image classifiers of every family, as small as they get, and what is tried on each of them."""

from functools import partial
from pathlib import Path

import timm
import torch
import transformers
from PIL import Image
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import AutoConfig, AutoModelForImageClassification, ViTImageProcessor, pipeline, set_seed
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hf_robust_transfer import RobustTrainer, RobustTrainingArguments, ThreatModel, evaluate_robustness
from hf_robust_transfer.data import to_pixels
from hf_robust_transfer.hub import stand_alone
from hf_robust_transfer.modeling import PixelClassifier, load_model
from hf_robust_transfer.modeling.heads import is_of_head
from hf_robust_transfer.transfer import blocks

_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
}
_SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2], "window_size": 2}
_FOUR = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1]}
_PVT = {**_FOUR, "num_attention_heads": [1, 1, 2, 2]}
_TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
_TOWERS = {"vision_config": _VIT, "text_config": {**_TEXT, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}}
_PERCEIVER = {
    "num_latents": 4,
    "d_latents": 8,
    "d_model": 16,
    "num_blocks": 1,
    "num_self_attends_per_block": 2,
    "num_self_attention_heads": 2,
    "num_cross_attention_heads": 1,
}
# What makes them tiny, by `model_type`.
TINY = {
    "beit": _VIT,
    "bit": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "num_groups": 4},
    "clip": _TOWERS,
    "convnext": {"hidden_sizes": [8, 16], "depths": [2, 1], "num_stages": 2, "patch_size": 2, "image_size": 32},
    "convnextv2": {"hidden_sizes": [8, 16], "depths": [2, 1], "num_stages": 2, "patch_size": 2, "image_size": 32},
    "cvt": {
        "embed_dim": [8, 16],
        "num_heads": [1, 2],
        "depth": [1, 2],
        "patch_sizes": [3, 3],
        "patch_stride": [2, 2],
        "patch_padding": [1, 1],
        "mlp_ratio": [2.0, 2.0],
        "attention_drop_rate": [0.0, 0.0],
        "drop_rate": [0.0, 0.0],
        "drop_path_rate": [0.0, 0.0],
        "qkv_bias": [True, True],
        "cls_token": [False, True],
        "kernel_qkv": [3, 3],
        "qkv_projection_method": ["dw_bn", "dw_bn"],
        "padding_kv": [1, 1],
        "stride_kv": [2, 2],
        "padding_q": [1, 1],
        "stride_q": [1, 1],
    },
    "data2vec-vision": _VIT,
    "deit": _VIT,
    "dinat": {"embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2]},
    "dinov2": {**_VIT, "mlp_ratio": 2},
    "dinov2_with_registers": {**_VIT, "mlp_ratio": 2},
    "donut-swin": _SWIN,
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "image_size": 32, "hidden_dim": 320},
    "focalnet": {
        "image_size": 16,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [2, 1],
        "focal_levels": [1, 1],
        "focal_windows": [3, 3],
        "hidden_sizes": [8, 16],
    },
    "hgnet_v2": {
        "embedding_size": 8,
        "stem_channels": [3, 8, 8],
        "stage_in_channels": [8, 16],
        "stage_mid_channels": [8, 8],
        "stage_out_channels": [16, 32],
        "stage_num_blocks": [1, 1],
        "stage_downsample": [False, True],
        "stage_light_block": [False, True],
        "stage_kernel_size": [3, 3],
        "stage_numb_of_layers": [2, 2],
        "hidden_sizes": [16, 32],
        "depths": [1, 1],
    },
    "hiera": {
        "image_size": [64, 64],
        "embed_dim": 8,
        "depths": [1, 1, 2, 1],
        "num_heads": [1, 2, 4, 8],
    },
    "ijepa": _VIT,
    "imagegpt": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 17, "n_positions": 64},
    "levit": {
        "image_size": 64,
        "hidden_sizes": [16, 32, 32],
        "num_attention_heads": [2, 2, 2],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
        "attention_ratio": [2, 2, 2],
    },
    "metaclip_2": _TOWERS,
    "mobilenet_v1": {"depth_multiplier": 0.125, "image_size": 32, "min_depth": 4},
    "mobilenet_v2": {"depth_multiplier": 0.25, "image_size": 32},
    "mobilevit": {
        "image_size": 64,
        "hidden_sizes": [16, 16, 16],
        "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16],
        "num_attention_heads": 2,
    },
    "mobilevitv2": {
        "image_size": 64,
        "width_multiplier": 0.25,
        "base_attn_unit_dims": [64, 64, 64],
        "n_attn_blocks": [1, 1, 1],
    },
    "perceiver": _PERCEIVER,
    "poolformer": _FOUR,
    "pp_lcnet": {"scale": 0.25},
    "pvt": {**_PVT, "image_size": 64},
    "pvt_v2": {**_PVT, "image_size": 64},
    "regnet": {**_FOUR, "embedding_size": 8, "groups_width": 4},
    "resnet": {**_FOUR, "embedding_size": 8, "layer_type": "basic"},
    "segformer": {**_PVT, "decoder_hidden_size": 8},
    "siglip": _TOWERS,
    "siglip2": {"vision_config": {**_VIT, "num_patches": 16}},
    "swiftformer": {"embed_dims": [8, 16, 16, 32], "depths": [2, 1, 2, 1], "image_size": 64},
    "swin": _SWIN,
    "swinv2": _SWIN,
    "textnet": {"stem_num_channels": 3, "stem_out_channels": 8, "hidden_sizes": [8, 8, 16, 16, 16], "image_size": [64, 64]},
    "vit": _VIT,
    "vit_msn": _VIT,
}
SIZES = {"PerceiverForImageClassificationFourier": 224, "PerceiverForImageClassificationConvProcessing": 224}
# Of each family of timm the smallest, and more where heads, pooling or position embeddings differ.
TIMM = (Path(__file__).parent / "timm_models.txt").read_text().split()
# What makes small what timm has only large, and what the quick tests take smaller than timm has it.
SMALLER = {
    "deepseek_vit_412m": {"depth": 2, "embed_dim": 64, "num_heads": 2},
    "gemma4_vit_167m": {"depth": 2, "embed_dim": 64, "num_heads": 2, "img_size": 96},
    "qwen3_vit_416m": {"depth": 2, "embed_dim": 64, "num_heads": 2},
}
# Those that no feature cache holds the features of, since their heads see more than one vector for each image.
WITHOUT_CACHE = {"samvit_base_patch16_224", "sequencer2d_s", "volo_d1_224"}
# What is refused, with words of the reason.
REFUSED = {
    "DinatForImageClassification": "natten",
    "ImageGPTForImageClassification": "makes images of 64×64 pixels, which are not for it",
    "PPLCNetForImageClassification": "makes no logits of the images",
    "ShieldGemma2ForImageClassification": "has no linear layer whose outputs are its 0 labels",
    "Siglip2ForImageClassification": "makes no logits of the images",
}
SEVEN, NEW = ({index: f"{kind} {index}" for index in range(count)} for kind, count in (("old", 7), ("new", 3)))


def stock_kinds():
    """The classes of image classifiers that transformers has, with their ``model_type``."""
    for model_type, names in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.items():
        if model_type != "timm_wrapper":
            yield from ((name, model_type) for name in (names if isinstance(names, tuple) else (names,)))


def stock(name, model_type):
    """A tiny model of transformers, and an image processor for it."""
    labels = {"id2label": SEVEN, "label2id": {label: index for index, label in SEVEN.items()}}
    config = AutoConfig.for_model(model_type, **TINY.get(model_type, {}), **labels)
    model = getattr(transformers, name)(config).eval()
    side = SIZES.get(name) or getattr(getattr(config, "vision_config", config), "image_size", 64)
    height, width = side if isinstance(side, list | tuple) else (side, side)
    return model, ViTImageProcessor(size={"height": height, "width": width})


class Noise(list):
    """Images of noise with labels, always the same ones, so that features can be computed once."""

    fingerprint = "noise"

    def __init__(self, count, size):
        images = torch.rand(count, *size, generator=torch.Generator().manual_seed(0))
        super().__init__({"pixel_values": image, "labels": row % len(NEW)} for row, image in enumerate(images))


def tried(source, folder):
    """Carry a saved source over to new labels in all three ways, go on from a checkpoint, load it everywhere, evaluate.

    Returns:
        ``"works"``, or in what restricted way it does.
    """
    _, processor = load_model(source, id2label=NEW)
    data = Noise(4, to_pixels(processor)(Image.new("RGB", (40, 50))).shape)
    for transfer in ("frozen", "fine_tuned", "lwf"):
        trainer = _trainer(source, folder / transfer, data, transfer)
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.train()
        after = trainer.model.state_dict()
        changed = {name for name, _ in trainer.model.named_parameters() if not torch.equal(before[name], after[name])}
        asked = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
        assert changed and changed <= asked, changed - asked
        assert transfer != "frozen" or all(is_of_head(name, trainer.model) for name in changed)
    again = _trainer(source, folder / "lwf", data, "lwf")
    again.train(resume_from_checkpoint=str(folder / "lwf" / "checkpoint-1"))
    for name, value in again.model.state_dict().items():
        torch.testing.assert_close(value, after[name], msg=name)
    saved = folder / "saved"
    trainer.save_model(str(saved))
    classifier = PixelClassifier(trainer.model.eval(), processor)
    check_loaders(classifier, saved, data)
    options = {"self_check_samples": 0, "curve_samples": 0, "progress": False, "precision": "float32"}
    evaluate_robustness(classifier, data, ThreatModel("linf", "8/255"), ["pgd-2"], **options)
    named = [name for block in blocks(trainer.model) for name in block.parameters]
    expected = [name for name, _ in trainer.model.named_parameters() if not is_of_head(name, trainer.model)]
    assert sorted(named) == sorted(expected)
    return "works" if trainer.caches_student_features else "works without the feature cache"


def _trainer(source, folder, data, transfer):
    set_seed(0)
    model, processor = load_model(source, id2label=NEW)
    args = RobustTrainingArguments(
        str(folder),
        transfer=transfer,
        max_steps=2,
        warm_start_steps=None if transfer == "frozen" else 0.4,
        per_device_train_batch_size=2,
        save_steps=1,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        eps="8/255",
        feature_cache_dir=str(folder / "features"),
        save_strategy="steps" if transfer == "lwf" else "no",
    )
    if transfer != "frozen":
        args.learning_rate = 1e-4  # nothing here has learned to bear more
    teacher = PixelClassifier(*load_model(source, id2label=NEW)) if transfer == "lwf" else None
    return RobustTrainer(model, args, processing_class=processor, teacher=teacher, train_dataset=data)


def save_source(model, processor, folder):
    """Save a model that was not trained, its batch-norms measured on noise, without which activations explode."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.train().momentum = None  # the mean of all batches
    if norms:
        size = to_pixels(processor)(Image.new("RGB", (40, 50))).shape
        with torch.no_grad():
            PixelClassifier(model, processor)(torch.rand(8, *size))
    for saved in (model.eval(), processor):
        saved.save_pretrained(folder)
    stand_alone(folder)


def check_loaders(classifier, folder, data):
    """Make sure that all that load a folder give a classifier's logits: this package, transformers, its pipeline, timm."""
    pixels = data[0]["pixel_values"][None]
    with torch.no_grad():
        expected = classifier(pixels)
        scale = float(expected.abs().max())
        close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4 * scale + 1e-6)
        close(PixelClassifier(*load_model(str(folder)))(pixels), expected)
        normalised = (pixels - classifier.mean) / classifier.std
        model = AutoModelForImageClassification.from_pretrained(folder)
        close(model(pixel_values=normalised).logits, expected)
        if model.config.model_type == "timm_wrapper":
            close(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(normalised), expected)
    image = Image.effect_noise((60, 50), 80).convert("RGB")
    scores = {each["label"]: each["score"] for each in pipeline("image-classification", str(folder))(image, top_k=3)}
    with torch.no_grad():
        own = classifier(to_pixels(classifier.processor)(image)[None]).softmax(1)[0]
    for label, score in zip(classifier.labels, own.tolist(), strict=True):
        assert abs(scores[label] - score) < 1e-3, (label, scores, own)
