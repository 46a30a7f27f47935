"""A model made ready for training: its adapters checked, frozen as asked, and noted what it is trained for."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import torch
from torch import Tensor
from transformers import TrainingArguments
from transformers.utils import logging

from ..attacks.eval_mode import untouched
from ..errors import UsageError, listed
from ..modeling.adapters import is_adapted, method, not_saved, plain
from ..modeling.classifier import PixelClassifier, accept_features, full_precision
from ..modeling.heads import classifier_layers, head_parameters, linear_layers
from ..provenance import Adapted, TrainedFor
from ..run_folder import remove_if_empty
from ..sharing import shown
from ..transfer import freeze
from ..transfer.source import check_source
from .arguments import RobustTrainingArguments

logger = logging.get_logger(__name__)
Given = ParamSpec("Given")


def leaves_no_folder(construct: Callable[Given, None]) -> Callable[Given, None]:
    """Decorate a trainer's constructor: where it refuses, the output folder that the base class made goes again."""

    @wraps(construct)
    def wrapper(*args: Given.args, **kwargs: Given.kwargs) -> None:
        folders = [Path(str(each.output_dir)) for each in (*args, *kwargs.values()) if isinstance(each, TrainingArguments)]
        new = [place for folder in folders for place in (folder, *folder.parents) if not place.exists()]
        try:
            construct(*args, **kwargs)
        except Exception:
            remove_if_empty(new)
            raise

    return wrapper


def prepare(model: Any, args: RobustTrainingArguments) -> None:
    """Freeze what is to be frozen, let the head run alone, and note what later evaluations go by.

    Args:
        model: a `transformers` image classifier, or a ``PeftModel`` of one, of which no more trains than peft lets train.
        args: the training's options.

    Raises:
        UsageError: the model has adapters of peft that cannot be trained or saved here, ``args`` do not go with what
            trains of it, or it is known to be no robust source for what is to be carried over from it.
    """
    config: Any = plain(model).config
    check_source(config.name_or_path or "this model", args.transfer, config.to_dict())
    _check_adapters(model, args)
    freeze(model, args.freeze)
    _check_head(model, args)
    accept_features(model)
    known = getattr(model.config, "robust_training", None)
    source = known.get("source") if isinstance(known, dict) else None
    record = TrainedFor(args.norm, str(args.eps), args.seed, source=source)
    if is_adapted(model):
        record = replace(record, adapter=_adapted(model).to_dict())
    model.config.robust_training = record.to_dict()


def _check_adapters(model: Any, args: RobustTrainingArguments) -> None:
    if not is_adapted(model):
        if getattr(model, "peft_config", None):
            raise UsageError(
                "the model has adapters of peft inside, but is no PeftModel, so that they could not be saved: pass what"
                " get_peft_model(model, config) returns"
            )
        if args.merge_adapter:
            raise UsageError("--merge_adapter is for a model with an adapter of peft, and this one has none: leave it out")
        return
    config = model.active_peft_config
    if config.is_prompt_learning or config.task_type is not None:
        what = f"task_type={config.task_type}" if config.task_type is not None else method(model)
        raise UsageError(f"{what} is for language models: adapt layers, as LoraConfig(target_modules=…) does, without it")
    if list(model.active_adapters) != ["default"]:
        raise UsageError(
            f"the active adapters are {listed(model.active_adapters)}: one called default trains here, so leave out"
            " adapter_name in get_peft_model"
        )
    if lost := not_saved(model):
        raise UsageError(
            f"{listed(lost, 3)} would train, but not be saved with the adapter: name the layers in the adapter's"
            " modules_to_save, or freeze them"
        )


def _check_head(model: Any, args: RobustTrainingArguments) -> None:
    if any(parameter.requires_grad for parameter in head_parameters(model)):
        return
    layers = {name.removeprefix("timm_model."): layer for name, layer in classifier_layers(plain(model)).items()}
    remedy = "let it require a gradient"
    if is_adapted(model):
        remedy = f"name it in the adapter's modules_to_save={json.dumps(list(layers))}"
    if args.starts_with_head and any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(
            f"the warm start trains the head alone, but nothing of it trains ({listed(layers)}): {remedy}, or use"
            " --warm_start_steps 0 and --warm_start_epochs 0"
        )
    biases = [linear_layers(layer)[-1].bias for layer in layers.values()]
    if is_adapted(model) and all(bias is None or not bias.any() for bias in biases):
        logger.warning(f"Nothing of the head trains, and it looks as if it had never been trained: to train it, {remedy}.")


def _adapted(model: Any) -> Adapted:
    config = model.active_peft_config
    targets = getattr(config, "target_modules", None) or []
    source = config.base_model_name_or_path or getattr(model.config, "name_or_path", None)
    trained, parameters = model.get_nb_trainable_parameters()
    rank = getattr(config, "r", None)
    return Adapted(
        method=method(model),
        rank=rank if isinstance(rank, int) and not getattr(config, "rank_pattern", None) else None,
        targets=[targets] if isinstance(targets, str) else sorted(targets),
        whole=sorted(getattr(config, "modules_to_save", None) or []),
        trained=trained,
        parameters=parameters,
        base_model=shown(source) if source else None,
    )


def check_that_it_merges(model: Any, processor: Any, images: Tensor) -> None:
    """Make sure that an adapter can be merged into the weights, whatever it will have learned.

    Args:
        model: a ``PeftModel``; it is not changed.
        processor: its image processor.
        images: a few in [0, 1], (B, C, H, W), on which a copy with an adapter at random is compared with itself, merged.

    Raises:
        UsageError: it cannot, or the logits differ.
    """
    tried, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for parameter in tried.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator).to(parameter)
    adapted = PixelClassifier(tried, processor)
    logits = []
    for classifier in (adapted, adapted.merged(needed=True)):
        with torch.no_grad(), untouched(classifier), full_precision(classifier):
            logits.append(classifier(images))
    rounding = 1e3 * torch.finfo(adapted.model.dtype).eps * float(logits[0].abs().amax())
    if not float((logits[0] - logits[1]).abs().amax()) <= rounding:
        raise UsageError(
            f"the adapter ({method(model)}), once merged into the weights, gives other logits: choose other target_modules,"
            " or save the adapter alone, without --merge_adapter and --push_to_hub"
        )
