"""How fast this package attacks, evaluates and trains, beside other libraries: same model, images and process.

    python recipes/benchmark.py --model_name_or_path outputs/source --natural_model_name_or_path outputs/natural \\
        --dataset_name cifar10 --transfer_dataset_name my/images --output benchmark.json

The others are an extra: pip install 'hf-robust-transfer[benchmark]' && pip install --no-deps torchattacks
"""

import json
import multiprocessing
import os

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler's own messages; before torch is imported

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from accelerate import PartialState
from datasets import Dataset, disable_progress_bars
from pyautoattack import AutoAttack
from torch import Tensor, nn
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from hf_robust_transfer import (
    PixelClassifier,
    RobustTrainer,
    RobustTrainingArguments,
    ThreatModel,
    evaluate_robustness,
    pgd,
)
from hf_robust_transfer.atomic import replacing
from hf_robust_transfer.cli.main import one_line_errors
from hf_robust_transfer.cli.parsing import parse_arguments
from hf_robust_transfer.data import DataArguments, PixelDataset, as_pixels, load_evaluation_split, load_image_splits
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.evaluation.robustness import hardware
from hf_robust_transfer.modeling import load_model
from hf_robust_transfer.modeling.attack_copy import attack_copy, choose_precision
from hf_robust_transfer.transfer import freeze

LINF_8 = ThreatModel("linf", 8 / 255)
PEERS = ("torchattacks", "foolbox")
_LIBRARIES = ("hf-robust-transfer", "torch", "transformers", "timm", "pyautoattack", *PEERS)
_LOW = torch.bfloat16
_BATCH = 128  # the default of training


@dataclass
class BenchmarkArguments:
    """What to measure, besides the images."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A robust checkpoint, trained at linf 8/255."})
    natural_model_name_or_path: str | None = field(
        default=None, metadata={"help": "A naturally trained one of the same labels; without it its line is left out."}
    )
    transfer_dataset_name: str | None = field(
        default=None, metadata={"help": "Images to transfer to; without them that line is left out."}
    )
    rows: list[str] | None = field(default=None, metadata={"help": "Measure only these lines of the table."})
    output: str | None = field(default=None, metadata={"help": "Write the figures to this JSON file."})
    quick: bool = field(
        default=False, metadata={"help": "A rough table in minutes: fewer images, rounds and epochs, no AutoAttack."}
    )
    samples: int = field(default=200, metadata={"help": "Images to attack."})
    autoattack_samples: int = field(default=100, metadata={"help": "Images to attack with AutoAttack."})
    batch_size: int = field(default=100, metadata={"help": "Images that each library attacks at a time."})
    rounds: int = field(default=3, metadata={"help": "Rounds in which the contenders take turns; medians are given."})
    epochs: int = field(default=20, metadata={"help": "Epochs of the frozen transfer."})

    def __post_init__(self) -> None:
        unknown = set(self.rows or ()) - set(ROWS)
        if unknown:
            raise UsageError(f"--rows {' '.join(sorted(unknown))}: there is no such line, only {', '.join(ROWS)}")
        for name in ("samples", "autoattack_samples", "batch_size", "rounds", "epochs"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)} must be at least 1")
        if self.quick:
            self.samples, self.batch_size, self.rounds, self.epochs = min(self.samples, 50), min(self.batch_size, 50), 1, 5


class Plain(nn.Module):
    """A checkpoint as a user of another library would hand it over: a module from [0, 1] pixels to logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: PixelClassifier) -> None:
        super().__init__()
        self.model = classifier.model
        self.register_buffer("mean", classifier.mean)
        self.register_buffer("std", classifier.std)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.model(pixel_values=(images - self.mean) / self.std).logits


