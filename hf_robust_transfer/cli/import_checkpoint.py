"""Turn an external PyTorch checkpoint into a folder that `from_pretrained` loads.

    hf-robust-transfer import-checkpoint robust.pt --architecture cifar_resnet18 --dataset_name cifar10 \\
        --image_column_name img --output_dir outputs/source

The file may be bare weights, or a checkpoint of MadryLab's robustness, RobustBench, ARES, TRADES and their like. Its clean
accuracy on the data, where some are given, shows whether it was understood, and its robust accuracy what it is worth.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import timm
import torch
from accelerate import PartialState
from torch.utils.data import Subset
from tqdm.auto import tqdm
from transformers import BaseImageProcessor, PreTrainedModel

from ..data import DataArguments, PixelDataset, load_evaluation_split
from ..data.sizes import resizing_of, tell_of_images
from ..errors import UsageError, listed
from ..evaluation.accuracy import Accuracy
from ..evaluation.chunks import Task, attack_in_chunks
from ..evaluation.named_attacks import parse_attack
from ..evaluation.report import eps_text, file_sha256
from ..evaluation.subject import Subject, make_ready
from ..hub import stand_alone
from ..hub.access import checked_repo_id
from ..modeling import PixelClassifier, pixel_statistics
from ..modeling.importing import ExternalCheckpoint, import_checkpoint, is_of_imagenet, read_checkpoint
from ..provenance import Origin, TrainedFor
from ..run_folder import CONFIG_NAME, check_writable
from ..runs.record import hub_id_of
from ..sharing import shown
from ..threat_model import ThreatModel, parse_eps
from .main import run_command
from .options import parse_json_object
from .parsing import names_a_file, parse_arguments

ATTACK = "pgd-10"


@dataclass
class ImportArguments:
    """What the file holds, and where to write the folder."""

    group: ClassVar[str] = "parameters that control the import"

    file: str = field(metadata={"help": "A .pt, .pth, .ckpt or .safetensors file; nothing that is in it can run."})
    architecture: str = field(metadata={"help": "The timm architecture that the weights belong to, like cifar_resnet18."})
    output_dir: str = field(metadata={"help": "The folder to write; it must be new or empty."})
    labels: list[str] | None = field(
        default=None,
        metadata={"help": "The names of its classes, in their order; by default those of the data, else ImageNet's 1000."},
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
    norm: str = field(default="linf", metadata={"help": "Norm of the threat model that it was trained for: linf or l2."})
    eps: str | None = field(
        default=None,
        metadata={
            "help": "Its radius in [0, 1] pixels, as 4/255 or 0.5, which is kept with the model for later evaluations. By"
            " default that is not known, and the robust accuracy is measured at 8/255, with ImageNet's classes at 4/255."
        },
    )
    source: str | None = field(
        default=None,
        metadata={
            "help": "Where the file is from, a Hub id or a link, which the cards of what comes of it tell; of a file in the"
            " Hub's cache that is known."
        },
    )
    license: str | None = field(
        default=None, metadata={"help": "Of its weights, as a Hub identifier: what is made from it is bound by it."}
    )
    attack_samples: int = field(
        default=64,
        metadata={"help": f"Measure the robust accuracy, under {ATTACK}, on so many of the images; 0 leaves it out."},
    )
    split: str | None = field(
        default=None, metadata={"help": "The split to measure accuracy on; by default test, else validation."}
    )

    def __post_init__(self) -> None:
        if self.attack_samples < 0:
            raise UsageError(f"--attack_samples {self.attack_samples} must be at least 0")
        if self.norm == "l2" and self.eps is None:
            raise UsageError("--norm l2 needs --eps, as its radius is another for every network: 3.0 for most of ImageNet")
        self.threat_model(classes_of_imagenet=False)
        if self.source is not None and "://" not in self.source:
            try:
                checked_repo_id(self.source)
            except UsageError:
                raise UsageError(f"--source {self.source} is neither a Hub id (you/name) nor a link (https://…)") from None

    def threat_model(self, *, classes_of_imagenet: bool) -> ThreatModel:
        """What the robust accuracy is measured for.

        Args:
            classes_of_imagenet: whether it tells ImageNet's classes apart, whose usual ε is smaller.

        Raises:
            UsageError: there is no such norm or radius; the message names the flag.
        """
        try:
            return ThreatModel(self.norm, parse_eps(self.eps or ("4/255" if classes_of_imagenet else "8/255")))
        except ValueError as error:
            raise UsageError(f"--{error}") from None

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
    if labels is None and not has_data and not is_of_imagenet(args.architecture):
        raise UsageError(_NAMES_MISSING)
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
    if labels is None and not has_data and not is_of_imagenet(args.architecture, len(model.config.id2label or ())):
        raise UsageError(f"{_NAMES_MISSING}, as ImageNet's are not meant by {model.num_labels} classes")
    if checkpoint.others:
        print(f"left aside in the file, as nothing in it is made or called: {listed(checkpoint.others, 10)}")
    print(_normalisation(args, checkpoint, model, processor), flush=True)
    if has_data:
        for words in _measured(model, processor, data_args, args, take_labels=labels is None):
            print(words, flush=True)
    model.config.robust_training = _trained_for(args)
    _write(model, output_dir)
    print(f"wrote {output_dir}: {args.architecture} with {model.num_labels} labels")


def _trained_for(args: ImportArguments) -> dict[str, Any]:
    """What is known of the network's training, and of the file that it is from; its name may say more than it should."""
    known: dict[str, Any] = {"license": args.license, "norm": args.norm, "eps": args.eps}
    if args.source is not None and "://" in args.source:
        known["url"] = shown(args.source)
    else:
        known["model_id"] = args.source or hub_id_of(str(Path(args.file).parent))
    origin = Origin(name="an imported file", sha256=file_sha256(Path(args.file)), **known)
    known_for = TrainedFor(args.norm, source=origin.to_dict()).to_dict() | {"eps": args.eps}
    return {name: value for name, value in known_for.items() if name != "eps" or value is not None}


