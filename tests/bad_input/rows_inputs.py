"""Images that a model cannot take, and image processors that do something else, are missing or belong to other models."""

import json

from row import Row
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    Siglip2ImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

LABELS = {index: str(index) for index in range(10)}


def network(processor=None, config=None, **options):
    """A function that puts a network with this image processor into ``bad``, its entries changed."""

    def make(here, places):
        labels = {"id2label": LABELS, "label2id": {name: index for index, name in LABELS.items()}}
        small = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
        ResNetForImageClassification(ResNetConfig(**small, **labels, **options)).save_pretrained(here / "bad")
        if processor is not None:
            processor.save_pretrained(here / "bad")
        if config is not None:
            file = here / "bad" / "preprocessor_config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | config))

    return make


def small(**options):
    return ViTImageProcessor(size={"height": 8, "width": 8}, **options)


def larger(here, places):
    """Vision transformers: ``bad`` for 48×48 pixels, ``grey`` and ``small`` for 8×8."""
    labels = {"id2label": LABELS, "label2id": {name: index for index, name in LABELS.items()}}
    tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "patch_size": 4}
    for name, side, channels in (("bad", 48, 3), ("small", 8, 3), ("grey", 8, 1)):
        config = ViTConfig(image_size=side, num_channels=channels, **tiny, **labels)
        ViTForImageClassification(config).save_pretrained(here / name)
        small().save_pretrained(here / name)


def listed_processor(here, places):
    network(small())(here, places)
    (here / "bad" / "preprocessor_config.json").write_text("[1]")


EVALUATE = "evaluate <evaluate> --model_name_or_path bad"
FINETUNE = "finetune <finetune> --model_name_or_path bad"
BAD = {
    "no image processor": (network(), "--processor_name_or_path"),
    "4 channels": (network(small(), num_channels=4), "images of 4 channels: only those of RGB (3) and grey (1) images"),
    "std 0": (network(small(), {"image_std": [0.5, 0, 0.5]}), "each std must be above 0"),
    "scalar std 0": (network(small(), {"image_std": 0}), "each std must be above 0"),
    "scalar std -1": (network(small(), {"image_std": -1}), "each std must be above 0"),
    "two means": (network(small(), {"image_mean": [0.5, 0.5]}), "must have 3 values each"),
    "a mean in words": (network(small(), {"image_mean": "grey"}), "cannot be loaded"),
    "a size in words": (network(small(), {"size": "large"}), "cannot be loaded"),
    "a size of 0": (network(small(), {"size": {"height": 0, "width": 8}}), "makes images of 0 pixels"),
    "a crop of -3": (network(small(), {"crop_size": {"height": -3, "width": 8}}), "makes images of -3 pixels"),
    "images as they come": (network(small(do_resize=False)), "--image_size"),
    "a factor of 0": (network(small(), {"rescale_factor": 0}), "cannot be loaded"),
    "patches in place of images": (network(Siglip2ImageProcessor()), "beside pixel_values it makes"),
    "a processor that is a list": (listed_processor, "--processor_name_or_path"),
}  # fmt: skip


ROWS = [
    *(Row(f"{command.split()[0]}: {name}", command, ("bad", words), make=make)
      for name, (make, words) in BAD.items() for command in (EVALUATE, FINETUNE)),
    *(Row(f"{command} --image_size {side}", f"{command} <{command}> --image_size {side}", f"image_size {side} must be")
      for command in ("pretrain", "finetune") for side in (0, -8, 9000)),
    Row("an image size that stays whole", "finetune <finetune> --image_size 8.5", "--image_size"),
    Row("a processor that is not there", "finetune <finetune> --processor_name_or_path no/such",
        ("no/such", "--processor_name_or_path")),
    Row("a processor of a folder without", "evaluate <evaluate> --processor_name_or_path here", "--processor_name_or_path",
        make=lambda here, places: (here / "here").mkdir()),
    Row("a processor of another library", "evaluate <evaluate> --processor_name_or_path bad", "cannot be saved with",
        make=network(small())),
    Row("a processor of timm for another model", f"{EVALUATE} --processor_name_or_path <model>", "cannot be saved with",
        make=network(small())),
    Row("a processor for an architecture", "pretrain <pretrain> --processor_name_or_path <model>",
        "leave out the image processor"),
    *(Row(f"in_chans {value}", f"pretrain <pretrain> --model_args '{json.dumps({'in_chans': value})}'",
          ("in_chans", "only RGB images (3) and grey ones (1)")) for value in (0, 2, 4, -1, True, "three", None, 1.5, [1])),
    Row("a surrogate that takes other images", "evaluate <evaluate> --attacks transfer --surrogate bad",
        ("(3, 8, 8)", "match"), make=larger),
    Row("a grey teacher", "finetune <finetune> --model_name_or_path small --teacher_name_or_path grey",
        "the teacher takes grey images", make=larger),
    Row("two sizes", """pretrain <pretrain> --model_name_or_path vit_tiny_patch16_224 --image_size 32
        --model_args '{"img_size": 64, "depth": 1}'""", "image_size 32 and model_args img_size=64 disagree"),
]  # fmt: skip
