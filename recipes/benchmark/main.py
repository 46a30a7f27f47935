"""The command: its lines, the table, the file."""

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from hf_robust_transfer.atomic import replacing
from hf_robust_transfer.cli.main import one_line_errors
from hf_robust_transfer.cli.parsing import parse_arguments
from hf_robust_transfer.data import DataArguments
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.evaluation.robustness import hardware
from recipes.benchmark.attacking import pgd_all_steps
from recipes.benchmark.evaluating import autoattack, evaluation
from recipes.benchmark.measuring import ceiling
from recipes.benchmark.resources import import_time, memory
from recipes.benchmark.setting import PEERS, BenchmarkArguments, Setting
from recipes.benchmark.training import frozen_transfer, lwf_step, training_step, training_throughput

_LIBRARIES = ("hf-robust-transfer", "torch", "transformers", "timm", "pyautoattack", *PEERS)


ROWS: dict[str, Callable[[Setting], Any]] = {
    "pgd_low": lambda setting: pgd_all_steps(setting, setting.low),
    "pgd_float32": lambda setting: pgd_all_steps(setting, "float32"),
    "evaluation": lambda setting: evaluation(setting, setting.robust, "robust", ">= 6"),
    "evaluation_natural": lambda setting: evaluation(setting, setting.natural, "natural", ">= 40"),
    "autoattack": autoattack,
    "training_step": training_step,
    "training_throughput": training_throughput,
    "lwf_step": lwf_step,
    "frozen_transfer": frozen_transfer,
    "import": import_time,
    "memory": memory,
}


def chosen_rows(args: BenchmarkArguments) -> list[str]:
    """The lines to measure, and a word on each that is left out."""
    left_out = {"autoattack": "--quick"} if args.quick else {}
    if args.natural_model_name_or_path is None:
        left_out["evaluation_natural"] = "no --natural_model_name_or_path"
    if args.transfer_dataset_name is None:
        left_out["frozen_transfer"] = "no --transfer_dataset_name"
    if not torch.cuda.is_available() and args.rows is None:
        left_out["training_throughput"] = "no GPU"
    rows = args.rows or list(ROWS)
    for name in rows:
        if name in left_out:
            print(f"{name} is left out: {left_out[name]}")
    return [name for name in rows if name not in left_out]


def table(rows: list[dict[str, Any]]) -> str:
    """The lines as text."""
    lines = [f"{'':<66} {'ratio':>7} {'target':>8}   {'ours':>8} {'peer':>8}"]
    for each in rows:
        mark = "" if each["met"] else "  missed"
        figures = f"{each['ratio']:7.3g} {each['target']:>8}   {each['ours']:8.3g} {each['peer']:8.3g}"
        lines.append(f"{each['name']:<66} {figures} {each['unit']} ({each['peer_name']}){mark}")
    return "\n".join(lines)


def main() -> None:
    """Parse, measure line by line, print and write; what a user may read is one line."""
    with one_line_errors():
        run()


def run() -> None:
    """Parse, measure line by line, print and write."""
    args, data = parse_arguments(
        "recipes/benchmark.py",
        [BenchmarkArguments, DataArguments],
        f"Measure this package beside others. The lines of the table: {', '.join(ROWS)}.",
        sys.argv[1:],
    )
    unknown = set(args.rows or ()) - set(ROWS)
    if unknown:
        raise UsageError(f"--rows {' '.join(sorted(unknown))}: there is no such line, only {', '.join(ROWS)}")
    if args.model_name_or_path is None or data.dataset_name is None:
        raise UsageError("--model_name_or_path and --dataset_name are needed: a robust checkpoint, and images for it")
    disable_progress_bars()
    disable_progress_bar()
    set_verbosity_error()
    setting = Setting(args, data)
    low, full = ceiling(setting.low, setting.device), ceiling("float32", setting.device)
    document: dict[str, Any] = {
        "hardware": {
            "device": hardware(),
            "cores": os.cpu_count(),
            "convolution_gflops": {"float32": round(full / 1e9), setting.low: round(low / 1e9)},
        },
        "versions": {name: version(name) for name in _LIBRARIES if find_spec(name.replace("-", "_")) is not None},
        "settings": {name: getattr(args, name) for name in ("samples", "batch_size", "rounds", "epochs", "quick")},
        "rows": [],
    }
    print(f"{document['hardware']['device']}, convolutions at {full / 1e9:.0f} GFLOP/s, in {setting.low} {low / 1e9:.0f}")
    for name in chosen_rows(args):
        print(f"measuring {name} …", flush=True)
        found = ROWS[name](setting)
        found = found if isinstance(found, list) else [found]
        document["rows"] += found
        print(table(found), flush=True)
        if args.output is not None:  # after each line: what is measured is not lost
            Path(args.output).parent.mkdir(parents=True, exist_ok=True)
            with replacing(args.output) as part:
                part.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\n{table(document['rows'])}")
