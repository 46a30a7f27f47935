"""What the recipes share: parsing, output folders, resuming, and one training run from data to results."""

import json
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import BaseImageProcessor, HfArgumentParser, PreTrainedModel, set_seed

from .data import ImageSplits, PixelDataset
from .modeling import PixelClassifier, load_model
from .trainer import RobustTrainer
from .training_args import RobustTrainingArguments
from .transfer import describe

_FINISHED = "all_results.json"  # written last


@dataclass
class ModelArguments:
    """Which model to start from, and what to do about an output folder that is in use."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A checkpoint folder, a Hub id, or a timm architecture's name (untrained)."}
    )
    model_args: str | None = field(
        default=None, metadata={"help": 'Arguments of a timm architecture as JSON, like \'{"depth": 16, "width": 2}\'.'}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side of a timm architecture's input in pixels; by default its own."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a Hub id."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where to keep what is downloaded from the Hub."})
    token: str | None = field(default=None, metadata={"help": "Hub token; by default the one of `hf auth login`."})
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Start anew in --output_dir, deleting the checkpoints and results of an earlier run."},
    )

    def load(self, id2label: dict[int, str] | None) -> tuple[PreTrainedModel, BaseImageProcessor]:
        """The model and its image processor, with a head for these labels (None: as it is).

        Raises:
            ValueError: no name, malformed ``model_args``, or whatever `load_model` raises.
        """
        if self.model_name_or_path is None:
            raise ValueError("--model_name_or_path is missing: a checkpoint folder, a Hub id or a timm architecture")
        try:
            model_args = None if self.model_args is None else dict(json.loads(self.model_args))
        except (ValueError, TypeError):
            raise ValueError(f"--model_args {self.model_args} is not a JSON object like '{{\"depth\": 16}}'") from None
        options = {"revision": self.model_revision, "cache_dir": self.cache_dir, "token": self.token}
        return load_model(
            self.model_name_or_path, id2label=id2label, model_args=model_args, image_size=self.image_size, **options
        )


def parse_arguments(types: Sequence[Any], description: str, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Read dataclasses of options from the command line, or from the one YAML or JSON file that it names.

    A bad value ends the program with a one-line error and exit status 2.
    """
    parser = HfArgumentParser(types, description=description)
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if len(argv) == 1 and argv[0].endswith((".yaml", ".yml", ".json")):
            if not Path(argv[0]).is_file():
                parser.error(f"{argv[0]} is not a file")
            return tuple(parser.parse_yaml_file(argv[0]))  # JSON is YAML
        return tuple(parser.parse_args_into_dataclasses(argv))
    except ValueError as error:
        sys.exit(f"error: {error}")


def run_recipe(main: Callable[[], None]) -> None:
    """Run a recipe; what this package itself refuses becomes a one-line error, anything else keeps its traceback."""
    try:
        main()
    except (ValueError, FloatingPointError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if Path(__file__).parent not in raised_in.parents:
            raise
        sys.exit(f"error: {error}")


def claim_output_dir(args: RobustTrainingArguments, *, overwrite: bool = False) -> str | None:
    """Make sure that a run may use its output folder, and find where to resume.

    Args:
        args: the run's arguments.
        overwrite: delete the checkpoints and results of an earlier run.

    Returns:
        The checkpoint to resume from: the one asked for, else the last complete one in the folder, else None.

    Raises:
        ValueError: the folder holds a finished run, or ``resume_from_checkpoint`` is no complete checkpoint.
    """
    output_dir = Path(args.output_dir or "")
    if overwrite:
        with args.main_process_first(desc="clearing the output folder"):
            if args.should_save and output_dir.is_dir():
                for path in output_dir.iterdir():
                    if re.fullmatch(r"checkpoint-\d+", path.name):
                        shutil.rmtree(path)
                    elif re.fullmatch(r"\w+_results\.json|trainer_state\.json", path.name):
                        path.unlink()
    if (output_dir / _FINISHED).exists():
        raise ValueError(
            f"--output_dir {output_dir} holds a finished run: choose another folder, or start anew with"
            " --overwrite_output_dir"
        )
    asked = args.resume_from_checkpoint
    if asked and asked.lower() not in ("true", "false"):
        if not (Path(asked) / "trainer_state.json").is_file():
            raise ValueError(f"--resume_from_checkpoint {asked} is not a complete checkpoint folder")
        return asked
    complete = [
        path
        for path in output_dir.glob("checkpoint-*")
        if re.fullmatch(r"checkpoint-\d+", path.name) and (path / "trainer_state.json").is_file()
    ]
    return str(max(complete, key=lambda path: int(path.name.split("-")[1]))) if complete else None


def train_and_evaluate(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    splits: ImageSplits,
    args: RobustTrainingArguments,
    *,
    teacher: PixelClassifier | None = None,
    resume_from: str | None = None,
) -> dict[str, float]:
    """Train a model, save it with its image processor, and evaluate it on validation and test images.

    Args:
        model: the model, with a head for the splits' labels.
        processor: its image processor.
        splits: the data.
        args: the training arguments.
        teacher: for LwF, the frozen source.
        resume_from: a checkpoint folder to go on from.

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
            datasets[name].check()
    trainer = RobustTrainer(
        model,
        args,
        processing_class=processor,
        teacher=teacher,
        train_dataset=datasets["train"],
        eval_dataset=datasets["validation"],
    )
    if trainer.is_world_process_zero():
        print(describe(model), flush=True)
    trained = trainer.train(resume_from_checkpoint=resume_from)
    trainer.save_model()
    trainer.save_state()
    metrics = {"train": trained.metrics, "eval": trainer.evaluate()}
    if "test" in datasets:
        test: Dataset[Any] = datasets["test"]
        metrics["test"] = trainer.evaluate(test, metric_key_prefix="test")
    for name, values in metrics.items():
        if name != "train":
            trainer.log_metrics(name, values)
        trainer.save_metrics(name, values)
    return {key: value for values in metrics.values() for key, value in values.items()}
