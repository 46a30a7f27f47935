"""What an import costs, and the memory of an evaluation."""

import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import psutil
import torch

from hf_robust_transfer import (
    evaluate_robustness,
)
from hf_robust_transfer.data import DataArguments
from recipes.benchmark.measuring import row
from recipes.benchmark.setting import LINF_8, BenchmarkArguments, Plain, Setting, peers


def import_time(_: Setting) -> dict[str, Any]:
    """What importing this package adds to importing torch and transformers."""
    program = (
        "import time; a = time.perf_counter(); import torch, transformers; b = time.perf_counter();"
        " import hf_robust_transfer; print(b - a, time.perf_counter() - b)"
    )
    runs = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True) for _ in range(5)]
    others, ours = (median(values) for values in zip(*(map(float, run.stdout.split()) for run in runs), strict=True))
    return {
        "name": "import hf_robust_transfer, seconds",
        "ratio": ours,
        "target": "<= 0.3",
        "met": ours <= 0.3,
        "ours": ours,
        "peer": others,
        "peer_name": "import torch, transformers",
        "unit": "s",
    }


def memory(setting: Setting) -> dict[str, Any]:
    """Peak memory of PGD-20 on one batch, each library in a process of its own."""
    contenders = ("ours", *peers(setting.robust))
    context = multiprocessing.get_context("spawn")
    peaks: dict[str, float] = {}
    for name in contenders:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_peak_memory, args=(name, setting.args, setting.data, sender))
        process.start()
        sender.close()
        peaks[name] = receiver.recv() / 2**20
        process.join()
    best = min(contenders[1:], key=lambda name: peaks[name])
    return row(
        f"peak memory of PGD-20 evaluation, batch of {setting.args.batch_size}, {setting.low}",
        "<= 1",
        peaks["ours"],
        peaks[best],
        best,
        "MiB",
        all_peers={name: peaks[name] for name in contenders[1:]},
    )


def _peak_memory(name: str, args: BenchmarkArguments, data: DataArguments, sender: Any) -> None:
    """Bytes that an attack needs at most, beyond what the process held before it."""
    setting = Setting(args, data)
    classifier, (images, labels) = setting.robust, setting.first(args.batch_size)
    if name == "ours":
        run: Callable[[], Any] = lambda: evaluate_robustness(  # noqa: E731
            classifier,
            [{"pixel_values": image, "labels": int(label)} for image, label in zip(images.cpu(), labels, strict=True)],
            LINF_8,
            ["pgd-20"],
            self_check_samples=0,
            curve_samples=0,
            chunk_size=args.batch_size,
            progress=False,
        )
    else:
        attack = peers(classifier)[name]
        plain = Plain(classifier).eval()

        def run() -> None:
            adversarial = attack(images, labels)
            with torch.no_grad():
                plain(adversarial)

    if setting.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        sender.send(torch.cuda.max_memory_allocated() - before)
        return
    with watched_memory() as peak:
        run()
    sender.send(peak())


@contextmanager
def watched_memory() -> Iterator[Callable[[], int]]:
    """Watch this process's resident memory; what is given says by how much it grew at most."""
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    highest = before

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: highest - before
    finally:
        done.set()
        thread.join()
