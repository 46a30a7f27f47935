"""How fast training and transfer are."""

import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from hf_robust_transfer import (
    PixelClassifier,
    RobustTrainer,
    RobustTrainingArguments,
)
from hf_robust_transfer.data import DataArguments, PixelDataset, as_pixels, load_image_splits
from hf_robust_transfer.modeling import load_model
from hf_robust_transfer.transfer import freeze
from recipes.benchmark.measuring import attack_step_operations, ceiling, row, synchronise, take_turns, timed
from recipes.benchmark.setting import BATCH, LOW, Setting


class StepTimes(TrainerCallback):
    """Notes how long each optimizer step takes."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        synchronise()
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop it."""
        synchronise()
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
    dataset = setting.training_batch(BATCH)
    items = [dataset[row] for row in range(BATCH)]
    images = torch.stack([as_pixels(item["pixel_values"]) for item in items]).to(setting.device)
    labels = torch.tensor([item["labels"] for item in items], device=setting.device)

    def forward_and_input_gradient() -> None:
        inputs = images.clone().requires_grad_()
        with torch.autocast(setting.device.type, dtype=LOW, enabled=setting.low == "bf16"):
            loss = F.cross_entropy(classifier(inputs), labels)
        torch.autograd.grad(loss, inputs)

    def full_step() -> None:
        with torch.autocast(setting.device.type, dtype=LOW, enabled=setting.low == "bf16"):
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
        f"PGD-7 training step of {BATCH} images, {setting.low}", "<= 1.05", median(ours), median(bounds), "its passes", "s"
    )


def training_throughput(setting: Setting) -> dict[str, Any]:
    """PGD-10 adversarial training, compiled on a GPU, as the time that 50 000 images take."""
    batch = 512 if setting.device.type == "cuda" else BATCH
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
        f"LwF step of {BATCH} images, cached teacher, {setting.low}",
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
                        per_device_train_batch_size=BATCH,
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
