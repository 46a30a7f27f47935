"""Checkpoints that are damaged, incomplete or absurd, and folders that cannot be written."""

import json
import shutil

import torch
from row import Row
from safetensors.torch import load_file, save_file

from hf_robust_transfer.modeling import load_model
from hf_robust_transfer.transfer import freeze


def damaged(weights=None, config=None, **files):
    """A function that puts a damaged copy of the model into ``bad``: its weights or configuration changed, or files."""

    def make(here, places):
        folder = here / "bad"
        shutil.copytree(places["model"], folder)
        if weights is not None:
            tensors = load_file(folder / "model.safetensors")
            weights(tensors)
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        if config is not None:
            content = json.loads((folder / "config.json").read_text())
            config(content)
            (folder / "config.json").write_text(json.dumps(content))
        for name, content in files.items():
            file = folder / {"safetensors": "model.safetensors", "config_json": "config.json"}[name]
            file.write_bytes(content(file.read_bytes()) if callable(content) else content)

    return make


def without(*parts):
    def drop(tensors):
        for name in [name for name in tensors if any(part in name for part in parts)]:
            del tensors[name]

    return drop


def filled_with(value, part):
    def fill(tensors):
        for name in tensors:
            if part in name:
                tensors[name].view(-1)[0] = value

    return fill


def changed(**entries):
    return lambda config: config.update(entries)


def with_args(**entries):
    return lambda config: config["model_args"].update(entries)


def with_cfg(**entries):
    return lambda config: config["pretrained_cfg"].update(entries)


