"""What the recipes share: parsing, output folders, resuming, and one training run from data to results."""

import json
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from accelerate.utils import broadcast_object_list
from torch.utils.data import Dataset
from transformers import BaseImageProcessor, HfArgumentParser, PreTrainedModel, set_seed

from .data import DataArguments, ImageSplits, PixelDataset
from .hub.training_record import write_training_record
from .modeling import PixelClassifier, load_model
from .trainer import RobustTrainer
from .training_args import RobustTrainingArguments
from .transfer import describe

# Python puts a script's folder at the head of the path, where recipes/evaluate.py would hide the library of that name.
if sys.path[0] == str(Path(sys.argv[0]).resolve().parent):
    sys.path.append(sys.path.pop(0))

_FINISHED = "all_results.json"  # written last
_CHECKPOINT = re.compile(r"checkpoint-\d+")
_RESULT = re.compile(r"\w+_results\.json|trainer_state\.json|run\.json|training\.json|comparison\.json|model\.safetensors")
# Options with which a stopped run may go on.
_MAY_CHANGE = (
    *("num_train_epochs", "per_device_eval_batch_size", "logging_steps", "save_strategy", "save_total_limit"),
    *("cache_features", "feature_cache_dir"),
)


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
        if not {Path(__file__).parent, Path(sys.argv[0]).resolve().parent} & set(raised_in.resolve().parents):
            raise
        sys.exit(f"error: {error}")


def claim_output_dir(
    args: RobustTrainingArguments, *, overwrite: bool = False, uses: Sequence[str | None] = ()
) -> str | None:
    """Make sure that a run may use its output folder, and find where to resume. Changes nothing yet.

    Args:
        args: the run's arguments.
        overwrite: `clear_output_dir` will delete the checkpoints and results of an earlier run.
        uses: models that the run starts from, which it must not delete.

    Returns:
        The checkpoint to resume from: the one asked for, else the last complete one in the folder, else None.

    Raises:
        ValueError: the folder holds a finished run, ``resume_from_checkpoint`` is no complete checkpoint, or overwriting
            would delete what the run needs.
    """
    output_dir = Path(args.output_dir or "")
    asked = str(args.resume_from_checkpoint or "")
    explicit = asked if asked.lower() not in ("", "true", "false") else None
    if overwrite:
        for used in (*uses, explicit):
            if used is not None and _would_be_deleted(Path(used), output_dir):
                raise ValueError(
                    f"--overwrite_output_dir would delete {used}, which this run needs: choose another --output_dir"
                )
        return explicit
    if (output_dir / _FINISHED).exists():
        raise ValueError(
            f"--output_dir {output_dir} holds a finished run: choose another folder, or start anew with"
            " --overwrite_output_dir"
        )
    if explicit is not None:
        if not _is_complete(Path(explicit)):
            raise ValueError(f"--resume_from_checkpoint {explicit} is not a complete checkpoint folder")
        return explicit
    if asked.lower() == "false":
        return None
    complete = [path for path in output_dir.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name) and _is_complete(path)]
    found: list[Any] = [str(max(complete, key=lambda path: int(path.name.split("-")[1]))) if complete else None]
    if args.world_size > 1:
        broadcast_object_list(found)  # all processes resume from what the first one found
    if found[0] is not None and args.process_index == 0:
        print(f"resuming from {found[0]}; to start anew, use --overwrite_output_dir", flush=True)
    return None if found[0] is None else str(found[0])


def _would_be_deleted(path: Path, output_dir: Path) -> bool:
    path, output_dir = path.resolve(), output_dir.resolve()
    inside = path.relative_to(output_dir).parts if path.is_relative_to(output_dir) else None
    return inside is not None and (not inside or _CHECKPOINT.fullmatch(inside[0]) is not None)


def _is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end, which the trainer's state marks."""
    try:
        return "global_step" in json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False


def clear_output_dir(args: RobustTrainingArguments) -> None:
    """Delete the checkpoints, results and model of an earlier run in the output folder; other files stay."""
    output_dir = Path(args.output_dir or "")
    with args.main_process_first(desc="clearing the output folder"):
        if args.should_save and output_dir.is_dir():
            for path in output_dir.iterdir():
                if _CHECKPOINT.fullmatch(path.name):
                    shutil.rmtree(path)
                elif _RESULT.fullmatch(path.name):
                    path.unlink()