class Setting:
    """The models and images of one benchmark, loaded when they are first needed."""

    def __init__(self, args: BenchmarkArguments, data: DataArguments) -> None:
        self.args, self.data = args, data
        self.device = PartialState(cpu=not torch.accelerator.is_available()).device
        self.low = choose_precision("auto", self.device)

    def load(self, name: str | None) -> PixelClassifier:
        """A checkpoint as a classifier, in eval mode."""
        return PixelClassifier(*load_model(str(name))).to(self.device).eval()

    @cached_property
    def robust(self) -> PixelClassifier:
        """The robust checkpoint."""
        return self.load(self.args.model_name_or_path)

    @cached_property
    def natural(self) -> PixelClassifier:
        """The naturally trained one."""
        return self.load(self.args.natural_model_name_or_path)

    @cached_property
    def images(self) -> Dataset:
        """The images to attack, encoded."""
        arguments = replace(self.data, max_eval_samples=self.args.samples)
        return load_evaluation_split(arguments, labels=self.robust.labels)[0]

    @cached_property
    def dataset(self) -> PixelDataset:
        """The images to attack."""
        return self._pixels(self.images)

    def training_batch(self, size: int) -> PixelDataset:
        """So many of them, some more than once if need be."""
        return self._pixels(self.images.select([row % len(self.images) for row in range(size)]))

    def _pixels(self, images: Dataset) -> PixelDataset:
        return PixelDataset(images, load_model(str(self.args.model_name_or_path))[1])

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """The images to attack, as pixels in [0, 1], with their labels, on the device."""
        images, labels = self.first(len(self.dataset))
        size = self.args.batch_size
        return list(zip(images.split(size), labels.split(size), strict=True))

    def first(self, samples: int) -> tuple[Tensor, Tensor]:
        """The first so many of them as one batch."""
        rows = range(min(samples, len(self.dataset)))
        images = torch.stack([as_pixels(self.dataset[row]["pixel_values"]) for row in rows]).to(self.device)
        return images, torch.tensor(self.dataset.labels[: len(rows)], device=self.device)


def peers(classifier: PixelClassifier) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """PGD-20 at linf 8/255 with steps of 2/255 from a random start, by each library that is installed."""
    plain = Plain(classifier).to(classifier.mean.device).eval().requires_grad_(True)
    found: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
    if find_spec("torchattacks"):
        import torchattacks

        found["torchattacks"] = torchattacks.PGD(plain, eps=8 / 255, alpha=2 / 255, steps=20, random_start=True)
    if find_spec("foolbox"):
        import foolbox

        model = foolbox.PyTorchModel(plain, (0, 1), device=classifier.mean.device)
        attack = foolbox.attacks.LinfPGD(abs_stepsize=2 / 255, steps=20, random_start=True)
        found["foolbox"] = lambda images, labels: attack.run(
            model, images, foolbox.criteria.Misclassification(labels), epsilon=8 / 255
        )
    if not found:
        raise UsageError(
            "there is no library to compare with: pip install 'hf-robust-transfer[benchmark]', and pip install --no-deps"
            " torchattacks"
        )
    return found


# ---- measuring ----


def timed(run: Callable[[], Any]) -> float:
    """Seconds that a call takes, the device's work included."""
    _synchronise()
    began = time.perf_counter()
    run()
    _synchronise()
    return time.perf_counter() - began


def _synchronise() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def take_turns(contenders: dict[str, Callable[[], Any]], rounds: int, *, warm_up: bool = True) -> dict[str, float]:
    """The median seconds of each contender over rounds in which all of them run, one after the other."""
    if warm_up:
        for run in contenders.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            seconds[name].append(timed(run))
    return {name: median(values) for name, values in seconds.items()}


def ceiling(precision: str, device: torch.device) -> float:
    """The rate of a large convolution in a precision, in floating-point operations per second: best of five.

    Convolutions, because that is what the models here consist of; on CPUs they can be faster than matrix products.
    """
    dtype = _LOW if precision == "bf16" else torch.float32
    convolution = nn.Conv2d(256, 256, 3, padding=1, bias=False, device=device, dtype=dtype).requires_grad_(False)
    convolution = convolution.to(memory_format=torch.channels_last)
    images = torch.rand(32, 256, 16, 16, device=device).to(dtype, memory_format=torch.channels_last)
    operations = 2 * 9 * 256**2 * images.shape[0] * 16 * 16
    return operations / min(timed(lambda: [convolution(images) for _ in range(10)]) / 10 for _ in range(5))


def attack_step_operations(classifier: nn.Module, images: Tensor) -> float:
    """Floating-point operations of one image's forward pass and input gradient, which costs as many again."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        classifier(images)
    return 2 * counter.get_total_flops() / len(images)


def shares(run: Callable[[], Any]) -> dict[str, float]:
    """What a call spends its time on: the shares of the five costliest operators."""
    with profile() as profiler:
        run()
    events = {event.key: event.self_cpu_time_total + event.self_device_time_total for event in profiler.key_averages()}
    total = sum(events.values())
    costliest = sorted(events, key=lambda key: -events[key])[:5]
    return {key.removeprefix("aten::"): round(events[key] / total, 3) for key in costliest}


def row(name: str, target: str, ours: float, peer: float, peer_name: str, unit: str, **more: Any) -> dict[str, Any]:
    """One line of the table. The ratio is ours to the peer's."""
    ratio = ours / peer
    shown: dict[str, Any] = {"name": name, "ratio": ratio, "target": target, "met": _meets(ratio, target)}
    return {**shown, "ours": ours, "peer": peer, "peer_name": peer_name, "unit": unit, **more}


