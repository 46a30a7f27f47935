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
from pathlib import Path
from shlex import join, split

from tqdm.auto import tqdm

from hf_robust_transfer.cli.main import one_line_errors
from hf_robust_transfer.cli.parsing import parse_arguments
from hf_robust_transfer.errors import UsageError
from plan import EXPERIMENTS, MORE, SCALES, SOURCES, Command, Inputs, plan
from results import NOTES, read_notes, write_results


@dataclass
class ReproductionArguments:
    """What to repeat, at which size, and from which sources and data."""

    experiments: list[str] = field(
        default_factory=lambda: list(EXPERIMENTS),
        metadata={"help": f"Which: {', '.join(EXPERIMENTS)} (by default all of these), {' or '.join(MORE)}."},
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
    sure_source: str | None = field(
        default=None,
        metadata={"help": "For distillation, a teacher that is surer than it should be; by default one is trained first."},
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
        unknown = [name for name in self.experiments if name not in (*EXPERIMENTS, *MORE)]
        if unknown:
            raise UsageError(f"--experiments {' '.join(unknown)}: unknown, use {', '.join((*EXPERIMENTS, *MORE))}")
        if self.scale not in SCALES:
            raise UsageError(f"--scale {self.scale} is unknown: use {', '.join(SCALES)}")
        if self.jobs < 1:
            raise UsageError(f"--jobs {self.jobs} must be at least 1")


def main() -> None:
    """Parse, run what is not finished yet, write results and figures."""
    (args,) = parse_arguments(
        "recipes/reproduce/run.py",
        [ReproductionArguments],
        "Repeat the experiments of the robust-transfer paper. Each leaves results.json, results.md and figure.png in"
        " OUTPUT_DIR/SCALE/EXPERIMENT.",
        sys.argv[1:],
    )
    root = Path(args.output_dir, args.scale)
    given = {"robust": args.robust_source, "natural": args.natural_source}
    if "distillation" in args.experiments:
        given["sure"] = args.sure_source
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
    for command in (command for commands in todo.values() for command in commands):
        noted = read_notes(command.done.parent).get(command.done.name)
        if noted is not None and noted["argv"] != list(command.argv):
            raise UsageError(
                f"{command.done.parent} holds a run with other options: delete it, or choose another --output_dir"
            )
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
        raise UsageError(f"{command.argv[0]} ended with status {failed} ({last}): see {log}")
    note[command.done.name]["seconds"] = time.perf_counter() - began
    (folder / NOTES).write_text(json.dumps({**read_notes(folder), **note}))


def _started(command: Command, launcher: Sequence[str]) -> list[str]:
    return [*launcher, str(Path(__file__).resolve().parents[1] / command.argv[0]), *command.argv[1:]]


if __name__ == "__main__":
    with one_line_errors():
        main()
