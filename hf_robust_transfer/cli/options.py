"""What the commands share: options, their parsing, and one-line errors."""

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import BaseImageProcessor, HfArgumentParser, PreTrainedModel

from ..modeling import load_model

# Python puts a script's folder at the head of the path, where recipes/evaluate.py would hide the library of that name.
if sys.path[0] == str(Path(sys.argv[0]).resolve().parent):
    sys.path.append(sys.path.pop(0))


@dataclass
class CheckpointArguments:
    """Which trained model to use, and what to do about an output folder that is in use."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A checkpoint folder or a Hub id."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a Hub id."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where to keep what is downloaded from the Hub."})
    token: str | None = field(default=None, metadata={"help": "Hub token; by default the one of `hf auth login`."})
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Start anew in --output_dir, deleting the checkpoints and results of an earlier run."},
    )

    @property
    def hub_options(self) -> dict[str, Any]:
        """What every download from the Hub needs."""
        return {"cache_dir": self.cache_dir, "token": self.token}


@dataclass
class ModelArguments(CheckpointArguments):
    """Which model to start from, trained or not."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A checkpoint folder, a Hub id, or a timm architecture's name (untrained)."}
    )
    model_args: str | None = field(
        default=None, metadata={"help": 'Arguments of a timm architecture as JSON, like \'{"depth": 16, "width": 2}\'.'}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side of a timm architecture's input in pixels; by default its own."}
    )
    head_args: str | None = field(
        default=None,
        metadata={
            "help": 'A new head of several layers as JSON, like \'{"layers": 2, "norm": true, "dropout": 0.5}\'; for this'
            " package's own architectures."
        },
    )

    def load(self, id2label: dict[int, str] | None) -> tuple[PreTrainedModel, BaseImageProcessor]:
        """The model and its image processor, with a head for these labels (None: as it is).

        Raises:
            ValueError: no name, malformed ``model_args``, or whatever `load_model` raises.
        """
        if self.model_name_or_path is None:
            raise ValueError("--model_name_or_path is missing: a checkpoint folder, a Hub id or a timm architecture")
        return load_model(
            self.model_name_or_path,
            id2label=id2label,
            head_args=parse_json_object(self.head_args, "--head_args"),
            model_args=parse_json_object(self.model_args, "--model_args"),
            image_size=self.image_size,
            revision=self.model_revision,
            **self.hub_options,
        )

    @property
    def defining_options(self) -> dict[str, Any]:
        """What tells one run's model from another's."""
        names = ("model_name_or_path", "model_args", "image_size", "head_args", "model_revision")
        return {name: getattr(self, name) for name in names}


def parse_json_object(text: str | None, flag: str) -> dict[str, Any] | None:
    """Read an option that is a JSON object, or None.

    Raises:
        ValueError: it is no JSON object; the message names the flag.
    """
    if text is None:
        return None
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        raise ValueError(f"{flag} {text} is not a JSON object like '{{\"depth\": 16}}'") from None


def parse_arguments(types: Sequence[Any], description: str, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Read dataclasses of options from the command line, where a YAML or JSON file may come first.

    Flags after the file go before what it says. A bad value ends the program with a one-line error.
    """
    parser = HfArgumentParser(types, description=description, usage="%(prog)s [options.yaml] [--option value ...]")
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv and argv[0].endswith((".yaml", ".yml", ".json")):
            argv = [*_flags_of_file(Path(argv[0])), *argv[1:]]
        return tuple(parser.parse_args_into_dataclasses(argv))
    except ValueError as error:
        sys.exit(f"error: {error}")


def _flags_of_file(file: Path) -> list[str]:
    try:
        options = yaml.safe_load(file.read_text())  # JSON is YAML
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read: {str(error).partition(chr(10))[0]}") from None
    if not isinstance(options, dict):
        raise ValueError(f"{file} must map options to values, like `eps: 8/255`")
    flags: list[str] = []
    for name, value in options.items():
        if value is not None:
            values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
            flags += [f"--{name}", *map(str, values)]
    return flags


def run_recipe(main: Callable[[], None]) -> None:
    """Run a recipe; what this package itself refuses becomes a one-line error, anything else keeps its traceback."""
    try:
        main()
    except (ValueError, FloatingPointError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if not {Path(__file__).parents[1], Path(sys.argv[0]).resolve().parent} & set(raised_in.resolve().parents):
            raise
        sys.exit(f"error: {error}")