def _meets(value: float, target: str) -> bool:
    bound = float(target.split()[1])
    return value >= bound if target.startswith(">=") else value <= bound


# ---- the lines of the table ----


def pgd_all_steps(setting: Setting, precision: str) -> dict[str, Any]:
    """PGD-20 with all steps on all images."""
    classifier, batches = setting.robust, setting.batches()
    fast = attack_copy(classifier, batches[0][0][:2], precision)

    def ours() -> None:
        for images, labels in batches:
            pgd(fast, images, labels, LINF_8, steps=20)

    contenders = {name: _on(batches, attack) for name, attack in peers(classifier).items()}
    seconds = take_turns({"ours": ours, **contenders}, setting.args.rounds)
    best, samples = min(contenders, key=lambda name: seconds[name]), sum(len(labels) for _, labels in batches)
    images, labels = batches[0]
    step_rate = 20 * attack_step_operations(classifier, images[:2]) * samples
    ceilings = {each: ceiling(each, setting.device) for each in (precision, "float32")}
    return row(
        f"PGD-20, all steps, {precision}",
        ">= 4" if precision == "bf16" else ">= 1.15",
        samples / seconds["ours"],
        samples / seconds[best],
        best,
        "images/s",
        all_peers={name: samples / seconds[name] for name in contenders},
        share_of_ceiling={
            "ours": step_rate / seconds["ours"] / ceilings[precision],
            "peer": step_rate / seconds[best] / ceilings["float32"],
        },
        ceiling_to_float32=ceilings[precision] / ceilings["float32"],
        profile=shares(lambda: pgd(fast, images, labels, LINF_8, steps=5)),
    )


def _on(batches: list[tuple[Tensor, Tensor]], attack: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], list[Tensor]]:
    return lambda: [attack(images, labels) for images, labels in batches]


def evaluation(setting: Setting, classifier: PixelClassifier, name: str, target: str) -> list[dict[str, Any]]:
    """Robust accuracy under PGD-20: ours in which samples leave, theirs attack-then-classify."""
    batches, size = setting.batches(), setting.args.batch_size
    plain = Plain(classifier).eval()
    found: dict[str, float] = {}

    def ours() -> None:
        report = evaluate_robustness(
            classifier,
            setting.dataset,
            LINF_8,
            ["pgd-20"],
            self_check_samples=0,
            curve_samples=0,
            chunk_size=size,
            progress=False,
        )
        found["ours"] = report.worst_case.value * len(setting.dataset)

    def theirs(peer: str, attack: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
        def run() -> None:
            right = 0
            for images, labels in batches:
                adversarial = attack(images, labels)
                with torch.no_grad():
                    right += int((plain(adversarial).argmax(1) == labels).sum())
            found[peer] = right

        return run

    contenders = {peer: theirs(peer, attack) for peer, attack in peers(classifier).items()}
    seconds = take_turns({"ours": ours, **contenders}, setting.args.rounds)
    best, samples = min(contenders, key=lambda peer: seconds[peer]), len(setting.dataset)
    speed = row(
        f"robust-accuracy evaluation, {name} source, {setting.low}",
        target,
        samples / seconds["ours"],
        samples / seconds[best],
        best,
        "images/s",
        all_peers={peer: samples / seconds[peer] for peer in contenders},
        robust_accuracy={peer: value / samples for peer, value in found.items()},
        profile=shares(ours),
    )
    if classifier is not setting.robust:
        return [speed]
    return [
        speed,
        _difference("robust accuracy found in that evaluation", found["ours"], found[best], best, samples),
    ]


def _difference(name: str, ours: float, peer: float, peer_name: str, samples: int) -> dict[str, Any]:
    """A line on how many samples two evaluations differ by: one in 200 may come from other random starts."""
    off, allowed = abs(ours - peer), max(1, samples // 200)
    line = {"name": f"{name}, difference", "ratio": off, "target": f"<= {allowed}", "met": off <= allowed}
    return {**line, "ours": ours, "peer": peer, "peer_name": peer_name, "unit": f"robust images of {samples}"}


def autoattack(setting: Setting) -> list[dict[str, Any]]:
    """AutoAttack standard in one round, ours against the package called plainly."""
    images, labels = setting.first(setting.args.autoattack_samples)
    dataset = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images.cpu(), labels, strict=True)]
    plain = Plain(setting.robust).to(setting.device).eval().requires_grad_(True)
    found: dict[str, float] = {}

    def ours() -> None:
        report = evaluate_robustness(
            setting.robust,
            dataset,
            LINF_8,
            ["autoattack"],
            self_check_samples=0,
            curve_samples=0,
            chunk_size=len(dataset),
            progress=False,
        )
        found["ours"] = report.worst_case.value * len(dataset)

    def theirs() -> None:
        attack = AutoAttack(plain, norm="Linf", eps=8 / 255, seed=0, version="standard", device=setting.device)
        adversarial, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
        with torch.no_grad():
            found["theirs"] = int((plain(adversarial).argmax(1) == labels).sum())

    seconds = take_turns({"ours": ours, "theirs": theirs}, 1, warm_up=False)
    speed = row(
        f"AutoAttack standard, {len(dataset)} images, robust source, {setting.low}",
        ">= 2.5",
        60 * len(dataset) / seconds["ours"],
        60 * len(dataset) / seconds["theirs"],
        "pyautoattack",
        "images/min",
    )
    return [speed, _difference("robust accuracy found by it", found["ours"], found["theirs"], "pyautoattack", len(dataset))]


