"""Checkpoints that stand alone: one folder for `transformers` and, where the architecture is timm's, for timm too."""

import json
from pathlib import Path
from typing import Any

import timm
from safetensors import safe_open
from safetensors.torch import save_file
from timm.data import infer_imagenet_subset

from ..atomic import replacing
from ..modeling import cifar
from ..modeling.cifar import NEEDED
from ..modeling.creating import OF_WEIGHTS
from ..run_folder import CONFIG_NAME, WEIGHTS_INDEX_NAME

_PREFIX = "timm_model."  # what `TimmWrapperForImageClassification` puts before timm's names, and timm does not know


def stand_alone(folder: str | Path) -> None:
    """Let timm load a folder that `save_pretrained` wrote for a timm architecture; any other folder stays as it is.

    Weights get timm's own names, which `transformers` reads as well, also when a training resumes, and the configuration
    states the arguments that the architecture was built with, and where its head and its first convolution are, so that
    ``num_classes=`` and ``in_chans=`` of `timm.create_model` work. The name of one of this package's own architectures says
    that it needs the package. Files are replaced one by one, each at once.

    Args:
        folder: holds ``config.json`` and ``*.safetensors``.

    Example:
        >>> stand_alone("outputs/mine")  # doctest: +SKIP
        >>> timm.create_model("local-dir:outputs/mine", pretrained=True)  # doctest: +SKIP
    """
    folder = Path(folder)
    config = json.loads((folder / CONFIG_NAME).read_text())
    if config.get("model_type") != "timm_wrapper":
        return
    architecture = config["architecture"]
    if is_own(architecture):
        architecture = f"{architecture.partition('.')[0]}.{NEEDED}"
    pretrained_cfg = _of_weights(architecture) | (config.get("pretrained_cfg") or {})
    stated = {"architecture": architecture, "model_args": config.get("model_args") or {}, "pretrained_cfg": pretrained_cfg}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            if not any(name.startswith(_PREFIX) for name in opened.keys()):  # noqa: SIM118 - it is no mapping
                continue
            tensors = {name.removeprefix(_PREFIX): opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata()
        with replacing(file) as part:
            save_file(tensors, part, metadata)
    index_file = folder / WEIGHTS_INDEX_NAME
    if index_file.is_file():
        index = json.loads(index_file.read_text())
        index["weight_map"] = {name.removeprefix(_PREFIX): file for name, file in index["weight_map"].items()}
        _replace_json(index_file, index)
    _replace_json(folder / CONFIG_NAME, _with_labels_of_each(config | stated))


def _of_weights(architecture: str) -> dict[str, Any]:
    """What timm's own registry has to say of how an architecture's weights are given another head or other channels."""
    known = timm.get_pretrained_cfg(architecture.partition(".")[0])
    return {} if known is None else {key: value for key, value in known.to_dict().items() if key in OF_WEIGHTS}


def _with_labels_of_each(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the labels where timm and where `transformers` keeps those of its own architectures.

    `transformers` would write a ``label_names`` that it once read for evermore, also of a model that it gave other labels.
    """
    names, id2label = config.get("label_names"), config.get("id2label")
    if names is None and isinstance(id2label, dict):
        names = [id2label.get(str(index)) for index in range(len(id2label))]
    # Of a number of classes that ImageNet has, it would take ImageNet's names where there is no `label_names`.
    if not isinstance(names, list) or len(names) != config["num_classes"] or infer_imagenet_subset(config) is not None:
        return config
    kept = {key: value for key, value in config.items() if key != "label_names"}
    labels = {"id2label": {str(index): name for index, name in enumerate(names)}}
    labels["label2id"] = {name: index for index, name in enumerate(names)}
    return kept | labels | {"pretrained_cfg": config["pretrained_cfg"] | {"label_names": names}}


def is_own(architecture: str) -> bool:
    """Whether timm knows an architecture only from this package."""
    return timm.is_model(architecture) and timm.model_entrypoint(architecture).__module__ == cifar.__name__


def _replace_json(file: Path, content: dict[str, Any]) -> None:
    if json.loads(file.read_text()) == content:
        return
    with replacing(file) as part:
        part.write_text(json.dumps(content, indent=2) + "\n")
