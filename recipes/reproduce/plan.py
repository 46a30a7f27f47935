"""From an experiment's configuration to the commands of its runs."""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.modeling.attack_copy import choose_precision
from hf_robust_transfer.run_folder import REPORT_NAME, RESULTS_NAME

EXPERIMENTS = ("freezing", "features", "heads", "few_images", "lwf", "same_task")  # the paper's
MORE = ("presets", "distillation")  # of what follows it
SOURCES = "sources"
SCALES = ("tiny", "small", "paper")
FEATURES, ARRAYS = "features.json", "features.npz"
CHECK = "autoattack"
# How the points that a configuration lists under ``check`` are evaluated besides, by scale.
_CHECK_FLAGS: dict[str, dict[str, Any]] = {
    "small": {"max_eval_samples": 200, "self_check_samples": 50},
    "paper": {"max_eval_samples": 1000, "self_check_samples": 100},
}
_HERE = Path(__file__).resolve().parent
# Keys of a configuration's options that are no flags: what they stand for depends on the inputs.
_OWN = ("recipe", "source", "teacher", "data")


class Inputs(NamedTuple):
    """What experiments start from: checkpoints by ``robust``, ``natural`` and ``sure`` (a teacher surer than it should be);
    data flags by ``source`` and ``target``.
    """

    sources: dict[str, str]
    data: dict[str, list[str]]


class Command(NamedTuple):
    """A recipe, by its path in ``recipes/``, with its flags, and the file that it leaves when it is done."""

    argv: tuple[str, ...]
    done: Path


class Run(NamedTuple):
    """One point of an experiment's grid: where it stands on the axes, its folder, and what to run one after the other.

    ``checks`` can wait until all runs of all experiments are there.
    """

    title: str
    axes: dict[str, Any]
    folder: Path
    commands: list[Command]
    checks: list[Command]


def plan(experiment: str, scale: str, inputs: Inputs, folder: Path) -> list[Run]:
    """The runs of an experiment at a scale: every combination of the values on its axes.

    A configuration has a ``title``, ``options`` and ``evaluation`` (flags of the training and of the evaluation recipe),
    ``axes``, and under ``scales`` what differs. An axis is a list of values of the option that it is named after, or maps
    names to options. An option of null stays at its default, as does ``bf16`` on hardware that only emulates it. Four
    options are no flags: ``recipe`` (by default finetune.py; null trains nothing), ``source``, ``teacher`` (which of the
    checkpoints the model starts from, and learns from), and ``data``. ``check`` lists
    points, by their values on some axes, that all scales but tiny also evaluate with AutoAttack and the self-checks.

    Args:
        experiment: the name of a file in ``experiments/``.
        scale: one of `SCALES`.
        inputs: the sources and the data.
        folder: where each run gets a folder of its own.

    Raises:
        ValueError: the experiment needs data that is not given.
    """
    config = yaml.safe_load((_HERE / "experiments" / f"{experiment}.yaml").read_text())
    differing = config["scales"][scale]
    axes = {**config["axes"], **differing.get("axes", {})}
    runs = []
    for values in product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        options: dict[str, Any] = {**config.get("options", {}), **differing.get("options", {})}
        for axis, value in chosen.items():
            options |= axes[axis][value] if isinstance(axes[axis], dict) else {axis: value}
        evaluation = {**config.get("evaluation", {}), **differing.get("evaluation", {})}
        run_folder = folder / "-".join(str(value).replace(" ", "_") for value in values)
        commands, given = _training(options, inputs, run_folder)
        recipe, leaves = (evaluation.pop("recipe"), FEATURES) if "recipe" in evaluation else ("evaluate.py", REPORT_NAME)
        commands.append(_command(recipe, {**given, **evaluation}, run_folder, leaves))
        checks = []
        if scale in _CHECK_FLAGS and any(point.items() <= chosen.items() for point in config.get("check", [])):
            flags = {**given, **evaluation, "attacks": ["pgd-20", "autoattack"], **_CHECK_FLAGS[scale], "curve_samples": 0}
            checks.append(_command("evaluate.py", flags, run_folder / CHECK, REPORT_NAME))
        runs.append(Run(config["title"], chosen, run_folder, commands, checks))
    return runs


def _training(options: dict[str, Any], inputs: Inputs, folder: Path) -> tuple[list[Command], dict[str, Any]]:
    """The command that trains, if any, and what to tell the evaluation of the model."""
    where, recipe = options.get("data", "target"), options.get("recipe", "finetune.py")
    if not inputs.data[where]:
        raise UsageError(f"--{where}_data is missing: a Hub name or a folder of images")
    model = {"model_name_or_path": inputs.sources[options["source"]]} if "source" in options else {}
    given: dict[str, Any] = {**model, "dataset_name": inputs.data[where]}
    if options.get("teacher") is not None:
        options = {**options, "teacher_name_or_path": inputs.sources[options["teacher"]]}
    if recipe is None:
        return [], given
    flags = {name: value for name, value in options.items() if name not in _OWN and value is not None}
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if choose_precision("auto", device) != "bf16":
        flags.pop("bf16", None)  # emulated, a network took four times as long as in float32
    return [_command(recipe, {**given, **flags}, folder, RESULTS_NAME)], {"model_name_or_path": folder}


def _command(recipe: str, flags: dict[str, Any], output_dir: Path, leaves: str) -> Command:
    argv = [recipe]
    for name, value in {**flags, "output_dir": output_dir}.items():
        values: Sequence[Any] = value if isinstance(value, list) else [value]
        argv += [f"--{name}", *(json.dumps(each) if isinstance(each, dict) else str(each) for each in values)]
    return Command(tuple(argv), output_dir / leaves)