class StepTimes(TrainerCallback):
    """Notes how long each optimizer step takes."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        _synchronise()
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop it."""
        _synchronise()
        self.seconds.append(time.perf_counter() - self._began)


def step_seconds(setting: Setting, steps: int, teacher: PixelClassifier | None = None, **options: Any) -> list[float]:
    """Seconds of each step of a real training of the robust source, but for the first."""
    model, processor = load_model(str(setting.args.model_name_or_path))
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        args = _training_arguments(setting, folder, max_steps=steps + 1, **options)
        trainer = RobustTrainer(
            model,
            args,
            processing_class=processor,
            teacher=teacher,
            train_dataset=setting.training_batch(args.per_device_train_batch_size),
            callbacks=[times],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return times.seconds[1:]


def _training_arguments(setting: Setting, folder: str, **options: Any) -> RobustTrainingArguments:
    quiet: dict[str, Any] = {"save_strategy": "no", "logging_strategy": "no", "report_to": "none", "disable_tqdm": True}
    cache = f"{folder}/features"
    return RobustTrainingArguments(folder, feature_cache_dir=cache, bf16=setting.low == "bf16", **quiet, **options)


def training_step(setting: Setting) -> dict[str, Any]:
    """A step of PGD-7 adversarial training against the passes it cannot do without, measured one by one."""
    classifier = setting.load(setting.args.model_name_or_path)
    optimizer = torch.optim.SGD(classifier.parameters(), 1e-9, momentum=0.9)
    dataset = setting.training_batch(_BATCH)
    items = [dataset[row] for row in range(_BATCH)]
    images = torch.stack([as_pixels(item["pixel_values"]) for item in items]).to(setting.device)
    labels = torch.tensor([item["labels"] for item in items], device=setting.device)

    def forward_and_input_gradient() -> None:
        inputs = images.clone().requires_grad_()
        with torch.autocast(setting.device.type, dtype=_LOW, enabled=setting.low == "bf16"):
            loss = F.cross_entropy(classifier(inputs), labels)
        torch.autograd.grad(loss, inputs)

    def full_step() -> None:
        with torch.autocast(setting.device.type, dtype=_LOW, enabled=setting.low == "bf16"):
            loss = F.cross_entropy(classifier(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    ours: list[float] = []
    bounds: list[float] = []
    for _ in range(setting.args.rounds):
        ours += step_seconds(setting, 2, objective="pgd", attack_steps=7)
        classifier.eval().requires_grad_(False)
        forward_and_input_gradient()
        attack = median(timed(forward_and_input_gradient) for _ in range(5))
        classifier.train().requires_grad_(True)
        full_step()
        bounds.append(7 * attack + median(timed(full_step) for _ in range(3)))
    return row(
        f"PGD-7 training step of {_BATCH} images, {setting.low}", "<= 1.05", median(ours), median(bounds), "its passes", "s"
    )


def training_throughput(setting: Setting) -> dict[str, Any]:
    """PGD-10 adversarial training, compiled on a GPU, as the time that 50 000 images take."""
    batch = 512 if setting.device.type == "cuda" else _BATCH
    options: dict[str, Any] = {"per_device_train_batch_size": batch, "torch_compile": setting.device.type == "cuda"}
    seconds = median(step_seconds(setting, 10 * setting.args.rounds, objective="pgd", attack_steps=10, **options))
    images = setting.batches()[0][0][:2]
    # Ten passes forwards and to the images, and one forwards, to the images and to the weights.
    operations = attack_step_operations(setting.robust, images) * (10 + 1.5) * batch
    possible = operations / ceiling(setting.low, setting.device)
    epoch = seconds / batch * 50_000
    return {
        "name": f"PGD-10 training, 50 000 images, {setting.low}",
        "ratio": epoch,
        "target": "<= 6",
        "met": epoch <= 6,
        "ours": epoch,
        "peer": possible / batch * 50_000,
        "peer_name": "its operations at the rate of a large convolution",
        "unit": "s",
        "images_per_second": batch / seconds,
        "share_of_ceiling": possible / seconds,
    }


def lwf_step(setting: Setting) -> dict[str, Any]:
    """A step with an LwF term whose teacher's features are known, against a natural step."""
    ours: list[float] = []
    natural: list[float] = []
    for _ in range(setting.args.rounds):
        plain = {"warm_start_steps": 0, "unfreeze_warmup_steps": 0}
        ours += step_seconds(setting, 4, setting.load(setting.args.model_name_or_path), lwf_weight=1.0, **plain)
        natural += step_seconds(setting, 4, batch_norm_eval=True)
    return row(
        f"LwF step of {_BATCH} images, cached teacher, {setting.low}",
        "<= 1.05",
        median(ours),
        median(natural),
        "natural step",
        "s",
    )


def frozen_transfer(setting: Setting) -> list[dict[str, Any]]:
    """Frozen transfer, features computed anew, against `Trainer` with a frozen backbone."""
    args = setting.args
    splits = load_image_splits(DataArguments(dataset_name=args.transfer_dataset_name))
    epochs: dict[str, Any] = {"num_train_epochs": args.epochs, "learning_rate": 0.1}

    def ours() -> None:
        model, processor = load_model(str(args.model_name_or_path), id2label=splits.id2label)
        dataset = PixelDataset(splits.train, processor)
        with tempfile.TemporaryDirectory() as folder:
            trainer = RobustTrainer(
                model,
                _training_arguments(setting, folder, freeze="backbone", **epochs),
                processing_class=processor,
                train_dataset=dataset,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()

    def theirs(precision: str) -> Callable[[], None]:
        def run() -> None:
            model, processor = load_model(str(args.model_name_or_path), id2label=splits.id2label)
            freeze(model, "backbone")

            def prepare(batch: dict[str, Any]) -> dict[str, Any]:
                pixels = processor([image.convert("RGB") for image in batch["image"]], return_tensors="pt")
                return {"pixel_values": pixels["pixel_values"], "labels": batch["label"]}

            dataset: Dataset = splits.train.with_transform(prepare)
            with tempfile.TemporaryDirectory() as folder:
                options: dict[str, Any] = {"save_strategy": "no", "logging_strategy": "no", "report_to": "none"}
                trainer = Trainer(
                    model,
                    TrainingArguments(
                        folder,
                        per_device_train_batch_size=_BATCH,
                        remove_unused_columns=False,
                        disable_tqdm=True,
                        bf16=precision == "bf16",
                        use_cpu=setting.device.type == "cpu",
                        optim="sgd",
                        optim_args="momentum=0.9",
                        **options,
                        **epochs,
                    ),
                    train_dataset=dataset,
                )
                trainer.remove_callback(PrinterCallback)
                trainer.train()

        return run

    contenders = {precision: theirs(precision) for precision in dict.fromkeys((setting.low, "float32"))}
    seconds = take_turns({"ours": ours, **contenders}, 1, warm_up=False)
    targets = {setting.low: ">= 15", "float32": ">= 30"}
    return [
        row(
            f"frozen transfer, {args.epochs} epochs of {len(splits.train)} images, {setting.low}",
            targets[precision],
            1 / seconds["ours"],
            1 / seconds[precision],
            f"Trainer in {precision}",
            "runs/s",
            seconds={"ours": seconds["ours"], "peer": seconds[precision]},
        )
        for precision in contenders
    ]


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
    with _watched_memory() as peak:
        run()
    sender.send(peak())


@contextmanager
def _watched_memory() -> Iterator[Callable[[], int]]:
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
    """Parse, measure line by line, print and write."""
    args, data = parse_arguments(
        "recipes/benchmark.py",
        [BenchmarkArguments, DataArguments],
        f"Measure this package beside others. The lines of the table: {', '.join(ROWS)}.",
        sys.argv[1:],
    )
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


if __name__ == "__main__":
    with one_line_errors():
        main()
