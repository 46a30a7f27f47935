"""Training runs in a process of their own, described by a JSON file: ``python train_script.py run.json``.

The weights each ends with, and what it saw on the way, are written to ``<output_dir>/final.pt``.
"""

import json
import os
import signal
import sys

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from sklearn.datasets import load_digits
from transformers import TrainerCallback, set_seed

from hf_robust_transfer.modeling import PixelClassifier, create_model
from hf_robust_transfer.training.arguments import RobustTrainingArguments
from hf_robust_transfer.training.trainer import RobustTrainer


class KillAt(TrainerCallback):
    """Kill this process, without any goodbye, when a step begins."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class DivergeOnLast(TrainerCallback):
    """Make a weight NaN in the second step, on the last process alone, as long as the rate has not been halved."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        fresh = not any("diverged_at_step" in entry for entry in state.log_history)
        if state.global_step == 1 and fresh and args.process_index == args.world_size - 1:
            next(model.parameters()).data[0] = float("nan")


class Pixels(torch.utils.data.Dataset):
    """Digits as RGB pixels in [0, 1]."""

    def __init__(self, first, count, dtype):
        digits = load_digits()
        images = np.repeat(digits.images[first : first + count, None] / 16, 3, axis=1)
        self.images, self.labels = torch.tensor(images, dtype=dtype), digits.target[first : first + count]
        self.fingerprint = f"digits {first} {count} {dtype}"

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return {"pixel_values": self.images[row], "labels": int(self.labels[row])}


def build(config):
    """The trainer that a configuration describes."""
    set_seed(0)
    dtype = getattr(torch, config.get("dtype", "float32"))
    model, processor = create_model(
        config["architecture"],
        id2label={label: str(label) for label in range(10)},
        model_args=config["model_args"],
        image_size=8,
    )
    model = model.to(dtype)
    if config.get("lora"):
        model = get_peft_model(model, LoraConfig(**config["lora"]))
    plain = {"learning_rate": 0.01, "warm_start_steps": 0, "unfreeze_warmup_steps": 0}
    if config["arguments"].get("warm_start_steps"):
        plain["warm_start_learning_rate"] = 0.01
    arguments = {
        **plain,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_steps": 1,
        **config["arguments"],
    }
    args = RobustTrainingArguments(**arguments)
    teacher = None
    if args.lwf_weight or args.needs_teacher:
        set_seed(1)  # a teacher that differs from the student, so that the term has a gradient at once
        labels = {label: str(9 - label) for label in range(10)} if args.needs_teacher else {0: "a"}
        source, _ = create_model(config["architecture"], id2label=labels, model_args=config["model_args"], image_size=8)
        teacher = PixelClassifier(source.to(dtype), processor)
    callbacks = [KillAt(config["kill_at"])] if config.get("kill_at") is not None else []
    callbacks += [DivergeOnLast()] if config["arguments"].get("halve_on_divergence") else []
    return RobustTrainer(
        model,
        args,
        processing_class=processor,
        teacher=teacher,
        train_dataset=Pixels(0, config["samples"], dtype),
        eval_dataset=Pixels(1000, config.get("eval_samples", 16), dtype),
        callbacks=callbacks,
    )


def main():
    """Train as the file says."""
    with open(sys.argv[1]) as file:
        configs = json.load(file)
    torch.set_num_threads(1)
    for config in configs:
        train(config)


def train(config):
    """Train once, and write down where it ended."""
    trainer = build(config)
    trainer.train(resume_from_checkpoint=config.get("resume_from"))
    metrics = trainer.evaluate() if config.get("evaluate") else {}
    buffers = dict(trainer.model.named_buffers())
    torch.save(buffers, os.path.join(trainer.args.output_dir, f"buffers_{trainer.args.process_index}.pt"))
    if trainer.is_world_process_zero():
        torch.save(
            {
                "weights": {name: value.clone() for name, value in trainer.model.state_dict().items()},
                "world_size": trainer.args.world_size,
                "metrics": metrics,
                "logs": trainer.state.log_history,
            },
            os.path.join(trainer.args.output_dir, "final.pt"),
        )


if __name__ == "__main__":
    main()
