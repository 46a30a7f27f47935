"""Models by Hub id, folder or timm name, each with its image processor; new heads for new labels."""

from pathlib import Path
from typing import Any

import timm
import torch
from transformers import AutoConfig, AutoModelForImageClassification, BaseImageProcessor, PreTrainedModel
from transformers.utils import logging

from ..errors import UsageError
from ..run_folder import ADAPTER_CONFIG_NAME
from .creating import as_trained, create_model, made_ready
from .fetching import fetch_source
from .heads import head, replace_head
from .input_size import check_input_size, check_side, processor_for
from .resizing import at_size
from .source_list import Source
from .sources import ADVISED, find_source, near
from .weights import building_at_most, check_config, check_weights, size_limit

logger = logging.get_logger(__name__)


def load_model(
    name_or_path: str,
    *,
    id2label: dict[int, str] | None = None,
    head_args: dict[str, Any] | None = None,
    model_args: dict[str, Any] | None = None,
    image_size: int | None = None,
    processor: str | BaseImageProcessor | None = None,
    **from_pretrained: Any,
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Load an image classifier and its image processor, with a new head where the labels are new.

    Args:
        name_or_path: a local checkpoint folder; a timm architecture's name, which gives untrained weights; the name of one
            of the robust sources that `hf-robust-transfer sources` lists, which is fetched and imported the first time; or
            else a Hub id. Where names are the same, the first of these.
        id2label: the target's labels. The head is kept where they are the checkpoint's own, and replaced otherwise, or
            where the checkpoint has none.
        head_args: for a new head of several layers, as for `replace_head`.
        model_args: for a timm architecture, arguments of its constructor, like ``{"patch_size": 2}``.
        image_size: the side of the images that it takes, in pixels, by default its own. A trained model's learned positions
            are interpolated.
        processor: for a checkpoint, the image processor, or the folder or Hub id to take it from; by default its own.
        from_pretrained: passed on to `from_pretrained` (``revision``, ``token``, ``cache_dir``, ``local_files_only``, …).

    Returns:
        The model in float32, in eval mode and in the channels-last memory format, with which convolutions are fastest, and
        an image processor that makes images of its size and channels, as `check_input_size` sees to.

    Raises:
        UsageError: the name is nothing of these; the folder holds no readable image classifier, or one whose weights are
            not all there (but for its head, where ``id2label`` is given), of other shapes, more than its architecture
            has, or not finite; or ``model_args`` with a checkpoint, whose architecture is settled; or images of this
            size or channels are not for it; or whatever `fetch_source` and `replace_head` raise.

    Example:
        >>> model, processor = load_model("cifar_resnet18", id2label={0: "cat", 1: "dog"})
        >>> model.config.id2label
        {0: 'cat', 1: 'dog'}
    """
    if is_untrained(name_or_path):
        if id2label is None:
            raise UsageError(f"model {name_or_path!r} is untrained and has no labels of its own: give it id2label")
        if processor is not None:
            raise UsageError(f"{name_or_path!r} is an untrained timm architecture, so leave out the image processor")
        if head_args:
            model_args = {**(model_args or {}), "head_args": head_args}
        return create_model(name_or_path, id2label=id2label, model_args=model_args, image_size=image_size)
    if model_args:
        raise UsageError(
            f"model_args build an untrained timm architecture, but {name_or_path!r} is none: leave them out to load it as a"
            " checkpoint folder or a Hub id"
        )
    source = find_source(name_or_path)
    if source is not None and Path(name_or_path).is_dir():
        logger.warning_once(f"{name_or_path} is a folder here: it is used, and not the source of that name")
        source = None
    if source is not None and (processor is None or source.name == name_or_path):
        if processor is not None:
            raise UsageError(f"source {source.name} comes with its image processor: leave out the other one")
        fetched, from_pretrained = _fetched(source, **from_pretrained)
        loaded = load_model(fetched, id2label=id2label, head_args=head_args, image_size=image_size, **from_pretrained)
        loaded[0].name_or_path = loaded[0].config.name_or_path = name_or_path
        return loaded
    if Path(name_or_path, ADAPTER_CONFIG_NAME).is_file():
        raise UsageError(
            f"model {name_or_path!r} is an adapter of peft and no whole model: load it onto its base, with"
            " PeftModel.from_pretrained(load_model(base, id2label=…)[0], …), or save it anew with merge_adapter=True"
        )
    if image_size is not None:
        check_side(image_size)
    try:
        check_config(name_or_path)
        config = _config(name_or_path, id2label, **from_pretrained)
        with building_at_most(size_limit(name_or_path)):
            model, loading = AutoModelForImageClassification.from_pretrained(
                name_or_path,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **from_pretrained,
            )
        own = processor_for(model, name_or_path, processor, **from_pretrained)
        headless = check_weights(model, loading, head=head(model), new_head=id2label is not None)
        _check_labels(model)
        model = model.eval()
        if image_size is not None:
            model, own = at_size(model, own, image_size)
        own = check_input_size(model, own)
    except Exception as error:  # damaged files make libraries raise what they like: KeyError, ZeroDivisionError, …
        raise UsageError(f"model {name_or_path!r} cannot be loaded: {_why_not(name_or_path, error)}") from error
    labels = dict(model.config.id2label if id2label is None else id2label)
    if head_args or headless or labels != dict(model.config.id2label):
        replace_head(model, labels, head_args)
    return made_ready(model), own


def is_untrained(name_or_path: str) -> bool:
    """Whether a name is that of a timm architecture, whose weights are untrained then; a folder of the name goes before."""
    return not Path(name_or_path).is_dir() and timm.is_model(name_or_path)


def _fetched(
    source: Source,
    *,
    revision: str = "main",
    cache_dir: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    **others: Any,
) -> tuple[str, dict[str, Any]]:
    """The folder of a source, and what of the arguments of `from_pretrained` is for loading it."""
    options: dict[str, Any] = {"cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
    return str(fetch_source(source, revision=revision, **options)), others


def _config(name_or_path: str, id2label: dict[int, str] | None, **from_pretrained: Any) -> Any:
    """The configuration of a checkpoint, such that `transformers` builds its model from it."""
    config = AutoConfig.from_pretrained(name_or_path, **from_pretrained)
    if not config.num_labels:  # a backbone alone, as timm has them
        if id2label is None:
            raise UsageError("it has no head and no labels of its own: give it id2label")
        config = AutoConfig.from_pretrained(name_or_path, num_labels=len(id2label), **from_pretrained)
    if config.model_type == "timm_wrapper":
        model_args = {key: value for key, value in (config.model_args or {}).items() if key != "num_classes"}
        config.model_args = as_trained(config.architecture, model_args)  # timm notes the number of classes there
    return config


def _why_not(name: str, error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0]
    if not isinstance(error, UsageError | OSError | ImportError):
        reason = f"{type(error).__name__}: {reason}"
    if Path(name).is_dir():
        return reason
    return (
        "it is neither a folder with an image classifier, nor a timm architecture, nor one of `hf-robust-transfer sources`"
        f" like {ADVISED}, nor a reachable Hub id ({reason}){near(name)}"
    )


def _check_labels(model: PreTrainedModel) -> None:
    id2label = dict(model.config.id2label or {})
    if sorted(id2label) != list(range(len(id2label))) or not all(isinstance(name, str) for name in id2label.values()):
        raise UsageError("its config.json must give each of the labels 0, 1, 2, … a name, in id2label")
