"""Walk the weights from one checkpoint to another, measure the models on the way, and keep the one that is chosen."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from accelerate import PartialState
from transformers.utils import logging

from ..atomic import write_json
from ..data import DataArguments, PixelDataset, as_pixels, collate, load_evaluation_split, load_image_splits
from ..data.sizes import resizing_of, tell_of_images
from ..errors import UsageError, listed
from ..evaluation.named_attacks import parse_attacks
from ..evaluation.report import eps_text
from ..evaluation.robustness import evaluate_subject, hardware
from ..evaluation.subject import Settings, make_ready
from ..evaluation.tradeoff import TradeoffPoint, choose_point, parse_choice, plot_tradeoff
from ..hub import stand_alone
from ..modeling import PixelClassifier, load_model
from ..modeling.fingerprint import fingerprint, fingerprint_parts
from ..modeling.input_size import input_shape
from ..provenance import Provenance, TrainedFor
from ..run_folder import (
    INTERPOLATION_NAME,
    INTERPOLATION_PICTURE_NAME,
    INTERPOLATION_TEXT_NAME,
    PROGRESS_NAME,
    RECORD_NAME,
    clear,
    is_of_a_model,
)
from ..sharing import shareable, shown
from ..threat_model import ThreatModel, parse_eps
from ..training.gate import check_saved
from ..transfer.averaging import estimate_batch_norm
from ..transfer.interpolation import check_that_they_match, differing_statistics, interpolated
from .evaluate import data_of
from .folder import locked
from .record import command_line, hub_id_of, library_versions

logger = logging.get_logger(__name__)
_BATCH = 128  # of training images, to measure batch-norm statistics on


@dataclass
class InterpolationArguments:
    """Which models on the way to measure, how, and which of them to keep."""

    group: ClassVar[str] = "parameters that control the interpolation"

    output_dir: str | None = field(default=None, metadata={"help": "Where to write the table, the figure and the model."})
    alphas: list[float] = field(
        default_factory=lambda: [0, 0.25, 0.5, 0.75, 1],
        metadata={"help": "Which models to measure: α, from 0 (the first model) to 1 (the second)."},
    )
    choose: str = field(
        default="knee",
        metadata={
            "help": "Which model to write: the most robust, the one of highest clean accuracy, the knee of the curve (the"
            " farthest from the diagonal, both accuracies scaled to 0 … 1), or an α. robust, clean, knee or a number."
        },
    )
    norm: str | None = field(
        default=None,
        metadata={"help": "Norm of the threat model: linf or l2; by default that of the first model's training."},
    )
    eps: str | None = field(
        default=None, metadata={"help": "Radius in [0, 1] pixels, as 8/255 or 0.031; by default that of the training."}
    )
    attacks: list[str] = field(
        default_factory=lambda: ["pgd-20"],
        metadata={"help": "What robust accuracy is the worst case of, as for evaluate: pgd-20, autoattack, …"},
    )
    seed: int | None = field(default=None, metadata={"help": "Of the attacks; by default that of the training."})
    precision: str = field(default="auto", metadata={"help": "Craft attacks in float32, bf16 or fp16, as for evaluate."})
    chunk_size: int | None = field(default=None, metadata={"help": "Images attacked at a time, as for evaluate."})
    use_cpu: bool = field(default=False, metadata={"help": "Do not use a GPU even if there is one."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace the table, the figure and the model that an earlier command left."}
    )

    def __post_init__(self) -> None:
        outside = [alpha for alpha in self.alphas if not 0 <= alpha <= 1]
        if outside:
            raise UsageError(f"--alphas {outside[0]:g} is not in [0, 1]: 0 is the first model, 1 the second")
        self.choice = parse_choice(self.choose)
        chosen = [self.choice] if isinstance(self.choice, float) else []
        self.alphas = sorted({*map(float, self.alphas), *chosen})
        parse_attacks(self.attacks, surrogate=False)
        self.settings(0)

    def settings(self, seed: int) -> Settings:
        """How the models are measured, with this seed where none is given."""
        given = {"precision": self.precision, "chunk_size": self.chunk_size}
        try:
            seed = seed if self.seed is None else self.seed
            return Settings(seed=seed, self_check_samples=0, curve_samples=0, **given)  # type: ignore[arg-type]
        except ValueError as error:
            raise UsageError(f"--{error}") from None

    def threat_model(self, trained_for: TrainedFor) -> ThreatModel:
        """What the adversary may do: as given, else as a checkpoint was trained for."""
        try:
            return ThreatModel(self.norm or trained_for.norm, parse_eps(self.eps or trained_for.eps))
        except ValueError as error:
            raise UsageError(f"--{error}") from None


def interpolate_checkpoints(
    names: tuple[str, str],
    data: DataArguments,
    args: InterpolationArguments,
    *,
    overwrite: bool = False,
    command: Sequence[str] | None = None,
    **hub_options: Any,
) -> list[TradeoffPoint]:
    """Measure the models on the way between two on validation images, and write the chosen one with table and figure.

    Batch-norm statistics that both models have in common are kept, which is exact. Where they differ, the mean of two is
    the statistics of no network, so that between the ends they are measured anew, on the training images.

    Args:
        names: the two checkpoint folders or Hub ids, fine-tunings of the same weights.
        data: which images; by default those that the first was trained for.
        args: which models to measure, and which to keep.
        overwrite: replace what an earlier command left in the output folder.
        command: that was used, name and arguments, for the model card.
        hub_options: passed on to all that loads from the Hub (``token``, ``cache_dir``).

    Returns:
        The points, in the order of α.

    Raises:
        UsageError: the models do not match, the output folder is in use or holds something, or data or options are of no
            use; nothing is written then.
    """
    if args.output_dir is None:
        raise UsageError("--output_dir is missing: where to write the table, the figure and the model")
    folder = Path(args.output_dir)
    state = PartialState(cpu=args.use_cpu or not torch.accelerator.is_available())
    with locked(folder, state.process_index, state.num_processes):
        _check_folder(folder, names, overwrite)
        with state.main_process_first():
            ends = [PixelClassifier(*load_model(name, **hub_options)).to(state.device) for name in names]
        check_that_they_match(*ends)
        interpolated(ends[0].model, ends[1].model, 0.5)  # refuses what has no middle
        trained_for = TrainedFor.of(ends[0].model.config)
        threat_model = args.threat_model(trained_for)
        data = data_of(data, trained_for)
        seeds = {"seed": trained_for.seed, "subset_seed": args.settings(trained_for.seed).seed}
        with state.main_process_first():
            images, split = load_evaluation_split(data, labels=ends[0].labels, split="validation", **seeds, **hub_options)
        dataset = PixelDataset(images, ends[0].processor, split)
        dataset.check(state.process_index, state.num_processes)
        if state.is_main_process:
            tell_of_images(resizing_of(dataset), split)
        model_at = _way(ends, lambda: _training_batches(data, ends[0], trained_for.seed, state, hub_options))
        if overwrite and state.is_main_process:
            clear(folder)
        points = [
            _measured(model_at(alpha), alpha, dataset, split, data, threat_model, args, folder, trained_for.seed)
            for alpha in args.alphas
        ]
        chosen = choose_point(points, args.choice)
        _warn_of_a_dip(points)
        if state.is_main_process:
            record = _record(names, ends, chosen, data, command)
            _write(folder, model_at(chosen.alpha), points, chosen, record, threat_model, args, split, len(dataset), names)
        state.wait_for_everyone()
    return points


def _check_folder(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    for name in names:
        if Path(name).resolve() == folder.resolve():
            raise UsageError(f"--output_dir {folder} is one of the two models: choose another folder")
    left = [path.name for path in folder.iterdir() if is_of_a_model(path.name)] if folder.is_dir() else []
    if not overwrite and (left or (folder / INTERPOLATION_NAME).exists()):
        raise UsageError(f"--output_dir {folder} holds a model: choose another folder, or give --overwrite_output_dir")


def _way(ends: list[PixelClassifier], batches: Callable[[], list[torch.Tensor]]) -> Callable[[float], PixelClassifier]:
    """The classifier at each α, with batch-norm statistics that are its own."""
    differing = differing_statistics(ends[0].model, ends[1].model)
    images = batches() if differing else []

    def at(alpha: float) -> PixelClassifier:
        classifier = PixelClassifier(interpolated(ends[0].model, ends[1].model, alpha), ends[0].processor)
        if differing and 0 < alpha < 1:
            layers: list[Any] = [classifier.model.get_submodule(name) for name in differing]
            estimate_batch_norm(classifier, images, layers)
        return classifier

    return at


def _training_batches(
    data: DataArguments, classifier: PixelClassifier, seed: int, state: PartialState, hub_options: dict[str, Any]
) -> list[torch.Tensor]:
    with state.main_process_first():
        train = load_image_splits(data, seed=seed, **hub_options).train
    dataset = PixelDataset(train, classifier.processor, "train")
    starts = range(0, len(dataset) - 1, _BATCH)  # of a last single image there may be no statistics
    items = ([dataset[row] for row in range(start, min(start + _BATCH, len(dataset)))] for start in starts)
    return [as_pixels(collate(each)["pixel_values"]).to(state.device) for each in items]


def _measured(
    classifier: PixelClassifier,
    alpha: float,
    dataset: PixelDataset,
    split: str,
    data: DataArguments,
    threat_model: ThreatModel,
    args: InterpolationArguments,
    folder: Path,
    seed: int,
) -> TradeoffPoint:
    report = evaluate_subject(
        make_ready(classifier, dataset, args.settings(seed)),
        dataset,
        threat_model,
        parse_attacks(args.attacks, surrogate=False, norm=threat_model.norm),
        model_name=f"alpha {alpha:g}",
        data_name=str(data.dataset_name),
        split=split,
        folder=folder / PROGRESS_NAME,
    )
    point = TradeoffPoint(alpha, report.clean, report.worst_case)
    if PartialState().is_main_process:
        print(f"α = {alpha:g}: clean {point.clean}, robust {point.robust}", flush=True)
    return point


def _warn_of_a_dip(points: Sequence[TradeoffPoint]) -> None:
    ends = {point.alpha: point.clean.value for point in points if point.alpha in (0, 1)}
    between = [point.clean.value for point in points if 0 < point.alpha < 1]
    if len(ends) == 2 and between and min(between) < min(ends.values()) - 0.1:
        logger.warning(
            f"A model between the two has a clean accuracy of {min(between):.1%}, far below both ends: they do not come"
            " from the same weights and head. Train the second from the first, without a warm start"
        )


def _record(
    names: tuple[str, str],
    ends: list[PixelClassifier],
    chosen: TradeoffPoint,
    data: DataArguments,
    command: Sequence[str] | None,
) -> Provenance:
    parts: list[dict[str, Any]] = [
        {"name": shown(name), "hub_id": hub_id_of(name), "fingerprint": fingerprint(each.model, each.processor)}
        for name, each in zip(names, ends, strict=True)
    ]
    return Provenance(
        command=None if command is None else command_line(command),
        base_model=shown(names[0]),
        base_model_id=hub_id_of(names[0]),
        dataset_id=data.hub_id,
        data=shareable({name: value for name, value in asdict(data).items() if value is not None}),
        interpolated={"alpha": chosen.alpha, "models": parts},
        hardware=hardware(),
        versions=library_versions(),
    )


def _write(
    folder: Path,
    classifier: PixelClassifier,
    points: Sequence[TradeoffPoint],
    chosen: TradeoffPoint,
    record: Provenance,
    threat_model: ThreatModel,
    args: InterpolationArguments,
    split: str,
    samples: int,
    names: tuple[str, str],
) -> None:
    """The model, then what says how it came to be, and last of all the table, the mark of the end."""
    folder.mkdir(parents=True, exist_ok=True)
    model, processor = classifier.model, classifier.processor
    with TemporaryDirectory(prefix="_saving-", dir=folder) as staging:
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        stand_alone(staging)
        check_saved(staging, classifier, torch.rand(2, *input_shape(model), device=model.device))
        for file in Path(staging).iterdir():
            file.replace(folder / file.name)
    parts = {"fingerprint": fingerprint(model, processor), "fingerprint_parts": fingerprint_parts(model, processor)}
    write_json(folder / RECORD_NAME, record.to_dict() | parts)
    title = f"{shown(names[0])} (α = 0) to {shown(names[1])} (α = 1)"
    measured = f"{samples} {split} images, {threat_model.norm}, ε = {eps_text(threat_model.eps)}, {listed(args.attacks)}"
    text = _table(points, chosen, f"{title}: {measured}")
    (folder / INTERPOLATION_TEXT_NAME).write_text(text, encoding="utf-8")
    plot_tradeoff(points, chosen, folder / INTERPOLATION_PICTURE_NAME, title=title)
    content = {
        "models": record.interpolated["models"],
        "chosen": {"by": args.choose, "alpha": chosen.alpha},
        "threat_model": {"norm": threat_model.norm, "eps": threat_model.eps, "attacks": args.attacks},
        "data": {"split": split, "samples": samples},
        "points": [asdict(point) for point in points],
    }
    write_json(folder / INTERPOLATION_NAME, content)
    shutil.rmtree(folder / PROGRESS_NAME, ignore_errors=True)
    print(text)
    print(f"The model at α = {chosen.alpha:g} is in {folder}, with the table and its figure {INTERPOLATION_PICTURE_NAME}.")


def _table(points: Sequence[TradeoffPoint], chosen: TradeoffPoint, title: str) -> str:
    marks = {point.alpha: "**" if point == chosen else "" for point in points}
    rows = [
        f"| {marks[point.alpha]}{point.alpha:g}{marks[point.alpha]} | {point.clean} | {point.robust} |" for point in points
    ]
    return "\n".join([title, "", "| α | clean accuracy | robust accuracy |", "|---|---|---|", *rows, ""])
