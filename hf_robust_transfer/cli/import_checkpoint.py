"""Turn an external PyTorch checkpoint into a folder that `from_pretrained` loads.

    hf-robust-transfer import-checkpoint robust.pt --architecture cifar_resnet18 --dataset_name cifar10 \\
        --image_column_name img --output_dir outputs/source

The file may be bare weights, or a checkpoint of MadryLab's robustness, RobustBench, TRADES and their like. Its accuracy on
the data, where some are given, shows whether it was understood.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np
import torch
from accelerate import PartialState
from torch.utils.data import Subset
from tqdm.auto import tqdm
from transformers import BaseImageProcessor, PreTrainedModel

from ..data import DataArguments, PixelDataset, load_evaluation_split
from ..data.sizes import tell_of_images
from ..errors import UsageError, listed
from ..evaluation.accuracy import Accuracy
from ..evaluation.chunks import attack_in_chunks
from ..evaluation.subject import make_ready
from ..hub import stand_alone
from ..modeling import PixelClassifier, pixel_statistics
from ..modeling.importing import ExternalCheckpoint, import_checkpoint, read_checkpoint
from ..run_folder import CONFIG_NAME, check_writable
from .main import run_command
from .options import parse_json_object
from .parsing import names_a_file, parse_arguments


@dataclass
class ImportArguments:
    """What the file holds, and where to write the folder."""

    group: ClassVar[str] = "parameters that control the import"

    file: str = field(metadata={"help": "A .pt, .pth or .safetensors file; only weights are ever loaded from it."})
    architecture: str = field(metadata={"help": "The timm architecture that the weights belong to, like cifar_resnet18."})
    output_dir: str = field(metadata={"help": "The folder to write; it must be new or empty."})
    labels: list[str] | None = field(
        default=None, metadata={"help": "The names of its classes, in their order; by default those of the data."}
    )
    id2label: str | None = field(
        default=None, metadata={"help": 'The same as JSON, like \'{"0": "cat", "1": "dog"}\', or a JSON file.'}
    )
    mean: list[float] | None = field(
        default=None, metadata={"help": "Its normalisation of [0, 1] pixels; by default the file's own, else none."}
    )
    std: list[float] | None = field(default=None, metadata={"help": "Likewise."})
    model_args: str | None = field(default=None, metadata={"help": "Arguments of the architecture as JSON."})
    image_size: int | None = field(default=None, metadata={"help": "Side of its input in pixels; by default its own."})
    split: str | None = field(
        default=None, metadata={"help": "The split to measure accuracy on; by default test, else validation."}
    )

    def named_labels(self) -> dict[int, str] | None:
        """The labels by index, or None where none are given.

        Raises:
            UsageError: both options are given, or ``id2label`` does not name the classes 0, 1, 2, …
        """
        if self.id2label is None:
            return dict(enumerate(self.labels)) if self.labels else None
        if self.labels:
            raise UsageError("--labels and --id2label say the same: give one of them")
        try:
            inline = self.id2label.lstrip().startswith("{")
            named = json.loads(self.id2label if inline else Path(self.id2label).read_text(encoding="utf-8"))
            labels = {int(index): named[index] for index in named}
        except (OSError, ValueError, TypeError):
            raise UsageError('--id2label is neither a JSON object like \'{"0": "cat"}\' nor a file with one') from None
        if sorted(labels) != list(range(len(named))) or not all(isinstance(name, str) for name in labels.values()):
            raise UsageError("--id2label must give each of the classes 0, 1, 2, … a name")
        return {index: labels[index] for index in range(len(labels))}


def main(argv: Sequence[str]) -> None:
    """Parse, import, measure accuracy, save."""
    args, data_args = parse_arguments(
        "hf-robust-transfer import-checkpoint",
        [ImportArguments, DataArguments],
        "Turn an external PyTorch checkpoint into a checkpoint folder. The file may come first, without --file. With data"
        " to measure its accuracy on (--dataset_name, --test_dir, …) the import proves itself.",
        _with_file_flag(argv),
    )
    output_dir = _free_folder(args.output_dir)
    labels = args.named_labels()
    has_data = any((data_args.dataset_name, data_args.train_dir, data_args.validation_dir, data_args.test_dir))
    if labels is None and not has_data:
        raise UsageError("the names of the classes are missing: give --labels, --id2label or --dataset_name")
    checkpoint = read_checkpoint(args.file)
    model, processor = import_checkpoint(
        checkpoint,
        architecture=args.architecture,
        id2label=labels,
        model_args=parse_json_object(args.model_args, "--model_args"),
        mean=None if args.mean is None else tuple(args.mean),
        std=None if args.std is None else tuple(args.std),
        image_size=args.image_size,
    )
    print(_normalisation(args, checkpoint, processor), flush=True)
    if has_data:
        print(_measured(model, processor, data_args, args.split, take_labels=labels is None), flush=True)
    _write(model, output_dir)
    print(f"wrote {output_dir}: {args.architecture} with {model.num_labels} labels")


def _with_file_flag(argv: Sequence[str]) -> Sequence[str]:
    """Let the file come first without its flag, unless that is a file of options."""
    if argv and not argv[0].startswith("-") and not names_a_file(argv):
        return ["--file", *argv]
    return argv


def _free_folder(name: str) -> Path:
    """The folder to write, made sure that it can be written; nothing is made yet."""
    folder = Path(name).resolve()
    check_writable(name, "--output_dir")
    if folder.is_dir() and any(folder.iterdir()):
        held = "holds a model" if (folder / CONFIG_NAME).exists() else "is not empty"
        raise UsageError(f"--output_dir {name} {held}: choose a new or an empty folder")
    return folder


def _normalisation(args: ImportArguments, checkpoint: ExternalCheckpoint, processor: BaseImageProcessor) -> str:
    parts = []
    for name, used in zip(("mean", "std"), pixel_statistics(processor), strict=True):
        own = getattr(checkpoint, name)
        if getattr(args, name) is not None:
            origin = "as given" + (f" instead of the file's own {own}" if own else "")
        else:
            origin = "the file's own" if own else "by default, as the file has none"
        parts.append(f"{name} {used} ({origin})")
    return f"normalisation of [0, 1] pixels: {', '.join(parts)}"


def _measured(
    model: PreTrainedModel, processor: BaseImageProcessor, data_args: DataArguments, split: str | None, *, take_labels: bool
) -> str:
    """The accuracy on the data, in words; ``take_labels`` gives the model the data's names for its labels."""
    state = PartialState(cpu=not torch.accelerator.is_available())
    classifier = PixelClassifier(model.to(state.device), processor)
    images, name = load_evaluation_split(data_args, labels=None if take_labels else classifier.labels, split=split)
    if take_labels:
        names: list[str] = images.features["label"].names
        if len(names) != model.num_labels:
            raise UsageError(f"the data has the {len(names)} classes {listed(names)}, but the weights {model.num_labels}")
        label2id = {label: index for index, label in enumerate(names)}
        model.config.update({"id2label": dict(enumerate(names)), "label2id": label2id, "label_names": names})
    accuracy, guessing = _clean_accuracy(classifier, PixelDataset(images, processor, name))
    words = f"clean accuracy {accuracy} on {len(images)} images of the {name} split, with its 95 % Wilson interval"
    if accuracy.lower <= guessing:
        words += (
            f"\nWARNING: that is not clearly better than guessing the most frequent class, {guessing:.1%}. Probably the"
            " variant of the architecture (--architecture, --model_args), the normalisation (--mean, --std) or the order of"
            " the labels is not the checkpoint's."
        )
    return words


def _clean_accuracy(classifier: PixelClassifier, dataset: PixelDataset) -> tuple[Accuracy, float]:
    """The accuracy on these images in float32, and that of always guessing their most frequent class."""
    tell_of_images(dataset, dataset.name)
    subject = make_ready(classifier, dataset)
    outcomes = [
        attack_in_chunks(subject, Subset(dataset, rows.tolist()), [], progress=False)
        for rows in tqdm(torch.arange(len(dataset)).split(100), desc="measuring accuracy", leave=False)
    ]
    labels = np.concatenate([outcome.labels for outcome in outcomes])
    accuracy = Accuracy.of(labels == np.concatenate([outcome.clean for outcome in outcomes]))
    return accuracy, float(np.bincount(labels).max() / len(labels))


def _write(model: PreTrainedModel, folder: Path) -> None:
    """Write all of it beside its place, then move it there, so that no half of it is ever in the folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as staging:
        whole = Path(staging, folder.name)
        model.save_pretrained(whole)  # of a timm model, the configuration holds the image processor's too
        stand_alone(whole)
        if folder.is_dir():
            folder.rmdir()
        whole.rename(folder)


if __name__ == "__main__":
    run_command("import-checkpoint")
