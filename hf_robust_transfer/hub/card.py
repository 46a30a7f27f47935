"""The model card: what a checkpoint folder knows of itself, through one template. It claims only what was measured."""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment
from markupsafe import Markup
from PIL import Image
from transformers.utils import logging

from ..data import to_pixels
from ..errors import UsageError, listed
from ..evaluation import RobustnessReport
from ..evaluation.accuracy import Accuracy
from ..evaluation.counting import check_report
from ..evaluation.report import eps_text, file_sha256
from ..markdown import code_block, escaped, one_line
from ..modeling import PixelClassifier, load_model
from ..modeling.fingerprint import fingerprint, fingerprint_parts
from ..provenance import Adapted, Origin, Provenance, TrainedFor
from ..run_folder import CURVE_NAME, EXAMPLES_NAME, RECORD_NAME, REPORT_NAME
from ..sharing import shown
from .access import checked_repo_id
from .exporting import exports_of, how_to_run
from .origin import describe_origin, license_of
from .timm_layout import is_own

logger = logging.get_logger(__name__)
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
_PICTURES = (("Accuracy against ε", CURVE_NAME), ("Clean images, perturbations and adversarial images", EXAMPLES_NAME))
_LOCAL = "imagefolder"  # what `datasets` calls images that are on no Hub


@dataclass(frozen=True)
class CheckpointFacts:
    """All that a card is made from.

    Args:
        architecture: timm's name of it, None for an architecture of `transformers`.
        model_class: the `transformers` class.
        labels: the labels' names.
        input_shape: (C, H, W) of the images that the model sees.
        fingerprint_parts: of the model as the folder gives it.
        report: what was measured of this very model, if it was.
        training: the record of the training that this very model came from, if there is one.
        pictures: of the report, a title and a file name each.
        exports: the names of the files that this very model was exported to.
        adapted: what the adapter of peft was trained with that is merged into the model, if one is.
        origin: the robust source that the model comes from, if its configuration says so.
    """

    architecture: str | None
    model_class: str
    labels: list[str]
    input_shape: tuple[int, ...]
    fingerprint_parts: dict[str, str]
    report: RobustnessReport | None
    training: dict[str, Any] | None
    pictures: list[tuple[str, str]]
    exports: list[str] = field(default_factory=list)
    adapted: Adapted | None = None
    origin: Origin | None = None

    @property
    def needs_package(self) -> bool:
        """Whether the architecture is this package's own."""
        return self.architecture is not None and is_own(self.architecture)


def read_facts(folder: str | Path) -> CheckpointFacts:
    """Collect the facts from a checkpoint folder.

    A report or a training record counts only if its fingerprint is that of the model in the folder, a picture only if it
    is the one that the report was saved with; its curve can be drawn anew.

    Args:
        folder: holds a checkpoint, and what training and evaluation left beside it.

    Raises:
        UsageError: there is no checkpoint that can be loaded, or its report does not agree with itself.
    """
    folder = Path(folder)
    model, processor = load_model(str(folder))
    identity, parts = fingerprint(model, processor), fingerprint_parts(model, processor)
    report = _evidence(folder / REPORT_NAME, lambda file: RobustnessReport.load(file.parent))
    if report is not None and report.model.get("fingerprint") != identity:
        noted = report.model.get("fingerprint_parts") or {"weights": report.model.get("weights_sha256")}
        logger.warning(f"{folder / REPORT_NAME} does not count: it is of a model with {difference(noted, parts)}")
        report = None
    labels = PixelClassifier(model, processor).labels
    if report is not None:
        check_report(report, labels)
    training = _evidence(folder / RECORD_NAME, _record)
    if training is not None and training.get("fingerprint") != identity:
        noted = training.get("fingerprint_parts") or {}
        logger.warning(f"{folder / RECORD_NAME} does not count: it is of a model with {difference(noted, parts)}")
        training = None
    of_report = {} if report is None else report.pictures
    trained_for = TrainedFor.of(model.config)
    adapter = trained_for.adapter
    return CheckpointFacts(
        architecture=getattr(model.config, "architecture", None) if model.config.model_type == "timm_wrapper" else None,
        model_class=type(model).__name__,
        labels=labels,
        input_shape=tuple(to_pixels(processor)(Image.new("RGB", (256, 256))).shape),
        fingerprint_parts=parts,
        report=report,
        training=training,
        pictures=[
            (title, name)
            for title, name in _PICTURES
            if (report is not None and report.curve if name == CURVE_NAME else _is(folder / name, of_report.get(name)))
        ],
        exports=exports_of(folder, identity),
        adapted=None if adapter is None else Adapted.from_dict(adapter),
        origin=trained_for.origin,
    )


