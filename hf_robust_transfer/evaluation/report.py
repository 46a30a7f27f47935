"""The report of an evaluation: what was measured, on what, how and with what; as JSON and as Markdown.

Schema version 2 of ``robustness.json``; accuracies are shares in [0, 1], lengths in [0, 1] pixel units:

- ``schema_version``: 2; version 1 has no fingerprint, no ``options`` of its data and no ``pictures``.
- ``model``: ``name``, ``fingerprint`` (over all that predictions depend on), ``weights_sha256`` (over names, types, shapes
  and values of all parameters and buffers), ``fingerprint_parts`` (what the fingerprint is made of, where it is known),
  ``input_shape`` (C, H, W): the resolution at which ε applies, after resizing.
- ``data``: ``name``, ``split``, ``samples``, ``pixels_sha256``, over all images at the model's resolution, and ``options``,
  with which commands load them again; ``hub_id`` where the data set is one on the Hub; ``sides``, where they are known:
  the smallest and the largest side of an image before it was resized, and the median of the shorter ones, in pixels.
- ``threat_model``: ``norm``, ``eps``, ``bounds``.
- ``settings``: ``seed``, ``precision`` (attacks are crafted in it; success is judged in float32), ``chunk_size``,
  ``cascade``, ``surrogate``.
- ``clean``: an accuracy, that is ``value``, ``lower`` and ``upper`` (95 % Wilson interval) and ``correct`` samples.
- ``attacks``: for each its ``name``, ``kind``, ``options``, ``remarks`` and, but for a cascade, the robust ``accuracy``
  under this attack alone and the ``success_rate`` on the samples that are classified correctly, with their intervals.
- ``worst_case``: the robust accuracy over all attacks, sample by sample.
- ``per_class``: for each label its ``samples``, ``clean`` and ``worst_case`` accuracy and, but for a cascade,
  ``attacks``, the robust accuracy by attack.
- ``self_checks``: for each its ``name``, ``passed``, ``figure`` and ``detail``.
- ``self_check_predictions``: by the name of each of their attacks under the threat model, the predicted class of each of
  the first samples, which the self-checks looked at.
- ``curve``: PGD-20 against ε: for each ``eps`` the accuracy and ``samples``.
- ``predictions``: ``labels``, ``clean`` and by the attack's name the predicted class of each sample.
- ``pictures``: the sha256 of each picture beside it, by the file's name; others are not of this report.
- ``versions``, ``hardware``, and ``timing``: ``created`` (UTC), ``processes``, and ``seconds``, of this start as a
  whole and by attack (summed over processes and over starts, where an evaluation goes on from an earlier one). Only
  ``timing`` differs between an evaluation and its repetition, unless the model answers differently each time.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeGuard

import numpy as np

from ..atomic import replacing
from ..data.sizes import shrinkage
from ..errors import UsageError
from ..markdown import code, escaped
from ..run_folder import REPORT_NAME, REPORT_TEXT_NAME
from ..sharing import shareable
from .accuracy import Accuracy
from .self_checks import REPEATED, SelfCheck, listed_attacks

SCHEMA_VERSION = 2
_READABLE = (1, 2)
_UPPER_BOUNDS = "AutoAttack was not among the attacks: take the robust accuracies as upper bounds."
_UNREPEATABLE = "The model answers differently each time it is asked, so that a repetition gives other figures."


@dataclass(frozen=True)
class AttackResult:
    """One attack: how it was run, and (but for a cascade) what the model withstood of it alone."""

    name: str
    kind: str
    options: dict[str, Any]
    remarks: list[str]
    accuracy: Accuracy | None = None
    success_rate: Accuracy | None = None


@dataclass(frozen=True)
class ClassResult:
    """The accuracies on the samples of one label."""

    label: str
    samples: int
    clean: Accuracy
    worst_case: Accuracy
    attacks: dict[str, Accuracy]


@dataclass(frozen=True)
class CurvePoint:
    """The accuracy under PGD-20 at one ε."""

    eps: float
    samples: int
    accuracy: Accuracy


class Claim(NamedTuple):
    """The robust accuracy that may be claimed: the worst case over which attacks, on how many samples."""

    accuracy: Accuracy
    samples: int
    attacks: list[str]
    lowered: bool  # the self-checks' attacks count, too, since one fooled more than all that were listed


@dataclass(frozen=True)
class RobustnessReport:
    """All that `evaluate_robustness` measured; the module's docstring says what each field holds.

    Example:
        >>> report = RobustnessReport.load("outputs/mine")  # doctest: +SKIP
        >>> print(report.worst_case)  # doctest: +SKIP
        26.1% (21.9% – 30.8%)
    """

    model: dict[str, Any]
    data: dict[str, Any]
    threat_model: dict[str, Any]
    settings: dict[str, Any]
    clean: Accuracy
    attacks: list[AttackResult]
    worst_case: Accuracy
    per_class: list[ClassResult]
    self_checks: list[SelfCheck]
    curve: list[CurvePoint]
    predictions: dict[str, Any]
    versions: dict[str, str]
    hardware: str
    timing: dict[str, Any]
    pictures: dict[str, str] = field(default_factory=dict)
    self_check_predictions: dict[str, list[int]] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def warnings(self) -> list[str]:
        """The self-checks that failed, in words."""
        return [f"{check.name}: {check.detail}" for check in self.self_checks if not check.passed]

    @property
    def claim(self) -> Claim:
        """What may be claimed: the worst case over the attacks, or a lower figure that the self-checks found.

        Where an attack of the self-checks fools significantly more than all listed ones together, it is the worst case over
        these and those, on the samples that the self-checks looked at.
        """
        listed = [attack.name for attack in self.attacks]
        others = self.self_check_predictions
        samples = min(map(len, others.values()), default=0)
        labels = self.predictions["labels"][:samples]

        def held(predictions: list[int]) -> np.ndarray[Any, Any]:
            return np.equal(predictions[:samples], labels)

        together = np.logical_and.reduce([held(self.predictions[name]) for name in ("clean", *listed)])
        found = {name: held(predictions) for name, predictions in others.items()}
        if not samples or listed_attacks(together, found).passed:
            return Claim(self.worst_case, self.data["samples"], listed, False)
        worst_case = Accuracy.of(np.logical_and.reduce([together, *found.values()]))
        return Claim(worst_case, samples, list(dict.fromkeys([*listed, *others])), True)

    @property
    def claim_text(self) -> str:
        """What is to be said of a claim that is lower than the worst case; empty where it is not."""
        claim = self.claim
        if not claim.lowered:
            return ""
        return (
            f"The self-checks' attacks fooled significantly more than all listed ones: believe {claim.accuracy}, the worst"
            f" case over {', '.join(claim.attacks)} on the first {claim.samples} images."
        )

    @property
    def repeatable(self) -> bool:
        """Whether a repetition gives the same figures: not where the same images were seen to be answered differently."""
        return all(check.passed and check.figure == 0 for check in self.self_checks if check.name == REPEATED)

    @property
    def title(self) -> str:
        """The threat model in words, like ``linf ε = 8/255``."""
        return f"{self.threat_model['norm']} ε = {eps_text(self.threat_model['eps'])}"

    def with_pictures(self, folder: str | Path, *names: str) -> Self:
        """The report with the hashes of its pictures.

        Args:
            folder: where they were drawn.
            names: of their files; one that is not there was not drawn.
        """
        files = [Path(folder, name) for name in names]
        return replace(self, pictures={file.name: file_sha256(file) for file in files if file.is_file()})

    def save(self, folder: str | Path) -> None:
        """Write ``robustness.md`` and, when all else is done, ``robustness.json``.

        Args:
            folder: is made where it does not exist.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in {REPORT_TEXT_NAME: self.for_others().markdown(), REPORT_NAME: self.to_json()}.items():
            with replacing(folder / name) as part:
                part.write_text(text, encoding="utf-8")

    def to_json(self) -> str:
        """The content of ``robustness.json``, for others."""
        return _compact(asdict(self.for_others())) + "\n"

    def for_others(self) -> Self:
        """The report with its names and options without tokens and without the places of this machine."""
        return replace(self, model=shareable(self.model), data=shareable(self.data), settings=shareable(self.settings))

    @classmethod
    def load(cls, folder: str | Path) -> "RobustnessReport":
        """Read ``robustness.json`` of a folder.

        Raises:
            UsageError: there is none, it cannot be read, or it has another schema version.
        """
        file = Path(folder, REPORT_NAME)
        try:
            read = json.loads(file.read_text())
            if read["schema_version"] not in _READABLE:
                raise UsageError(
                    f"{file} has schema version {read['schema_version']}, this package reads"
                    f" {_READABLE[0]} to {SCHEMA_VERSION}"
                )
            return cls(
                **{
                    **read,
                    "clean": Accuracy(**read["clean"]),
                    "worst_case": Accuracy(**read["worst_case"]),
                    "attacks": [_read(AttackResult, each, "accuracy", "success_rate") for each in read["attacks"]],
                    "per_class": [
                        ClassResult(
                            **{
                                **each,
                                "clean": Accuracy(**each["clean"]),
                                "worst_case": Accuracy(**each["worst_case"]),
                                "attacks": {name: Accuracy(**value) for name, value in each["attacks"].items()},
                            }
                        )
                        for each in read["per_class"]
                    ],
                    "self_checks": [SelfCheck(**each) for each in read["self_checks"]],
                    "curve": [_read(CurvePoint, each, "accuracy") for each in read["curve"]],
                }
            )
        except OSError as error:
            raise UsageError(f"{file} cannot be read: {error}") from None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UsageError(f"{file} is no robustness report: {error}") from None

    def summary(self) -> str:
        """The accuracies and the self-checks in a few lines, for a terminal."""
        rows = [("clean", self.clean)]
        rows += [(attack.name, attack.accuracy) for attack in self.attacks if attack.accuracy is not None]
        rows.append(("worst case", self.worst_case))
        width = max(len(name) for name, _ in rows) + 2
        lines = [f"Accuracy on {self.data['samples']} images, {self.title} at {self._resolution}, with 95 % intervals"]
        lines += [f"  {name:<{width}}{accuracy}" for name, accuracy in rows]
        if self.self_checks:
            lines.append(f"{len(self.self_checks) - len(self.warnings)} of {len(self.self_checks)} self-checks passed")
        lines += [f"WARNING {warning}" for warning in self.warnings]
        lines += [f"{attack.name}: {remark}" for attack in self.attacks for remark in attack.remarks]
        lines += self.cautions
        return "\n".join(lines)

    @property
    def cautions(self) -> list[str]:
        """How far the figures are to be believed, in sentences: a lower claim, upper bounds, no repetition, tiny images."""
        upper_bounds = "" if self.has_autoattack else _UPPER_BOUNDS
        texts = (self.claim_text, upper_bounds, "" if self.repeatable else _UNREPEATABLE, self._of_tiny_images)
        return [text for text in texts if text]

    @property
    def _of_tiny_images(self) -> str:
        sides, shape = self.data.get("sides"), self.model["input_shape"]
        if not are_sides(sides) or [type(side) for side in shape] != [int] * 3:
            return ""
        shrunk = shrinkage(sides, *shape[1:])
        return "" if shrunk is None else f"The images were made {shrunk}: the figures are those of such tiny images."

    @property
    def _resolution(self) -> str:
        return "×".join(map(str, self.model["input_shape"]))

    @property
    def has_autoattack(self) -> bool:
        """Whether the whole of AutoAttack was among the attacks; without it, accuracies are upper bounds."""
        return any(attack.kind == "autoattack" for attack in self.attacks)

    def markdown(self) -> str:
        """The report for people: the figures, the warnings, how they were measured."""
        lines = [
            f"# Robustness of {escaped(self.model['name'])}",
            "",
            f"{self.data['samples']} images of {escaped(self.data['name'])} ({escaped(self.data['split'])} split),"
            f" {escaped(self.title)} on pixels in [0, 1], applied after resizing, at the model's resolution of"
            f" {self._resolution}. 95 % Wilson intervals in brackets.",
            "",
            *self._table_of_attacks(),
            "",
        ]
        for remark in self.cautions:
            lines += [escaped(remark), ""]
        lines += [f"- {escaped(attack.name)}: {escaped(remark)}" for attack in self.attacks for remark in attack.remarks]
        lines += ["", "## Self-checks", ""]
        if not self.self_checks:
            lines.append("None were run.")
        elif self.warnings:
            lines += ["**Warning: these figures may overstate robustness.**", ""]
        for check in self.self_checks:
            passed = "passed" if check.passed else "**warning**"
            lines.append(f"- {passed}, {escaped(check.name)}: {escaped(check.detail)}")
        lines += ["", "## By class", "", *self._table_of_classes()]
        if self.curve:
            lines += ["", "## Against ε (PGD-20)", "", "| ε | accuracy | images |", "|---|---|---|"]
            lines += [f"| {eps_text(point.eps)} | {point.accuracy} | {point.samples} |" for point in self.curve]
        return "\n".join([*lines, "", "## How it was measured", "", *self._conditions()]) + "\n"

    def _table_of_attacks(self) -> list[str]:
        seconds = self.timing["seconds"]["attacks"]
        lines = [
            "| attack | accuracy | fooled, of the correctly classified | seconds |",
            "|---|---|---|---|",
            f"| none (clean) | {self.clean} | | |",
        ]
        for attack in self.attacks:
            accuracy, success = (attack.accuracy or "in the cascade", attack.success_rate or "")
            lines.append(f"| {escaped(attack.name)} | {accuracy} | {success} | {seconds[attack.name]:.0f} |")
        spent = sum(seconds.values())  # also by earlier starts, which the whole's seconds do not count
        return [*lines, f"| **worst case, sample by sample** | **{self.worst_case}** | | {spent:.0f} |"]

    def _table_of_classes(self) -> list[str]:
        names = [attack.name for attack in self.attacks if attack.accuracy is not None]
        lines = [
            "| class | images | clean | " + "".join(f"{escaped(name)} | " for name in names) + "worst case |",
            "|---" * (4 + len(names)) + "|",
        ]
        for row in self.per_class:
            cells = [row.clean, *(row.attacks[name] for name in names), row.worst_case]
            values = " | ".join(f"{cell.value:.1%}" for cell in cells)
            lines.append(f"| {escaped(row.label)} | {row.samples} | {values} |")
        return lines

    def _conditions(self) -> list[str]:
        settings, timing = self.settings, self.timing
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return [
            f"Attacks were crafted in {escaped(settings['precision'])}; an image counts as fooled when it is misclassified"
            f" in float32 and lies in the threat model. Seed {settings['seed']}, chunks of {settings['chunk_size']} images"
            + (", as a cascade: an image that one attack fooled is not shown to the next." if settings["cascade"] else "."),
            "",
            *(f"- {escaped(f'{each.name}: {each.kind} {json.dumps(each.options)}')}" for each in self.attacks),
            "",
            f"Fingerprint of the model: {code(self.model.get('fingerprint'))}; weights (sha256):"
            f" {code(self.model['weights_sha256'])}; images at the model's resolution (sha256):"
            f" {code(self.data['pixels_sha256'])}. "
            + escaped(f"{timing['created']}, {self.hardware}, {timing['processes']} process(es); {versions}."),
        ]