def check_same_run(args: RobustTrainingArguments, options: dict[str, Any]) -> None:
    """Note in the output folder what defines this run or, where it is noted already, make sure that it is the same.

    Args:
        args: the run's arguments; of them, all that `RobustTrainingArguments` adds to the base class count.
        options: what else defines the run: its model and its data.

    Raises:
        ValueError: the folder has the checkpoints of another run.
    """
    own = [name for name in RobustTrainingArguments.__annotations__ if name not in _MAY_CHANGE]
    options = {**options, "seed": args.seed, **{name: getattr(args, name) for name in own}}
    options = json.loads(json.dumps(options, default=str))
    file = Path(args.output_dir or "", "run.json")
    with args.main_process_first(desc="checking the output folder"):
        if file.is_file():
            noted = json.loads(file.read_text())
            for name in sorted(noted.keys() & options.keys()):
                if noted[name] != options[name]:
                    raise ValueError(
                        f"--output_dir {file.parent} has checkpoints of a run with --{name} {noted[name]}, not"
                        f" {options[name]}:"
                        " choose another folder, or start anew with --overwrite_output_dir"
                    )
        elif args.should_save:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(options, indent=2) + "\n")


def train_and_evaluate(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    splits: ImageSplits,
    args: RobustTrainingArguments,
    *,
    teacher: PixelClassifier | None = None,
    resume_from: str | None = None,
    overwrite: bool = False,
    data: DataArguments | None = None,
    base_model: str | None = None,
    options: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Train a model, save it with its image processor, and evaluate it on validation and test images.

    Args:
        model: the model, with a head for the splits' labels.
        processor: its image processor.
        splits: the data.
        args: the training arguments.
        teacher: for LwF, the frozen source.
        resume_from: a checkpoint folder to go on from.
        overwrite: first clear the output folder of an earlier run.
        data: where the splits came from; noted in the model's configuration, for later evaluations.
        base_model: the trained model that this one starts from, for the model card.
        options: what defines the run besides ``args`` and ``data``, so that another does not go on from its checkpoints.

    Returns:
        All metrics; ``all_results.json`` in the output folder holds the same and marks the run as finished.

    Raises:
        ValueError: the model's labels are not the data's, an image cannot be read, or whatever `RobustTrainer` raises.
    """
    if model.num_labels != len(splits.labels):
        raise ValueError(
            f"the model's head has {model.num_labels} labels, the data set {len(splits.labels)}"
            f" ({', '.join(splits.labels)}): replace the head with load_model(…, id2label=…)"
        )
    set_seed(args.seed)
    datasets: dict[str, PixelDataset] = {}
    for name in ("train", "validation", "test"):
        split = getattr(splits, name)
        if split is not None:
            datasets[name] = PixelDataset(split, processor, name)
            datasets[name].check(args.process_index, args.world_size)
    trainer = RobustTrainer(
        model,
        args,
        processing_class=processor,
        teacher=teacher,
        train_dataset=datasets["train"],
        eval_dataset=datasets["validation"],
    )
    if data is not None:
        model.config.robust_training["data"] = data.source
    if trainer.is_world_process_zero():
        print(describe(model), flush=True)
    if overwrite:
        clear_output_dir(args)
    check_same_run(args, {**(options or {}), **({} if data is None else asdict(data))})
    trained = trainer.train(resume_from_checkpoint=resume_from)
    trainer.save_model(_internal_call=True)  # published when all of it is there
    trainer.save_state()
    if trainer.is_world_process_zero():
        seconds = trained.metrics["train_runtime"]
        write_training_record(args, splits, base_model=base_model, data=data, seconds=seconds)
    metrics = {"train": trained.metrics, "eval": trainer.evaluate()}
    if "test" in datasets:
        test: Dataset[Any] = datasets["test"]
        metrics["test"] = trainer.evaluate(test, metric_key_prefix="test")
    for name, values in metrics.items():
        if name != "train":
            trainer.log_metrics(name, values)
        trainer.save_metrics(name, values)
    if args.push_to_hub:
        trainer.push_to_hub()
    return {key: value for values in metrics.values() for key, value in values.items()}
