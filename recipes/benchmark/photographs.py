"""What a transfer to photographs at 224 pixels costs: decoding, seconds per step, images per second, memory.

    python -m recipes.benchmark.photographs --output photographs.json

The photographs are made: parts of the two that scikit-learn brings along (`load_sample_images`), at random, resized and
mirrored, as JPEG files of 500 × 375 pixels. The networks have random weights, which compute as fast as trained ones; so
what is measured is cost, and no accuracy. Each line runs in a process of its own; memory is by how much that grew. On a
machine that others use, too, the seconds of its cores tell more than those of the clock.
"""

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers import PrinterCallback, TrainerCallback

from hf_robust_transfer import PixelDataset, RobustTrainer, RobustTrainingArguments
from hf_robust_transfer.atomic import replacing
from hf_robust_transfer.cli.main import one_line_errors
from hf_robust_transfer.cli.parsing import parse_arguments
from hf_robust_transfer.data import DataArguments, Indexed, load_image_splits
from hf_robust_transfer.data.cropping import RandomCrops
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.evaluation.robustness import hardware
from hf_robust_transfer.modeling import create_model
from recipes.benchmark.resources import watched_memory

CLASSES = [f"{part} of {photo}" for photo in ("china", "flower") for part in ("left", "middle", "right")]
WHOLE: dict[str, Any] = {"warm_start_steps": 0.0, "unfreeze_warmup_steps": 0.0, "batch_norm_eval": True}
METHODS: dict[str, dict[str, Any]] = {
    "frozen": {"transfer": "frozen"},
    "lwf": {"transfer": "lwf", **WHOLE},
    "lwf, teacher in every step": {"transfer": "lwf", "cache_features": False, **WHOLE},
    "fine_tuned": {"transfer": "fine_tuned", **WHOLE},
}


@dataclass
class PhotographsArguments:
    """What to measure."""

    output: str | None = field(default=None, metadata={"help": "Write the figures to this JSON file."})
    architectures: list[str] = field(
        default_factory=lambda: ["resnet50", "convnext_tiny"], metadata={"help": "timm's names of the networks."}
    )
    image_size: int = field(default=224, metadata={"help": "Side of the networks' input in pixels."})
    model_args: str | None = field(default=None, metadata={"help": "Arguments of the networks as JSON."})
    images: int = field(default=3000, metadata={"help": "Photographs to train on."})
    batch_size: int = field(default=32, metadata={"help": "Photographs in a step."})
    steps: int = field(default=4, metadata={"help": "Steps to take the median of, after one that is not counted."})
    epochs: int = field(default=20, metadata={"help": "Epochs of the frozen transfer."})
    bf16: bool = field(default=False, metadata={"help": "Train in bf16."})

    def __post_init__(self) -> None:
        for name in ("image_size", "images", "batch_size", "steps", "epochs"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)} must be at least 1")