def eps_text(eps: float) -> str:
    """A radius as people write it: in 255ths where it is a whole number of them, or below two of quarters; else decimal.

    Example:
        >>> eps_text(8 / 255), eps_text(0.5)
        ('8/255', '0.5')
    """
    parts = eps * 255 * (4 if eps * 255 < 2 else 1)
    if 0 < eps <= 64 / 255 and abs(parts - round(parts)) < 1e-6:
        return f"{eps * 255:.4g}/255"
    return f"{eps:.4g}"


def are_sides(value: Any) -> TypeGuard[list[float]]:
    """Whether a value that was read may stand for the ``sides`` of images."""
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(each) in (int, float) and 0 < each < 10**6 for each in value)
        and value[0] <= value[2] <= value[1]
    )


def file_sha256(file: Path) -> str:
    """The hash of a file's content."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _read(kind: type[Any], values: dict[str, Any], *accuracies: str) -> Any:
    read = {name: Accuracy(**values[name]) for name in accuracies if values[name] is not None}
    return kind(**{**values, **read})


def _compact(report: dict[str, Any]) -> str:
    """Indented JSON, but for the long lists of predictions, which take a line each."""
    long = {name: report[name] for name in ("self_check_predictions", "predictions")}
    text = json.dumps({**report, **dict.fromkeys(long)}, indent=2)
    for name, predictions in long.items():
        lines = ",\n    ".join(f"{json.dumps(key)}: {json.dumps(values)}" for key, values in predictions.items())
        text = text.replace(f'\n  "{name}": null', f'\n  "{name}": {{\n    {lines}\n  }}')
    return text
