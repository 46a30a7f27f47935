"""What a model predicts, as one hash: its weights, and all of its configuration that changes predictions."""

import hashlib
import json
from typing import Any

from transformers import BaseImageProcessor, PreTrainedModel

from .classifier import weights_sha256

# What configurations and image processors say beside what a model computes.
_OF_NO_EFFECT = {
    *("_name_or_path", "_commit_hash", "transformers_version", "architectures", "dtype", "torch_dtype", "robust_training"),
    *(
        "id2label",
        "label2id",
        "num_labels",
        "label_names",
        "pretrained_cfg",
        "problem_type",
        "return_dict",
        "chunk_size_feed_forward",
    ),
    *("output_attentions", "output_hidden_states", "is_encoder_decoder", "image_processor_type", "feature_extractor_type"),
    *("processor_class", "_processor_class", "_valid_processor_keys", "data_format", "return_tensors", "device", "do_pad"),
    *("initializer_range", "do_initial_norm", "use_cache", "disable_grouping", "input_data_format"),
}


def fingerprint_parts(model: PreTrainedModel, processor: BaseImageProcessor) -> dict[str, str]:
    """A hash of each part of what decides a model's predictions, so that an error can say what differs.

    Args:
        model: a `transformers` image classifier, timm's inside `TimmWrapperForImageClassification` included.
        processor: its image processor.

    Returns:
        Hashes by ``weights``, ``architecture``, ``labels`` and ``image processor``.
    """
    config = model.config.to_dict()
    if config.get("model_type") == "timm_wrapper":
        architecture: Any = [str(config["architecture"]).partition(".")[0], config.get("model_args") or {}]
    else:
        architecture = {name: value for name, value in config.items() if name not in _OF_NO_EFFECT}
    id2label = model.config.id2label or {}
    data_config = getattr(processor, "data_config", None)
    seen = processor.to_dict() if data_config is None else data_config
    parts = {
        "architecture": architecture,
        "labels": [id2label[index] for index in sorted(id2label)],
        "image processor": {name: value for name, value in seen.items() if name not in _OF_NO_EFFECT},
    }
    hashes = {name: hashlib.sha256(json.dumps(part, sort_keys=True, default=str).encode()) for name, part in parts.items()}
    return {"weights": weights_sha256(model), **{name: each.hexdigest() for name, each in hashes.items()}}


def fingerprint(model: PreTrainedModel, processor: BaseImageProcessor) -> str:
    """One hash of weights, architecture and its arguments, labels in their order, sizes and normalisation.

    A model in memory and the same one loaded from its folder have the same. Where it differs from the one that a report or
    a record was made with, that says nothing of this model.

    Args:
        model: a `transformers` image classifier, timm's inside `TimmWrapperForImageClassification` included.
        processor: its image processor.

    Example:
        >>> from hf_robust_transfer.modeling import create_model, replace_head
        >>> model, processor = create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"})
        >>> before = fingerprint(model, processor)
        >>> model.config.id2label = {0: "dog", 1: "cat"}
        >>> fingerprint(model, processor) == before
        False
    """
    return hashlib.sha256(json.dumps(fingerprint_parts(model, processor), sort_keys=True).encode()).hexdigest()
