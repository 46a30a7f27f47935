"""Repeat the experiments of the robust-transfer paper (Shafahi et al., ICLR 2020) on your sources and data.

    python recipes/reproduce/run.py --experiments lwf --scale tiny --robust_source outputs/robust \\
        --natural_source outputs/natural --source_data cifar10 --target_data my/images

Each run of an experiment is a command of a recipe that anyone can repeat by hand; ``--dry_run`` shows them. What is
finished is kept, so that a reproduction that was stopped goes on when it is started again.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from shlex import join, split
from typing import Any

from tqdm.auto import tqdm

from figures import FIGURES
from hf_robust_transfer.evaluation.report import shown
from hf_robust_transfer.evaluation.robustness import hardware
from hf_robust_transfer.files import replacing
from hf_robust_transfer.hub.training_record import RECORD_NAME
from hf_robust_transfer.running import parse_arguments, run_recipe
from plan import ARRAYS, CHECK, EXPERIMENTS, FEATURES, REPORT, SCALES, SOURCES, Command, Inputs, Run, plan

NOTES = "commands.json"
_LIBRARIES = ("hf-robust-transfer", "torch", "transformers", "timm", "pyautoattack")


@dataclass
class ReproductionArguments:
    """What to repeat, at which size, and from which sources and data."""

    experiments: list[str] = field(
        default_factory=lambda: list(EXPERIMENTS), metadata={"help": f"Which: {', '.join(EXPERIMENTS)}; by default all."}
    )
    scale: str = field(
        default="tiny",
        metadata={
            "help": "tiny (each in half an hour at most on 2 cores), small (hours on 2 cores; checks headline figures with"
            " AutoAttack) or paper (the paper's own size, on GPUs)."
        },
    )
    robust_source: str | None = field(
        default=None,
        metadata={"help": "A robust checkpoint, folder or Hub id; by default one is trained first."},
    )
    natural_source: str | None = field(
        default=None, metadata={"help": "A naturally trained one of the same architecture; by default likewise."}
    )
    source_data: str = field(
        default="uoft-cs/cifar10 --image_column_name img",
        metadata={"help": "The sources' data: a Hub name or a folder, and after it more flags of recipes/finetune.py."},
    )
    target_data: str | None = field(default=None, metadata={"help": "The data to transfer to, likewise."})
    output_dir: str = field(default="outputs/reproduce", metadata={"help": "Where runs, results and figures go."})
    launcher: str = field(
        default=sys.executable,
        metadata={
            "help": "How to start a recipe, like 'accelerate launch --config_file recipes/configs/multi_gpu.yaml'; by"
            " default with this Python, in one process."
        },
    )
    jobs: int = field(default=1, metadata={"help": "How many runs to have side by side."})
    dry_run: bool = field(default=False, metadata={"help": "Show the commands, and run none."})

    def __post_init__(self) -> None:
        unknown = [name for name in self.experiments if name not in EXPERIMENTS]
        if unknown:
            raise ValueError(f"--experiments {' '.join(unknown)}: unknown, use {', '.join(EXPERIMENTS)}")
        if self.scale not in SCALES:
            raise ValueError(f"--scale {self.scale} is unknown: use {', '.join(SCALES)}")
        if self.jobs < 1:
            raise ValueError(f"--jobs {self.jobs} must be at least 1")


def main() -> None:
    """Parse, run what is not finished yet, write results and figures."""
    (args,) = parse_arguments(
        [ReproductionArguments],
        "Repeat the experiments of the robust-transfer paper. Each leaves results.json, results.md and figure.png in"
        " OUTPUT_DIR/SCALE/EXPERIMENT.",
    )
    root = Path(args.output_dir, args.scale)
    given = {"robust": args.robust_source, "natural": args.natural_source}
    missing = [name for name, source in given.items() if source is None]
    inputs = Inputs(
        sources={name: source or str(root / SOURCES / name) for name, source in given.items()},
        data={"source": split(args.source_data), "target": split(args.target_data or "")},
    )
    names = ([SOURCES] if missing else []) + args.experiments
    planned = {name: plan(name, args.scale, inputs, root / name) for name in names}
    if missing:
        planned[SOURCES] = [run for run in planned[SOURCES] if run.axes["source"] in missing]
    if args.dry_run:
        for run in [run for runs in planned.values() for run in runs]:
            for command in (*run.commands, *run.checks):
                print(join(_started(command, split(args.launcher))))
        return
    launcher = split(args.launcher)
    for name, runs in planned.items():
        carry_out(name, {run.folder: run.commands for run in runs}, launcher, args.jobs)
        if name != SOURCES:
            write_results(name, args.scale, runs, inputs, root / name)
    for name, runs in planned.items():
        checks = {run.folder: run.checks for run in runs if run.checks}
        if checks:
            carry_out(f"{name}: AutoAttack", checks, launcher, args.jobs)
            write_results(name, args.scale, runs, inputs, root / name)


def carry_out(title: str, todo: Mapping[Path, Sequence[Command]], launcher: Sequence[str], jobs: int) -> None:
    """Run what is not finished of the commands of each folder, one after the other, several folders side by side.

    Raises:
        ValueError: a folder holds a run with other options, or a command failed; the error names the log.
    """
    for folder, commands in todo.items():
        noted = read_notes(folder)
        for command in commands:
            if command.done.name in noted and noted[command.done.name]["argv"] != list(command.argv):
                raise ValueError(f"{folder} holds a run with other options: delete it, or choose another --output_dir")
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), **os.environ}
    with tqdm(total=len(todo), desc=title, unit="run") as bar, ThreadPoolExecutor(jobs) as pool:

        def carry_out_one(commands: Sequence[Command]) -> None:
            for command in commands:
                if not command.done.is_file():
                    _start(command, launcher, environment)
            bar.update()

        waiting = [pool.submit(carry_out_one, commands) for commands in todo.values()]
        try:
            for each in waiting:
                each.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _start(command: Command, launcher: Sequence[str], environment: dict[str, str]) -> None:
    folder = command.done.parent
    folder.mkdir(parents=True, exist_ok=True)
    note = {command.done.name: {"argv": list(command.argv), "seconds": 0.0}}
    (folder / NOTES).write_text(json.dumps({**read_notes(folder), **note}))
    argv, log, began = _started(command, launcher), folder / "log.txt", time.perf_counter()
    with log.open("a") as output:
        print(join(argv), file=output, flush=True)
        failed = subprocess.run(argv, stdout=output, stderr=subprocess.STDOUT, env=environment).returncode
    if failed:
        last = log.read_text(errors="replace").strip().splitlines()[-1]
        raise ValueError(f"{command.argv[0]} ended with status {failed} ({last}): see {log}")
    note[command.done.name]["seconds"] = time.perf_counter() - began
    (folder / NOTES).write_text(json.dumps({**read_notes(folder), **note}))


def read_notes(folder: Path) -> dict[str, Any]:
    """What was started in a folder: by the file that it leaves, its arguments, and its seconds once it is finished."""
    return json.loads((folder / NOTES).read_text()) if (folder / NOTES).is_file() else {}


def _started(command: Command, launcher: Sequence[str]) -> list[str]:
    return [*launcher, str(Path(__file__).resolve().parents[1] / command.argv[0]), *command.argv[1:]]


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
    report = json.loads((run.folder / REPORT).read_text())
    (attack,) = report["attacks"]
    found |= {
        "samples": report["data"]["samples"],
        "threat_model": report["threat_model"],
        "attack": attack["name"],
        "seed": report["settings"]["seed"],
        "accuracy": report["clean"],
        "robust_accuracy": attack["accuracy"],
    }
    record = run.folder / RECORD_NAME
    if record.is_file():
        training = json.loads(record.read_text())
        found |= {"training_seconds": training["seconds"], "train_images": training["images"]["train"]}
        found["command"] = training["command"]
    checked = run.folder / CHECK / REPORT
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
    """The figures as a Markdown table: accuracies in % with 95 % intervals."""
    runs = results["runs"]
    if "shift" in runs[0]:
        heads = ["block", *(f"{run['source']} source" for run in runs)]
        rows = [[block, *(_share(run["shift"][block], "mean") for run in runs)] for block in runs[0]["shift"]]
        return _markdown(heads, rows)
    axes = list(runs[0])[: list(runs[0]).index("seconds")]
    heads = [*axes, "images", "clean", "PGD-20", "training, s"]
    checked = any("check" in run for run in runs)
    heads += ["PGD-20 / AutoAttack on fewer images"] if checked else []
    rows = []
    for run in runs:
        row = [str(run[axis]) for axis in axes]
        row += [str(run["samples"]), _share(run["accuracy"]), _share(run["robust_accuracy"])]
        row.append(f"{run['training_seconds']:.0f}" if "training_seconds" in run else "")
        if checked:
            row.append(_checked(run["check"]) if "check" in run else "")
        rows.append(row)
    return _markdown(heads, rows)


def _checked(check: dict[str, Any]) -> str:
    return f"{100 * check['pgd-20']['value']:.1f} / {_share(check['autoattack'])} of {check['samples']}"


def _share(value: dict[str, float], key: str = "value") -> str:
    return f"{100 * value[key]:.1f} ({100 * value['lower']:.1f} – {100 * value['upper']:.1f})"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows]) + "\n"


if __name__ == "__main__":
    run_recipe(main)
