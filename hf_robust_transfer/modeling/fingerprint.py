"""The fingerprint of a classifier: one hash over all that its predictions depend on.

Reports, training records and cards are evidence only for the model whose fingerprint they carry.
"""

import hashlib
import json
from typing import Any

from transformers import BaseImageProcessor, PreTrainedModel

from .adapters import merged
from .classifier import weights_sha256

# Of a configuration, what changes no prediction, or is a part of its own.
_NOT_ARCHITECTURE = {
    *("architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path", "robust_training", "problem_type"),
    *("id2label", "label2id", "label_names", "num_labels", "num_classes", "pretrained_cfg", "use_cache"),
    *("output_attentions", "output_hidden_states", "return_dict", "torchscript"),
}
# Of an image processor's, likewise; its class is compared without the ending that tells the implementation.
_NOT_PREPROCESSING = {
    *("image_processor_type", "feature_extractor_type", "processor_class", "_processor_class", "auto_map"),
    *("return_tensors", "data_format", "input_data_format", "device", "_valid_processor_keys"),
}


def fingerprint(model: PreTrainedModel, processor: BaseImageProcessor) -> str:
    """A hash over all that a classifier's predictions depend on, equal for a model in memory and as loaded once saved.

    With adapters of peft it is that of the model with these merged into the weights, where they can be.

    Args:
        model: the model, timm's inside `TimmWrapperForImageClassification` included.
        processor: the image processor that it is used with.

    Example:
        >>> from hf_robust_transfer.modeling import create_model
        >>> model, processor = create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"})
        >>> before = fingerprint(model, processor)
        >>> model.config.id2label = {0: "dog", 1: "cat"}
        >>> fingerprint(model, processor) == before
        False
    """
    return _hash(fingerprint_parts(model, processor))


def fingerprint_parts(model: PreTrainedModel, processor: BaseImageProcessor) -> dict[str, str]:
    """What `fingerprint` is made of, so that one can say what two models differ in.

    Returns:
        A hash each of the ``weights`` (with their types), the ``architecture`` (with its arguments), the
        ``image processor`` (size, resizing, cropping, normalisation) and the ``labels`` (in the order of the logits).
    """
    model = merged(model, needed=False)
    id2label: dict[Any, str] = model.config.id2label or {}
    return {
        "weights": weights_sha256(model),
        "architecture": _hash(_architecture(model)),
        "image processor": _hash(_preprocessing(processor)),
        "labels": _hash([id2label[index] for index in sorted(id2label)]),
    }


def _architecture(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    if config.model_type == "timm_wrapper":  # what the wrapper builds from; a tag after the dot names weights
        named = {"architecture": config.architecture.partition(".")[0], "model_args": config.model_args or {}}
        return {"class": type(model).__name__, **named, "do_pooling": config.do_pooling}
    values = {name: value for name, value in config.to_diff_dict().items() if name not in _NOT_ARCHITECTURE}
    return {"class": type(model).__name__, **values}


def _preprocessing(processor: BaseImageProcessor) -> dict[str, Any]:
    data_config = getattr(processor, "data_config", None)
    if data_config is not None:  # timm
        return dict(data_config)
    kind = type(processor).__name__.removesuffix("Fast").removesuffix("Pil")
    values = {name: value for name, value in processor.to_dict().items() if name not in _NOT_PREPROCESSING}
    return {"class": kind, **values}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True, default=str).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """The value as JSON would give it back, without entries that are None, which say nothing."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
