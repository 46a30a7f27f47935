"""What an experiment's runs found: collected into ``results.json``, as a table, as a figure."""

import json
from collections.abc import Sequence
from importlib.metadata import version
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from figures import FIGURES
from hf_robust_transfer.atomic import replacing
from hf_robust_transfer.evaluation.robustness import hardware
from hf_robust_transfer.run_folder import RECORD_NAME, REPORT_NAME
from hf_robust_transfer.sharing import shown
from plan import ARRAYS, CHECK, FEATURES, Inputs, Run

NOTES = "commands.json"
_CHECKED = "PGD-20 / AutoAttack"
_LIBRARIES = ("hf-robust-transfer", "torch", "transformers", "timm", "pyautoattack")


def read_notes(folder: Path) -> dict[str, Any]:
    """What was started in a folder: by the file that it leaves, its arguments, and its seconds once it is finished."""
    return json.loads((folder / NOTES).read_text()) if (folder / NOTES).is_file() else {}


def write_results(name: str, scale: str, runs: Sequence[Run], inputs: Inputs, folder: Path) -> None:
    """Write an experiment's ``results.json``, its table and its figure."""
    results = {
        "experiment": name,
        "scale": scale,
        "title": runs[0].title,
        "sources": {name: shown(source) for name, source in inputs.sources.items()},
        "data": {name: " ".join(map(shown, flags)) for name, flags in inputs.data.items()},
        "runs": [_figures(run) for run in runs],
        "versions": {library: version(library) for library in _LIBRARIES},
        "hardware": hardware(),
    }
    with replacing(folder / "results.json") as part:
        part.write_text(json.dumps(results, indent=1) + "\n")
    with replacing(folder / "results.md") as part:
        part.write_text(table(results))
    arrays = {run.axes["source"]: run.folder / ARRAYS for run in runs if (run.folder / ARRAYS).is_file()}
    FIGURES[name](results, folder / "figure.png", **({"arrays": arrays} if arrays else {}))
    print(f"{name}: results.json, results.md and figure.png are in {folder}", flush=True)


def _figures(run: Run) -> dict[str, Any]:
    seconds = sum(note["seconds"] for folder in (run.folder, run.folder / CHECK) for note in read_notes(folder).values())
    found: dict[str, Any] = {**run.axes, "seconds": round(seconds, 1)}
    inside = run.folder / FEATURES
    if inside.is_file():
        return {**found, **json.loads(inside.read_text())}
    report = json.loads((run.folder / REPORT_NAME).read_text())
    (attack,) = report["attacks"]
    found |= {
        "samples": report["data"]["samples"],
        "threat_model": report["threat_model"],
        "attack": attack["name"],
        "attack_seed": report["settings"]["seed"],
        "accuracy": report["clean"],
        "robust_accuracy": attack["accuracy"],
    }
    record = run.folder / RECORD_NAME
    if record.is_file():
        training = json.loads(record.read_text())
        found |= {"training_seconds": training["seconds"], "train_images": training["images"]["train"]}
        found |= {"training_seed": training["options"]["seed"], "command": training["command"]}
    checked = run.folder / CHECK / REPORT_NAME
    if checked.is_file():
        report = json.loads(checked.read_text())
        found["check"] = {
            "samples": report["data"]["samples"],
            "accuracy": report["clean"],
            **{attack["name"]: attack["accuracy"] for attack in report["attacks"]},
            "self_checks_passed": sum(check["passed"] for check in report["self_checks"]),
            "self_checks": len(report["self_checks"]),
            "warnings": [f"{check['name']}: {check['detail']}" for check in report["self_checks"] if not check["passed"]],
        }
    return found


def table(results: dict[str, Any]) -> str:
    """The figures as a Markdown table: in %, with 95 % intervals or, over several seeds, with standard deviations."""
    runs = results["runs"]
    if "shift" in runs[0]:
        heads = ["block", *(f"{run['source']} source" for run in runs)]
        rows = [[block, *(_share(run["shift"][block], "mean") for run in runs)] for block in runs[0]["shift"]]
        return _markdown(heads, rows)
    axes = list(runs[0])[: list(runs[0]).index("seconds")]
    if "seed" in axes:
        return _over_seeds(runs, [axis for axis in axes if axis != "seed"])
    rows = []
    for run in runs:
        row = [*(str(run[axis]) for axis in axes), _share(run["accuracy"]), _share(run["robust_accuracy"])]
        row.append(f"{run['training_seconds']:.0f}" if "training_seconds" in run else "")
        rows.append([*row, _checked(run)])
    return _markdown([*axes, "clean", "PGD-20", "training, s", _CHECKED], rows)


def _over_seeds(runs: Sequence[dict[str, Any]], axes: Sequence[str]) -> str:
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(tuple(str(run[axis]) for axis in axes), []).append(run)
    rows = []
    for place, group in groups.items():
        shares = [np.array([100 * run[key]["value"] for run in group]) for key in ("accuracy", "robust_accuracy")]
        cells = [f"{values.mean():.1f} ± {values.std(ddof=min(1, len(values) - 1)):.1f}" for values in shares]
        seconds = np.mean([run["training_seconds"] for run in group])
        checks = "; ".join(f"{_checked(run)}, seed {run['seed']}" for run in group if "check" in run)
        rows.append([*place, str(len(group)), *cells, f"{seconds:.0f}", checks])
    return _markdown([*axes, "seeds", "clean", "PGD-20", "training, s", _CHECKED], rows)


def _checked(run: dict[str, Any]) -> str:
    if "check" not in run:
        return ""
    check = run["check"]
    return f"{100 * check['pgd-20']['value']:.1f} / {_share(check['autoattack'])} of {check['samples']}"


def _share(value: dict[str, float], key: str = "value") -> str:
    return f"{100 * value[key]:.1f} ({100 * value['lower']:.1f} – {100 * value['upper']:.1f})"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of the columns that are not empty."""
    kept = [any(column) for column in zip(*rows, strict=True)]
    lines = (compress(row, kept) for row in [heads, ["---"] * len(heads), *rows])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
