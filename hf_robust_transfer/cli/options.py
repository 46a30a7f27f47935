"""Options that several commands share."""

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import BaseImageProcessor, PreTrainedModel

from ..errors import UsageError
from ..modeling import PixelClassifier, load_model
from ..modeling.loading import is_untrained


@dataclass
class HubArguments:
    """How to reach the Hub."""

    group: ClassVar[str] = "parameters that control the Hub"

    cache_dir: str | None = field(default=None, metadata={"help": "Where to keep what is downloaded from the Hub."})
    token: str | None = field(default=None, metadata={"help": "Hub token; by default the one of `hf auth login`."})

    @property
    def hub_options(self) -> dict[str, Any]:
        """What every download from the Hub needs."""
        return {"cache_dir": self.cache_dir, "token": self.token}


@dataclass
class SourceArguments(HubArguments):
    """Which trained model to use."""

    group: ClassVar[str] = "parameters that control the model"

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A checkpoint folder, a Hub id, or one of `sources`."}
    )
    processor_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Where a checkpoint without an image processor takes it from: a checkpoint folder or a Hub id."},
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a Hub id."})

    @property
    def checkpoint_options(self) -> dict[str, Any]:
        """What belongs to the one checkpoint that is named, for `load_model`."""
        return {"revision": self.model_revision, "processor": self.processor_name_or_path}


@dataclass
class CheckpointArguments(SourceArguments):
    """Which trained model to use, and what to do about an output folder that is in use."""

    group: ClassVar[str] = "parameters that control the model and the output folder"

    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Start anew in --output_dir, deleting the checkpoints and results of an earlier run."},
    )


@dataclass
class ArchitectureArguments(SourceArguments):
    """Which model to start from, trained or not."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "A checkpoint folder, a Hub id, one of `hf-robust-transfer sources`, or a timm architecture's name"
            " (untrained)."
        },
    )
    model_args: str | None = field(
        default=None, metadata={"help": 'Arguments of a timm architecture as JSON, like \'{"depth": 16, "width": 2}\'.'}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side in pixels of the images that the model takes; by default its own."}
    )
    head_args: str | None = field(
        default=None,
        metadata={
            "help": 'A new head of several layers as JSON, like \'{"layers": 2, "norm": true, "dropout": 0.5}\'; for this'
            " package's own architectures."
        },
    )

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise UsageError(f"--image_size {self.image_size} must be at least 1")
        for name in ("model_args", "head_args"):
            parse_json_object(getattr(self, name), f"--{name}")

    def load(self, id2label: dict[int, str] | None) -> tuple[PreTrainedModel, BaseImageProcessor]:
        """The model and its image processor, with a head for these labels (None: as it is).

        Raises:
            UsageError: no name, malformed ``model_args``, or whatever `load_model` raises.
        """
        if self.model_name_or_path is None:
            raise UsageError("--model_name_or_path is missing: a checkpoint folder, a Hub id or a timm architecture")
        return load_model(
            self.model_name_or_path,
            id2label=id2label,
            head_args=parse_json_object(self.head_args, "--head_args"),
            model_args=parse_json_object(self.model_args, "--model_args"),
            image_size=self.image_size,
            **self.checkpoint_options,
            **self.hub_options,
        )

    @property
    def defining_options(self) -> dict[str, Any]:
        """What tells one run's model from another's."""
        names = ("model_name_or_path", "processor_name_or_path", "model_args", "image_size", "head_args", "model_revision")
        return {name: getattr(self, name) for name in names}


@dataclass
class ModelArguments(ArchitectureArguments, CheckpointArguments):
    """Which model to train, from which teacher, and what to do about an output folder that is in use."""

    teacher_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "With an objective that learns from a teacher (ard, rslad, iad, adaad, igdm, saad): that teacher, any"
            " checkpoint, Hub id or name as above that knows these labels by name. With LwF and anchor: the source whose"
            " features are kept, by default --model_name_or_path."
        },
    )

    def load_teacher(self) -> PixelClassifier | None:
        """The teacher as it is, with labels of its own, if one is named.

        Raises:
            UsageError: it has no weights, or whatever `load_model` raises.
        """
        if (name := self.teacher_name_or_path) is None:
            return None
        if is_untrained(name):
            raise UsageError(f"--teacher_name_or_path {name} is an architecture without weights: name a trained model")
        return PixelClassifier(*load_model(name, **self.hub_options))

    @property
    def defining_options(self) -> dict[str, Any]:
        """What tells one run's model from another's, the teacher included."""
        return {**super().defining_options, "teacher_name_or_path": self.teacher_name_or_path}


def parse_json_object(text: str | None, flag: str) -> dict[str, Any] | None:
    """Read an option that is a JSON object, or None.

    Raises:
        UsageError: it is no JSON object; the message names the flag.
    """
    if text is None:
        return None
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        raise UsageError(f"{flag} {text} is not a JSON object like '{{\"depth\": 16}}'") from None