EVALUATE = "evaluate <evaluate> --model_name_or_path bad"
FINETUNE = "finetune <finetune> --model_name_or_path bad"
TEACHER = "finetune <finetune> --teacher_name_or_path bad"
PUBLISH = "publish <publish> --folder bad"
DAMAGED = {
    "a third of the tensors missing": (damaged(without("stages.1", "stages.2")), "tensors are missing"),
    "one bias missing": (damaged(without("stages.3.blocks.0.conv_dw.bias")), "stages.3.blocks.0.conv_dw.bias is missing"),
    "a norm missing": (damaged(without("head.norm")), "2 tensors are missing"),
    "a tensor of another shape": (
        damaged(lambda tensors: tensors.update({"timm_model.stem.0.weight": torch.zeros(9, 3, 1, 1)})),
        "is of another shape",
    ),
    "NaN in a weight": (damaged(filled_with(float("nan"), "stem.0.weight")), "timm_model.stem.0.weight is not finite"),
    "infinity in a weight": (damaged(filled_with(float("inf"), "blocks.0.mlp.fc1.weight")), "are not finite"),
    "NaN in the backbone's last norm": (damaged(filled_with(float("nan"), "head.norm.bias")), "is not finite"),
    "truncated weights": (damaged(safetensors=lambda content: content[: len(content) // 2]), "cannot be loaded"),
    "empty weights": (damaged(safetensors=b""), "cannot be loaded"),
    "weights of a text": (damaged(safetensors=b"<!DOCTYPE html>" * 99), "cannot be loaded"),
    "no weights": (lambda here, places: (damaged()(here, places), (here / "bad/model.safetensors").unlink()), "cannot be"),
    "fewer blocks in the configuration": (damaged(config=with_args(depths=[1, 1, 1, 1], dims=[8, 8, 16, 8])), "shape"),
    "more blocks in the configuration": (damaged(config=with_args(depths=[1, 1, 3, 1])), "tensors are missing"),
    "18004 blocks": (damaged(config=with_args(depths=[1, 1, 18004, 1])), "which is more than there can be"),
    "a billion blocks": (damaged(config=with_args(depths=[1, 1, 10**9, 1])), "config.json says model_args 1e+09"),
    "a billion channels": (damaged(config=with_args(dims=[8, 8, 16, 10**9])), "config.json says model_args 1e+09"),
    "30000 channels": (damaged(config=with_args(dims=[8, 8, 16, 30000])), "which is more than there can be"),
    "a billion labels": (damaged(config=changed(num_classes=10**9)), "config.json says num_classes 1e+09"),
    "no channels": (damaged(config=with_args(dims=[8, 8, 16, 0])), "cannot be loaded"),
    "blocks in words": (damaged(config=with_args(depths="many")), "cannot be loaded"),
    "an unknown architecture": (damaged(config=changed(architecture="resnet0")), "cannot be loaded"),
    "an unknown model type": (damaged(config=changed(model_type="resnetish")), "cannot be loaded"),
    "a configuration that is a list": (damaged(config_json=b"[]"), "config.json is not a JSON object"),
    "an empty configuration": (damaged(config_json=b""), "config.json cannot be read"),
    "std -1": (damaged(config=with_cfg(std=[1, 1, -1])), "each std must be above 0"),
    "std 0": (damaged(config=with_cfg(std=[0, 0, 0])), "each std must be above 0"),
    "std NaN": (damaged(config=with_cfg(std=[1, 1, float("nan")])), "config.json says pretrained_cfg nan"),
    "images of 0 pixels": (damaged(config=with_cfg(input_size=[3, 0, 0])), "makes images of 0 pixels"),
    "images of -3 pixels": (damaged(config=with_cfg(input_size=[3, -3, -3])), "makes images of -3 pixels"),
    "images of 100000 pixels": (damaged(config=with_cfg(input_size=[3, 8, 100000])), "makes images of 100000 pixels"),
}  # fmt: skip
HEAD = {
    "no head": (damaged(without("head.fc")), "2 tensors are missing"),
    "NaN in the head": (damaged(filled_with(float("nan"), "head.fc.bias")), "head.fc.bias is not finite"),
    "a tensor too many": (
        damaged(lambda tensors: tensors.update({"timm_model.head.extra.weight": torch.zeros(3)})),
        "is unknown to the architecture",
    ),
}
BLOCKS_TOO_MANY = (damaged(
    lambda tensors: tensors.update({"timm_model.stages.0.blocks.1.norm.bias": torch.zeros(8)})
), "is unknown to the architecture")  # fmt: skip

ROWS = [
    *(Row(f"{command.split()[0]}: {name}", command, ("bad", words), make=make)
      for name, (make, words) in DAMAGED.items() for command in (EVALUATE, FINETUNE)),
    *(Row(f"{command.split()[0]}: {name}", command, ("bad", words), make=make)
      for name, (make, words) in HEAD.items() for command in (EVALUATE, PUBLISH)),
    *(Row(f"{name} of {what}", command, ("bad", DAMAGED[name][1]), make=DAMAGED[name][0])
      for name in ("one bias missing", "NaN in a weight", "truncated weights", "18004 blocks", "std 0")
      for what, command in (("a teacher", TEACHER), ("a model to publish", PUBLISH),
                            ("a surrogate", "evaluate <evaluate> --attacks transfer --surrogate bad"))),
    *(Row(f"{command.split()[0]}: a block too many", command, BLOCKS_TOO_MANY[1], make=BLOCKS_TOO_MANY[0])
      for command in (EVALUATE, FINETUNE)),
    Row("load_model: no head", lambda here, places: load_model(str(here / "bad")), "missing", make=HEAD["no head"][0]),
    Row("load_model: NaN", lambda here, places: load_model(str(here / "bad"), id2label={0: "a", 1: "b"}), "not finite",
        make=DAMAGED["NaN in a weight"][0]),
    Row("freeze a share", lambda here, places: freeze(load_model(str(places["model"]))[0], 0.5), "freeze=0.5 must be"),
    *(Row(f"robust_training {value!r}", f"{EVALUATE} --eps 8", "--eps=8",
          make=damaged(config=changed(robust_training=value))) for value in (None, {})),
    *(Row(f"robust_training {value!r}", EVALUATE, ("robust_training", *words),
          make=damaged(config=changed(robust_training=value)))
      for value, *words in (("linf",), ([1],), ({"norm": "l7"}, "l7"), ({"eps": "much"}, "much"), ({"eps": None}, "eps"),
                            ({"seed": "one"}, "seed"), ({"data": "pets"}, "data"))),
    Row("robust_training with classes of no names", "evaluate --model_name_or_path bad --use_cpu", "data: classes 3",
        make=damaged(config=changed(robust_training={"data": {"dataset_name": "pets", "classes": 3}}))),
    *(Row(f"pretrain {option}", f"pretrain <pretrain> {option}", words) for option, words in (
        ("--image_size 0", "--image_size 0 must be at least 1"),
        ("--image_size -3", "--image_size -3 must be at least 1"),
        ("--image_size 100000", "image_size 100000 must be a side of 1 to 8192 pixels"),
        ("--model_name_or_path convnext_tiny --image_size 1 --model_args '{\"patch_size\": 4}'", "image_size 1 is not for"),
        ("--model_args '{\"depths\": [1, 1, 90000, 1]}'", "which is more than there can be"),
        ("--model_args '{\"dims\": [8, 8, 16, 100000000]}'", "refuses model_args"),
        ("--model_args '{\"depths\": 0}'", "refuses model_args"),
        ("--model_args '{\"nosuch\": 1}'", ("refuses model_args", "nosuch")),
        ("--model_args '{bad'", "--model_args {bad is not a JSON object"),
        ("--head_args '[1]'", "--head_args [1] is not a JSON object"),
        ("--model_name_or_path resnet00", "resnet00"),
        ("--model_name_or_path ''", "''"),
    )),
    Row("a name that is not there", "finetune <finetune> --model_name_or_path no/such", "model 'no/such' cannot be loaded"),
    *(Row(f"{command} into {where}", f"{command} <{command}> --output_dir {where}", f"--output_dir {where} {words}",
          make=lambda here, places: (here / "file").write_text("mine"))
      for command in ("pretrain", "finetune", "evaluate", "import-checkpoint")
      for where, words in (("file", ""), ("file/run", ""), ("/proc/run", "cannot be made"))),
    *(Row(f"features into {where}", f"finetune <finetune> --feature_cache_dir {where}", f"--feature_cache_dir {where}",
          make=lambda here, places: (here / "file").write_text("mine")) for where in ("file", "file/features", "/proc/f")),
    *(Row(f"import {option}", f"import-checkpoint <import-checkpoint> {option}", words) for option, words in (
        ("--std 0 0 0", "std"), ("--std nan 1 1", "std"), ("--mean 0.5", "colour channels"), ("--labels a b", "10"),
        ("--image_size 0", "image_size 0"), ("--file nowhere.pt", "nowhere.pt cannot be read"),
    )),
    Row("cache limit", "cache --feature_cache_dir . --limit much", "--limit much is not a size"),
    Row("evaluate seed -1", "evaluate <evaluate> --seed -1", "--seed -1 must be at least 0"),
]  # fmt: skip
