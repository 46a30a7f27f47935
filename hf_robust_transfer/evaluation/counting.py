"""The figures of a report, counted from its predictions, and whether a report that was read has its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from math import isclose, isfinite
from typing import Any, NamedTuple

import numpy as np

from ..errors import UsageError
from ..run_folder import REPORT_NAME
from ..threat_model import ThreatModel
from .accuracy import Accuracy, Counted, accuracies, by_class, counted
from .named_attacks import named_kind, parse_attack
from .report import ClassResult, RobustnessReport, are_sides
from .self_checks import SelfCheck, comparisons

Array = np.ndarray[Any, Any]


class Figures(NamedTuple):
    """The accuracies of an evaluation; of each attack by its name, which has none of its own in a cascade."""

    clean: Accuracy
    worst_case: Accuracy
    attacks: dict[str, Counted | None]
    per_class: list[ClassResult]


def figures(truth: Array, clean: Array, attacked: Mapping[str, Array], labels: Sequence[str], *, cascade: bool) -> Figures:
    """Count the accuracies of an evaluation.

    Args:
        truth: the true classes, int (N,).
        clean: the predicted ones, int (N,).
        attacked: those under each attack, by its name.
        labels: the names of the classes.
        cascade: a sample that one attack fooled was not shown to the next, so that no attack has an accuracy of its own.

    Example:
        >>> few = np.array([0, 1, 1]), np.array([0, 1, 0]), {"fgsm": np.array([1, 1, 0])}
        >>> print(figures(*few, ["cat", "dog"], cascade=False).worst_case)
        33.3% (6.1% – 79.2%)
    """
    right = clean == truth
    robust = {name: right & (found == truth) for name, found in attacked.items()}
    everywhere = np.logical_and.reduce(list(robust.values()))
    present = np.unique(truth).tolist()
    of_class = {name: by_class(held, truth, present) for name, held in robust.items() if not cascade}
    rows = zip(present, by_class(right, truth, present), by_class(everywhere, truth, present), strict=True)
    return Figures(
        Accuracy.of(right),
        Accuracy.of(everywhere),
        {name: None if cascade else counted(right, held) for name, held in robust.items()},
        [
            ClassResult(
                labels[label],
                int((truth == label).sum()),
                clean_accuracy,
                worst_case,
                {name: values[row] for name, values in of_class.items()},
            )
            for row, (label, clean_accuracy, worst_case) in enumerate(rows)
        ],
    )


def check_report(report: RobustnessReport, labels: Sequence[str]) -> None:
    """Make sure that a report's figures are those of its own predictions, and its names those of its options.

    Args:
        report: one that was read.
        labels: the names of the model's classes.

    Raises:
        UsageError: something in it does not agree; the message says what.
    """
    for what, agrees in _PARTS.items():
        try:
            good = agrees(report, list(labels))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError):
            good = False  # what is not of the type that it must be agrees with nothing
        if not good:
            raise UsageError(
                f"{REPORT_NAME} does not agree with itself: {what}; evaluate again, with --overwrite_output_dir"
            )


def _predictions(report: RobustnessReport, labels: list[str]) -> bool:
    columns = [*report.predictions.values(), *report.self_check_predictions.values()]
    names = ["labels", "clean", *(attack.name for attack in report.attacks)]
    samples = report.data["samples"]
    return (
        sorted(report.predictions) == sorted(names)
        and samples == len(report.predictions["labels"]) > 0
        and all(len(column) == samples for column in report.predictions.values())
        and all(0 < len(column) <= samples for column in report.self_check_predictions.values())
        and all(type(each) is int and 0 <= each < len(labels) for column in columns for each in column)
    )


def _figures(report: RobustnessReport, labels: list[str]) -> bool:
    truth, clean, attacked = _arrays(report)
    found = figures(truth, clean, attacked, labels, cascade=report.settings["cascade"])
    told = {attack.name: (attack.accuracy, attack.success_rate) for attack in report.attacks}
    expected = {name: (None, None) if each is None else tuple(each) for name, each in found.attacks.items()}
    return (
        _same(report.clean, found.clean)
        and _same(report.worst_case, found.worst_case)
        and _same(told, expected)
        and _same(report.per_class, found.per_class)
    )


def _arrays(report: RobustnessReport) -> tuple[Array, Array, dict[str, Array]]:
    columns = {name: np.array(values) for name, values in report.predictions.items()}
    return columns.pop("labels"), columns.pop("clean"), columns


def _same(told: Any, found: Any) -> bool:
    """Whether two figures, or structures of them, are the same but for rounding."""
    if isinstance(found, Accuracy | ClassResult):
        return type(told) is type(found) and _same(asdict(told), asdict(found))
    if isinstance(found, dict):
        return told.keys() == found.keys() and all(_same(told[name], each) for name, each in found.items())
    if isinstance(found, list | tuple):
        return len(told) == len(found) and all(map(_same, told, found))
    return isclose(told, found, abs_tol=1e-9) if isinstance(found, float) else bool(told == found)


def _attacks(report: RobustnessReport, labels: list[str]) -> bool:
    """An attack of ours is named as it was run; one from elsewhere does not have the name or the kind of one of ours."""
    for attack in report.attacks:
        kind = named_kind(attack.name)
        if kind is None and named_kind(attack.kind) is not None:
            return False
        if kind is not None:
            meant = parse_attack(attack.name)
            if attack.kind != meant.kind or {**meant.options, **attack.options} != meant.options:
                return False
    return True


def _conditions(report: RobustnessReport, labels: list[str]) -> bool:
    threat, settings = report.threat_model, report.settings
    ThreatModel(threat["norm"], threat["eps"], tuple(threat["bounds"]))
    seconds = [report.timing["seconds"]["attacks"][attack.name] for attack in report.attacks]
    return (
        threat["bounds"] == [0, 1]
        and type(settings["seed"]) is int
        and type(settings["chunk_size"]) is int
        and type(settings["cascade"]) is bool
        and all(type(side) is int for side in report.model["input_shape"])
        and all(isfinite(each) for each in seconds)
    )


def _curve(report: RobustnessReport, labels: list[str]) -> bool:
    truth, clean, attacked = _arrays(report)
    for point in report.curve:
        count = round(point.accuracy.value * point.samples)
        if not 0 < point.samples <= len(truth) or not _same(point.accuracy, accuracies([count], [point.samples])[0]):
            return False
        known = clean if point.eps == 0 else None
        if point.eps == report.threat_model["eps"] and not report.settings["cascade"]:
            known = attacked.get("pgd-20")
        right = clean == truth
        if known is not None and count != int((right & (known == truth))[: point.samples].sum()):
            return False
    return True


def _self_checks(report: RobustnessReport, labels: list[str]) -> bool:
    """Those that compare attacks are as the predictions under them say; the others have none to be counted from."""
    if not report.self_check_predictions:
        return True
    truth, clean, attacked = _arrays(report)
    ran = {name: np.array(values) for name, values in report.self_check_predictions.items()}
    count = min(map(len, ran.values()))
    if not report.settings["cascade"]:
        for name in ran.keys() & attacked.keys():
            if (ran[name] != attacked[name][: len(ran[name])]).any():
                return False
    listed = np.logical_and.reduce([clean == truth, *(found == truth for found in attacked.values())])[:count]
    expected = comparisons({name: values[:count] == truth[:count] for name, values in ran.items()}, listed)
    told = {check.name: check for check in report.self_checks}
    return all(_agrees(told.get(check.name), check) for check in expected)


def _agrees(told: SelfCheck | None, found: SelfCheck) -> bool:
    return told is not None and told.passed is found.passed and isclose(told.figure, found.figure, abs_tol=1e-9)


_PARTS: dict[str, Callable[[RobustnessReport, list[str]], bool]] = {
    "its predictions are not one for each image, label and attack": _predictions,
    "its threat model, settings or times are none": _conditions,
    "the sides of its images are none": lambda report, _: (
        report.data.get("sides") is None or are_sides(report.data["sides"])
    ),
    "its accuracies or their intervals are not those of its predictions": _figures,
    "an attack's name is not that of its options": _attacks,
    "its curve has accuracies or intervals that no number of images gives": _curve,
    "its self-checks are not those of the predictions under their attacks": _self_checks,
}