def difference(noted: Mapping[str, str | None], parts: Mapping[str, str]) -> str:
    """What one model differs in from another, by the parts of their fingerprints as `fingerprint_parts` gives them.

    Args:
        noted: of the one, all parts or some.
        parts: of the other.

    Example:
        >>> difference({"weights": "a", "labels": "b"}, {"weights": "a", "labels": "c"})
        'other labels'
    """
    differing = [name for name, value in noted.items() if parts.get(name) != value]
    unknown = [name for name in parts if name not in noted]
    return f"other {' and '.join(differing)}" if differing else f"another {' or '.join(unknown) or 'fingerprint'}"


def _record(file: Path) -> dict[str, Any]:
    """A training's record, made sure that what is in it is of the types that a record has."""
    content: dict[str, Any] = json.loads(file.read_text())
    return Provenance().to_dict() | content | Provenance.from_dict(content).to_dict()


def _is(file: Path, sha256: str | None) -> bool:
    return sha256 is not None and file.is_file() and file_sha256(file) == sha256


def _evidence(file: Path, read: Callable[[Path], Any]) -> Any:
    """What a file says, or None for one that is not there, or cannot be read and so says nothing."""
    if not file.is_file():
        return None
    try:
        return read(file)
    except ValueError as error:
        logger.warning(f"{file} does not count: {error}")
        return None


def model_card(facts: CheckpointFacts, repo_id: str, *, license: str | None = None) -> ModelCard:
    """Render the card of a checkpoint.

    Args:
        facts: from `read_facts`.
        repo_id: where the model is to be published.
        license: of the weights, as a Hub identifier such as ``apache-2.0``; by default that of the robust source that they
            come from.

    Raises:
        UsageError: the licence of that source forbids this one.

    Example:
        >>> model_card(read_facts("outputs/mine"), "you/mine").save("README.md")  # doctest: +SKIP
    """
    name = checked_repo_id(repo_id).split("/")[-1]
    training, report, origin = facts.training or {}, facts.report, facts.origin
    base_model = training.get("base_model") or (None if facts.adapted is None else facts.adapted.base_model)
    dataset = training.get("data", {}).get("dataset_name")
    license = license_of(license, origin)
    source = None if origin is None else origin.model_id
    data = ModelCardData(
        model_name=None if report is None else name,
        eval_results=None if report is None else evaluation_results(report),
        base_model=_hub_id(training.get("base_model_id"), known=True) or _hub_id(base_model) or _hub_id(source, known=True),
        datasets=_hub_id(training.get("dataset_id"), known=True) or _hub_id(dataset),
        license=None if license is None else one_line(license),
        library_name="timm" if facts.architecture is not None and not facts.needs_package else "transformers",
        pipeline_tag="image-classification",
        tags=["adversarial-robustness", "image-classification", "hf-robust-transfer"]
        + (["timm"] if facts.architecture is not None else []),
    )
    options, command = training.get("options", {}), training.get("command")
    # Whatever the template shows was written elsewhere, and does nothing but show; what is marked is of this module.
    environment = Environment(finalize=lambda value: value if isinstance(value, Markup) else escaped(value))
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        card_data=Markup(data.to_yaml()),
        name=name,
        repo_id=Markup(repo_id),
        facts=facts,
        pictures=[(title, Markup(picture)) for title, picture in facts.pictures],
        exports=[Markup(code_block(how_to_run(file, repo_id, facts.input_shape), "python")) for file in facts.exports],
        report=report,
        data_name=None if report is None else shown(report.data["name"]),
        training=facts.training,
        options=[(option, value) for option, value in options.items() if value is not None],
        summary=_summary(facts),
        how=_between(training.get("interpolated")) or _how(training),
        adapted=None if facts.adapted is None else _adapted(facts.adapted),
        origin=None if origin is None else describe_origin(origin),
        resolution="×".join(map(str, facts.input_shape)),
        evaluation_command=None if report is None else Markup(code_block(evaluation_command(report, repo_id), "bash")),
        training_command=None if command is None else Markup(code_block(command, "bash")),
    )
    return ModelCard(text)


def evaluation_results(report: RobustnessReport) -> list[EvalResult]:
    """The report's accuracies as entries of a card's ``model-index``: clean, under each attack, and the worst case."""
    common = {"seed": report.settings["seed"], "samples": report.data["samples"]}
    threat = {"norm": report.threat_model["norm"], "eps": report.threat_model["eps"]}
    measured: list[tuple[str, str, Accuracy, dict[str, Any]]] = [("accuracy", "Accuracy", report.clean, common)]
    for attack in report.attacks:
        if attack.accuracy is not None:
            args = {**threat, "attack": attack.name, "options": attack.options, **common}
            measured.append(("robust_accuracy", f"Robust accuracy ({attack.name})", attack.accuracy, args))
    claim = report.claim
    worst = {**threat, "attack": claim.attacks, **common, "samples": claim.samples}
    measured.append(("robust_accuracy", "Robust accuracy (worst case)", claim.accuracy, worst))
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=_hub_id(report.data.get("hub_id"), known=True) or _hub_id(report.data["name"]) or _LOCAL,
            dataset_name=one_line(shown(report.data["name"])),
            dataset_split=one_line(report.data["split"]),
            metric_type=metric,
            metric_name=name,
            metric_value=accuracy.value,
            metric_args={**args, "lower": accuracy.lower, "upper": accuracy.upper},
        )
        for metric, name, accuracy, args in measured
    ]