def make_photographs(folder: Path, count: int) -> None:
    """Write JPEG files of 500 × 375 pixels, a folder per class."""
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    draw = np.random.default_rng(0)
    for number in range(count):
        label = number % len(CLASSES)
        photo, third = photos[label // 3], label % 3
        width = int(draw.integers(200, 340))
        height = width * 3 // 4
        left = third * (photo.width - width) // 2 + int(draw.integers(-20, 21))
        left, top = max(0, min(left, photo.width - width)), int(draw.integers(0, photo.height - height + 1))
        part = photo.crop((left, top, left + width, top + height)).resize((500, 375), Image.Resampling.BICUBIC)
        file = folder / CLASSES[label] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        (part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else part).save(file, quality=90)


class StepTimes(TrainerCallback):
    """The time that each step took and that what comes before the first did: seconds, and seconds of all cores."""

    def __init__(self) -> None:
        self.before: np.ndarray[Any, Any] = np.zeros(2)
        self.steps: list[np.ndarray[Any, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = now()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.steps:
            self.before = now() - self._began
        self._began = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.steps.append(now() - self._began)


def now() -> np.ndarray[Any, Any]:
    """The clock, and the time that this process has spent on all cores, which others at work do not lengthen much."""
    return np.array([time.perf_counter(), time.process_time()])


def decoding(args: PhotographsArguments, photographs: str) -> list[dict[str, Any]]:
    """Images per second from files to pixels, by one thread and by all: resized, and cropped at random."""
    splits = load_image_splits(DataArguments(train_dir=photographs))
    _, processor = create_model("resnet50", id2label=splits.id2label, image_size=args.image_size)
    cores, lines = torch.get_num_threads(), []
    for threads in sorted({1, cores}):
        torch.set_num_threads(threads)
        dataset = PixelDataset(splits.train, processor)
        cropped = Indexed(dataset, len(CLASSES), crops=RandomCrops(processor, 0.35, seed=0))
        reads: dict[str, Callable[[], Any]] = {
            "resized": dataset.check,
            "random_resized_crop": partial(cropped.__getitems__, range(len(dataset))),
        }
        for what, read in reads.items():
            began = now()
            read()
            seconds, of_cores = ((now() - began) / len(dataset)).tolist()
            line = f"decoding, {what}, {threads} thread{'s'[: threads - 1]}"
            lines.append({"line": line, "images_per_second": 1 / seconds, "core_seconds_per_image": of_cores})
    return lines


def _common(args: PhotographsArguments, folder: str) -> dict[str, Any]:
    quiet = {"save_strategy": "no", "logging_strategy": "no", "report_to": "none", "disable_tqdm": True}
    sizes = {f"per_device_{which}_batch_size": args.batch_size for which in ("train", "eval")}
    return {**quiet, **sizes, "bf16": args.bf16, "feature_cache_dir": f"{folder}/features"}


def transfer(args: PhotographsArguments, photographs: str, architecture: str, method: str) -> dict[str, Any]:
    """Seconds of a step, or of a whole frozen transfer, and the memory that it takes."""
    splits = load_image_splits(DataArguments(train_dir=photographs))
    options = json.loads(args.model_args or "{}")
    model, processor = create_model(architecture, id2label=splits.id2label, model_args=options, image_size=args.image_size)
    dataset = PixelDataset(splits.train, processor)
    dataset.check()
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        length = {"num_train_epochs": args.epochs} if method == "frozen" else {"max_steps": args.steps + 1}
        training = RobustTrainingArguments(folder, **_common(args, folder), **length, **METHODS[method])  # type: ignore[arg-type]
        trainer = RobustTrainer(model, training, processing_class=processor, train_dataset=dataset, callbacks=[times])
        trainer.remove_callback(PrinterCallback)
        with watched_memory() as peak:
            trainer.train()
    line: dict[str, Any] = {"line": f"{architecture}, {method}", "images": len(dataset)}
    line["peak_memory_mib"] = (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak()) / 2**20
    if method == "frozen":
        features, of_cores = times.before.tolist()
        head, _ = np.sum(times.steps, axis=0).tolist()
        line |= {"features_images_per_second": len(dataset) / features, "core_seconds_per_image": of_cores / len(dataset)}
        return {**line, "head_seconds": head}
    seconds, of_cores = np.median(times.steps[1:], axis=0).tolist()
    line |= {"step_seconds": seconds, "images_per_second": args.batch_size / seconds}
    return {**line, "core_seconds_per_image": of_cores / args.batch_size}


def _measure(what: str, arguments: tuple[Any, ...], sender: Any) -> None:
    measurements: dict[str, Callable[..., Any]] = {"decoding": decoding, "transfer": transfer}
    sender.send(measurements[what](*arguments))


def measured(what: str, *arguments: Any) -> Any:
    """What a measurement gives, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(what, arguments, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise UsageError(f"{what} {' '.join(map(str, arguments[2:]))} ended without figures: see above") from None
    finally:
        process.join()


def run() -> None:
    """Make the photographs, measure, print and write."""
    description = "What a transfer to photographs at 224 pixels costs, on made photographs and untrained networks."
    (args,) = parse_arguments("python -m recipes.benchmark.photographs", [PhotographsArguments], description, sys.argv[1:])
    lines: list[dict[str, Any]] = []
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        make_photographs(Path(folder), args.images)
        lines += measured("decoding", args, folder)
        for line in lines:
            print(line, flush=True)
        for architecture in args.architectures:
            for method in METHODS:
                lines.append(measured("transfer", args, folder, architecture, method))
                print(lines[-1], flush=True)
    if args.output is not None:
        environment = {"hardware": hardware(), "threads": torch.get_num_threads(), "load": [load, os.getloadavg()]}
        with replacing(Path(args.output)) as part:
            part.write_text(json.dumps({**environment, "arguments": asdict(args), "lines": lines}, indent=1))


if __name__ == "__main__":
    with one_line_errors():
        run()