_NAMES_MISSING = "the names of the classes are missing: give --labels, --id2label or --dataset_name"


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


def _normalisation(
    args: ImportArguments, checkpoint: ExternalCheckpoint, model: PreTrainedModel, processor: BaseImageProcessor
) -> str:
    parts = []
    for name, used in zip(("mean", "std"), pixel_statistics(processor), strict=True):
        own = getattr(checkpoint, name)
        if getattr(args, name) is not None:
            origin = "as given" + (f" instead of the file's own {own}" if own else "")
        else:
            origin = "the file's own" if own else "by default, as the file has none"
        parts.append(f"{name} {used} ({origin})")
    words = f"normalisation of [0, 1] pixels: {', '.join(parts)}"
    usual = timm.get_pretrained_cfg(args.architecture)
    if all(getattr(of, name) is None for of in (args, checkpoint) for name in ("mean", "std")) and usual is not None:
        statistics = tuple(map(tuple, (usual.mean, usual.std)))
        if pixel_statistics(processor) != statistics:
            words += (
                f"\nWARNING: nothing says what this network expects. If that is what timm's own {args.architecture} does,"
                f" give --mean {' '.join(map(str, usual.mean))} --std {' '.join(map(str, usual.std))}"
            )
    return words


def _measured(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    data_args: DataArguments,
    args: ImportArguments,
    *,
    take_labels: bool,
) -> Iterator[str]:
    """The accuracies on the data, in words; ``take_labels`` gives the model the data's names for its labels."""
    state = PartialState(cpu=not torch.accelerator.is_available())
    classifier = PixelClassifier(model.to(state.device), processor)
    images, name = load_evaluation_split(data_args, labels=None if take_labels else classifier.labels, split=args.split)
    if take_labels:
        names: list[str] = images.features["label"].names
        if len(names) != model.num_labels:
            raise UsageError(f"the data has the {len(names)} classes {listed(names)}, but the weights {model.num_labels}")
        label2id = {label: index for index, label in enumerate(names)}
        model.config.update({"id2label": dict(enumerate(names)), "label2id": label2id, "label_names": names})
    dataset = PixelDataset(images, processor, name)
    tell_of_images(resizing_of(dataset), name)
    subject = make_ready(classifier, dataset)
    accuracy, guessing = _clean_accuracy(subject, dataset)
    words = f"clean accuracy {accuracy} on {len(images)} images of the {name} split, with its 95 % Wilson interval"
    if accuracy.lower <= guessing:
        words += (
            f"\nWARNING: that is not clearly better than guessing the most frequent class, {guessing:.1%}. Probably the"
            " variant of the architecture (--architecture, --model_args), the normalisation (--mean, --std) or the order of"
            " the labels is not the checkpoint's."
        )
    yield words
    if args.attack_samples and accuracy.lower > guessing:
        imagenet = is_of_imagenet(args.architecture, len(model.config.id2label or ()))
        threat_model = args.threat_model(classes_of_imagenet=imagenet)
        clean, robust = _robust_accuracy(subject, dataset, threat_model, args.attack_samples)
        samples = min(args.attack_samples, len(dataset))
        threat = f"{threat_model.norm} ε = {eps_text(threat_model.eps)}"
        words = f"robust accuracy {robust} under {ATTACK.upper()}, {threat}, on the first {samples} of them"
        if robust.value < clean.value / 3:
            words += (
                f"\nWARNING: that is less than a third of their clean accuracy, {clean.value:.1%}: at this ε it is no"
                " robust source. If it was trained for another threat model, give --norm and --eps."
            )
        yield words


def _robust_accuracy(
    subject: Subject, dataset: PixelDataset, threat_model: ThreatModel, samples: int
) -> tuple[Accuracy, Accuracy]:
    """The clean and the robust accuracy on the first images, judged in float32."""
    task = Task(parse_attack(ATTACK), threat_model)
    outcomes = attack_in_chunks(subject, Subset(dataset, range(min(samples, len(dataset)))), [task])
    return (
        Accuracy.of(outcomes.labels == outcomes.clean),
        Accuracy.of(outcomes.labels == outcomes.tasks[task.key].predictions),
    )


def _clean_accuracy(subject: Subject, dataset: PixelDataset) -> tuple[Accuracy, float]:
    """The accuracy on these images in float32, and that of always guessing their most frequent class."""
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