def evaluation_command(report: RobustnessReport, repo_id: str) -> str:
    """The command that measures the report's figures again on the published model.

    Local folders are named without the place where they lay.
    """
    settings, threat = report.settings, report.threat_model
    flags = {
        "model_name_or_path": repo_id,
        **(report.data.get("options") or {"dataset_name": report.data["name"]}),
        "split": report.data["split"],
        "max_eval_samples": report.data["samples"],
        "norm": threat["norm"],
        "eps": eps_text(threat["eps"]),
        "surrogate": settings.get("surrogate"),
        "seed": settings["seed"],
        "chunk_size": settings["chunk_size"],
        "precision": settings["precision"],
        "self_check_samples": report.claim.samples if report.claim.lowered else None,
        "attacks": [attack.name for attack in report.attacks],
    }
    words = [
        word
        for name, value in flags.items()
        if value is not None
        for word in (f"--{name}", *(map(str, value) if isinstance(value, list | tuple) else [str(value)]))
    ]
    words += ["--cascade"] if settings["cascade"] else []
    return shlex.join(["accelerate", "launch", "-m", "hf_robust_transfer.cli.evaluate", *words])


def _summary(facts: CheckpointFacts) -> str:
    kind = facts.architecture.partition(".")[0] if facts.architecture is not None else facts.model_class
    first = f"An image classifier ({kind}) for {len(facts.labels)} classes."
    if facts.report is None:
        return f"{first} Its adversarial robustness was not measured."
    report = facts.report
    claim = report.claim
    where = f", on the first {claim.samples} of them: more than the listed attacks found" if claim.lowered else ""
    return (
        f"{first} On {report.data['samples']} images of {shown(report.data['name'])} it has a clean accuracy of"
        f" {report.clean.value:.1%} and, under {report.title}, a robust accuracy of {claim.accuracy.value:.1%}"
        f" (worst case of {', '.join(claim.attacks)}{where})."
    )


def _how(training: Mapping[str, Any]) -> str:
    options, teacher, base_model = training.get("options", {}), training.get("teacher"), training.get("base_model")
    dataset = training.get("data", {}).get("dataset_name")
    objective = options.get("objective", "natural")
    method = "natural training" if objective == "natural" else f"adversarial training ({objective})"
    method = f"adversarial distillation ({objective})" if teacher else method
    parts = [f"With {method}" + (f" on {dataset}" if dataset else "")]
    if base_model:
        parts.append(f"starting from {base_model}")
    if options.get("freeze", "none") != "none":
        frozen = options["freeze"]
        parts.append("its backbone frozen" if frozen == "backbone" else f"its first {frozen} blocks frozen")
    if options.get("lwf_weight"):
        parts.append(f"its features kept close to the source's (LwF, λ_d = {options['lwf_weight']:g})")
    return ", ".join(parts) + "." + (_taught(teacher, options) if teacher else "")


def _taught(teacher: dict[str, Any], options: dict[str, Any]) -> str:
    name = teacher.get("id") or teacher.get("name") or "given from Python"
    return (
        f" Its teacher ({name}; weights' sha256 {teacher['sha256'][:16]}…) classifies {teacher['clean']:.1%} of"
        f" {teacher['images']} validation images correctly, and {teacher['robust']:.1%} under PGD-{teacher['steps']} at"
        f" {options.get('norm', 'linf')}, ε = {options.get('eps')}."
    )


def _between(interpolated: dict[str, Any] | None) -> str | None:
    if not interpolated:
        return None
    one, other = (model["name"] for model in interpolated["models"])
    alpha = interpolated["alpha"]
    return f"By interpolation: its weights are {1 - alpha:g} of those of {one} and {alpha:g} of those of {other}."


def _adapted(adapted: Adapted) -> str:
    rank = "" if adapted.rank is None else f" of rank {adapted.rank}"
    whole = f", and {listed(adapted.whole)} trained whole" if adapted.whole else ""
    base = f" of {adapted.base_model}" if adapted.base_model else ""
    return (
        f"An adapter (peft's {adapted.method}{rank}) on the layers {listed(adapted.targets)}{base}{whole}, merged into the"
        f" weights afterwards: {adapted.trained:,} of {adapted.parameters:,} parameters were trained."
    )


def _hub_id(name: str | None, *, known: bool = False) -> str | None:
    """A name that is known to be a Hub id or looks like one; a local folder's, which metadata must not hold, has no
    slash.
    """
    try:
        return checked_repo_id(name) if name is not None and (known or "/" in name) else None
    except UsageError:
        return None
