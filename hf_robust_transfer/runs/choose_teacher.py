"""Compare teachers on a user's images, through a short pilot of the student."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import BaseImageProcessor, PreTrainedModel

from ..atomic import write_json
from ..data import DataArguments, ImageSplits, PixelDataset, as_pixels, collate, load_image_splits
from ..errors import UsageError
from ..evaluation.report import eps_text
from ..evaluation.teachers import STEPS, TeacherReport, look_at_teacher, recommended
from ..modeling import PixelClassifier, load_model
from ..modeling.classifier import weights_sha256
from ..modeling.loading import is_untrained
from ..run_folder import FINISHED_NAME, TEACHERS_NAME, TEACHERS_TEXT_NAME
from ..sharing import shareable, shown
from ..training import RobustTrainingArguments
from ..transfer import matched_teacher
from .folder import claimed_output_dir
from .train import train_and_evaluate

_BATCH = 64
_PILOT = "pilot"


@dataclass
class ChoiceArguments:
    """Which teachers to compare, for which student."""

    group: ClassVar[str] = "parameters that control the comparison"

    teachers: list[str] = field(
        default_factory=list, metadata={"help": "Checkpoint folders, Hub ids or names of `sources` that know these labels."}
    )
    output_dir: str | None = field(default=None, metadata={"help": "Where to write the table and the pilot."})
    pilot_epochs: float = field(
        default=3.0,
        metadata={"help": "How long an untrained student is trained with PGD first; a trained one is taken as it is."},
    )
    pilot_learning_rate: float = field(default=0.05, metadata={"help": "Its learning rate."})
    norm: str = field(default="linf", metadata={"help": "Norm of the threat model: linf or l2."})
    eps: str = field(default="8/255", metadata={"help": "Radius in [0, 1] pixels, as 8/255 or 0.031."})
    seed: int = field(default=0, metadata={"help": "Of the pilot and of the attacks."})
    samples: int = field(default=256, metadata={"help": "Attack at most so many validation images."})
    use_cpu: bool = field(default=False, metadata={"help": "Do not use a GPU even if there is one."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Train the pilot anew, and replace the table."})

    def __post_init__(self) -> None:
        if self.output_dir is None:
            raise UsageError("--output_dir is missing: where to write the table and the pilot")
        twice = [name for name in self.teachers if self.teachers.count(name) > 1]
        if not self.teachers or twice:
            raise UsageError(f"--teachers names {twice[0]} twice" if twice else "--teachers is missing: name two or more")
        if self.samples < 1:
            raise UsageError(f"--samples {self.samples} must be at least 1")
        self.pilot = RobustTrainingArguments(
            str(Path(self.output_dir) / _PILOT),
            objective="pgd",
            norm=self.norm,
            eps=self.eps,
            seed=self.seed,
            num_train_epochs=self.pilot_epochs,
            learning_rate=self.pilot_learning_rate,
            warmup_steps=0.2,
            weight_decay=5e-4,
            random_flip=True,
            eval_attack_steps=0,
            report_to="none",
            use_cpu=self.use_cpu,
        )


def compare_teachers(
    student: str,
    load_student: Callable[[dict[int, str]], tuple[PreTrainedModel, BaseImageProcessor]],
    options: dict[str, Any],
    data: DataArguments,
    args: ChoiceArguments,
    **hub_options: Any,
) -> dict[str, TeacherReport]:
    """Measure what each teacher makes of the student's adversarial images, write a table, and recommend one.

    Args:
        student: its name: an architecture, which is trained shortly as a pilot, or a checkpoint for these labels.
        load_student: loads it and its image processor, with a head for given labels.
        options: what defines it, so that another one's pilot is not taken for its.
        data: the images.
        args: which teachers, and how.
        hub_options: passed on to all that loads from the Hub (``token``, ``cache_dir``).

    Returns:
        The reports by the teachers' names, in their order.

    Raises:
        UsageError: a teacher does not know the labels or is not trained, or options, data or folders are of no use.
    """
    folder = Path(str(args.output_dir))
    if not args.overwrite_output_dir and (folder / TEACHERS_NAME).exists():
        raise UsageError(f"--output_dir {folder} holds a comparison: choose another, or give --overwrite_output_dir")
    for name in args.teachers:
        if is_untrained(name):
            raise UsageError(f"--teachers {name} is an architecture without weights: name a trained model")
    splits = load_image_splits(data, seed=args.seed, **hub_options)
    device = args.pilot.device
    model, processor = load_student(splits.id2label)
    teachers = {}
    for name in args.teachers:  # before the pilot is trained: all that can be refused is
        teacher = PixelClassifier(*load_model(name, **hub_options)).to(device).eval().requires_grad_(False)
        try:
            teachers[name] = matched_teacher(teacher, processor, splits.labels)
        except UsageError as error:
            raise UsageError(f"--teachers {name}: {error}") from None
    pilot = PixelClassifier(model, processor)
    if is_untrained(student):
        pilot = _trained(pilot, options, splits, data, args)
    pilot = pilot.to(device).eval()
    batches = list(_batches(splits, processor, args.samples, device))
    threat_model = args.pilot.threat_model
    reports = {}
    for name, teacher in teachers.items():
        shown_batches = tqdm(batches, desc=f"attacking {shown(name)}", leave=False)
        reports[name] = look_at_teacher(teacher, pilot, shown_batches, threat_model, args.seed)
    _write(folder, reports, teachers, pilot, args, sum(len(labels) for _, labels in batches))
    return reports


def _trained(
    pilot: PixelClassifier, options: dict[str, Any], splits: ImageSplits, data: DataArguments, args: ChoiceArguments
) -> PixelClassifier:
    """The pilot, trained shortly, or as an earlier command left it."""
    folder = Path(str(args.pilot.output_dir))
    if args.overwrite_output_dir or not (folder / FINISHED_NAME).exists():
        with claimed_output_dir(args.pilot, overwrite=args.overwrite_output_dir, uses=args.teachers) as resume_from:
            train_and_evaluate(
                pilot.model,
                pilot.processor,
                splits,
                args.pilot,
                resume_from=resume_from,
                overwrite=args.overwrite_output_dir,
                data=data,
                options=options,
            )
    return PixelClassifier(*load_model(str(folder)))


def _batches(splits: ImageSplits, processor: Any, samples: int, device: torch.device) -> Iterable[tuple[Tensor, Tensor]]:
    dataset = PixelDataset(splits.validation, processor, "validation")
    rows = range(min(samples, len(dataset)))
    for start in range(0, len(rows), _BATCH):
        batch = collate([dataset[row] for row in rows[start : start + _BATCH]])
        yield as_pixels(batch["pixel_values"]).to(device), batch["labels"].to(device)


def _write(
    folder: Path,
    reports: dict[str, TeacherReport],
    teachers: dict[str, PixelClassifier],
    pilot: PixelClassifier,
    args: ChoiceArguments,
    samples: int,
) -> None:
    name, why = recommended({shown(each): report for each, report in reports.items()})
    rows = [
        f"| {shown(each)} | {report.clean} | {report.robust} | {report.entropy:.2f} | {report.transferable} |"
        for each, report in reports.items()
    ]
    threat_model = args.pilot.threat_model
    title = f"{samples} validation images, {args.norm}, ε = {eps_text(threat_model.eps)}, PGD-{STEPS}, seed {args.seed}"
    head = "| teacher | clean accuracy | robust accuracy | entropy at the student's examples | transferable samples |"
    text = "\n".join([title, "", head, "|---|---|---|---|---|", *rows, "", f"Take {name}: {why}.", ""])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TEACHERS_TEXT_NAME).write_text(text, encoding="utf-8")
    content = {
        "recommended": name,
        "why": why,
        "threat_model": {"norm": args.norm, "eps": threat_model.eps, "steps": STEPS, "seed": args.seed},
        "samples": samples,
        "student_sha256": weights_sha256(pilot),
        "teachers": [
            {"name": shown(each), "sha256": weights_sha256(teachers[each]), **asdict(report)}
            for each, report in reports.items()
        ],
    }
    write_json(folder / TEACHERS_NAME, shareable(content))
    print(text)
