"""Look inside a checkpoint under attack: how far activations move, input gradients, an embedding of the features.

    python recipes/reproduce/features.py --model_name_or_path outputs/source --dataset_name cifar10 \\
        --output_dir outputs/inside

Writes ``features.json`` (figures) and ``features.npz`` (arrays to draw).
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from sklearn.manifold import TSNE
from torch import Tensor

from hf_robust_transfer import PixelClassifier, PixelDataset, ThreatModel, load_model, pgd
from hf_robust_transfer.atomic import replacing
from hf_robust_transfer.attacks.eval_mode import untouched
from hf_robust_transfer.cli.main import one_line_errors
from hf_robust_transfer.cli.options import CheckpointArguments
from hf_robust_transfer.cli.parsing import parse_arguments
from hf_robust_transfer.data import DataArguments, as_pixels, collate, load_evaluation_split
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.evaluation.activations import activation_shift
from hf_robust_transfer.modeling.classifier import full_precision
from plan import ARRAYS, FEATURES

BATCH = 50
PICTURES = 6


@dataclass
class FeaturesArguments:
    """What to look at, and where to write what was seen."""

    output_dir: str = field(metadata={"help": "The folder to write into."})
    norm: str = field(default="linf", metadata={"help": "Norm of the threat model: linf or l2."})
    eps: str = field(default="8/255", metadata={"help": "Radius in [0, 1] pixels, as 8/255 or 0.031."})
    split: str | None = field(default=None, metadata={"help": "The split to look at; by default test, else validation."})
    seed: int = field(default=0, metadata={"help": "Of the choice of images, the attack and the embedding."})
    use_cpu: bool = field(default=False, metadata={"help": "Do not use a GPU even if there is one."})


def main() -> None:
    """Parse, attack with PGD-20, look, write."""
    checkpoint, data_args, args = parse_arguments(
        "recipes/reproduce/features.py",
        [CheckpointArguments, DataArguments, FeaturesArguments],
        "Look inside a checkpoint under PGD-20: how far each block's activations move, input gradients, and a 2-D embedding"
        " of clean and adversarial features. --max_test_samples says how many images to look at.",
        sys.argv[1:],
    )
    threat_model = ThreatModel(args.norm, args.eps)
    device = PartialState(cpu=args.use_cpu or not torch.accelerator.is_available()).device
    if checkpoint.model_name_or_path is None:
        raise UsageError("--model_name_or_path is missing: a checkpoint folder or a Hub id")
    options = {**checkpoint.checkpoint_options, **checkpoint.hub_options}
    model, processor = load_model(checkpoint.model_name_or_path, **options)
    classifier = PixelClassifier(model, processor).to(device).eval()
    images, split = load_evaluation_split(
        data_args,
        labels=classifier.labels,
        split=args.split,
        seed=getattr(model.config, "robust_training", {}).get("seed", 0),  # where validation images are split off by it
        subset_seed=args.seed,
        **checkpoint.hub_options,
    )
    dataset: Any = PixelDataset(images, processor, split)
    seen = [
        look(classifier, collate([{**dataset[row], "indices": row} for row in rows]), threat_model, args.seed)
        for rows in torch.arange(len(dataset)).split(BATCH)
        for rows in [rows.tolist()]
    ]
    shifts = {name: torch.cat([each["shift"][name] for each in seen]) for name in seen[0]["shift"]}
    features = np.concatenate([torch.cat([each[name] for each in seen]).numpy() for name in ("clean", "adversarial")])
    embedding = TSNE(init="pca", random_state=args.seed, perplexity=min(30, len(features) // 4)).fit_transform(features)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / ARRAYS) as part, part.open("wb") as file:
        np.savez_compressed(
            file,
            images=seen[0]["images"][:PICTURES].numpy(),
            gradients=seen[0]["gradients"][:PICTURES].numpy(),
            embedding=embedding.reshape(2, -1, 2).astype(np.float32),
            labels=torch.cat([each["labels"] for each in seen]).numpy(),
            names=np.array(classifier.labels),
        )
    report: dict[str, Any] = {
        "samples": len(dataset),
        "threat_model": {"norm": threat_model.norm, "eps": threat_model.eps},
        "attack": "pgd-20",
        "seed": args.seed,
        "shift": {name: interval(values) for name, values in shifts.items()},
    }
    with replacing(folder / FEATURES) as part:
        part.write_text(json.dumps(report, indent=2) + "\n")
    for name, found in report["shift"].items():
        print(f"{name:<30} moves by {found['mean']:.1%} ({found['lower']:.1%} – {found['upper']:.1%})")


def look(classifier: PixelClassifier, batch: dict[str, Tensor], threat_model: ThreatModel, seed: int) -> dict[str, Any]:
    """What is to be seen in one batch of ``pixel_values``, ``labels`` and ``indices``, on the CPU."""
    device = classifier.mean.device
    images, labels, indices = (batch[name].to(device) for name in ("pixel_values", "labels", "indices"))
    images = as_pixels(images)
    adversarial = pgd(classifier, images, labels, threat_model, steps=20, seed=seed, indices=indices)
    with untouched(classifier), full_precision(classifier):
        probe = images.clone().requires_grad_()
        gradients = torch.autograd.grad(F.cross_entropy(classifier(probe), labels, reduction="sum"), probe)[0]
        with torch.no_grad():
            clean, moved = (classifier.outputs(each).features.cpu() for each in (images, adversarial))
    shift = {name: values.cpu() for name, values in activation_shift(classifier, images, adversarial).items()}
    return {
        "shift": shift,
        "clean": clean,
        "adversarial": moved,
        "images": images.cpu(),
        "gradients": gradients.cpu(),
        "labels": labels.cpu(),
    }


def interval(values: Tensor) -> dict[str, float]:
    """The mean of samples with its 95 % interval, by the normal approximation."""
    mean, margin = values.mean().item(), 1.96 * values.std().item() / len(values) ** 0.5
    return {"mean": mean, "lower": mean - margin, "upper": mean + margin}


if __name__ == "__main__":
    with one_line_errors():
        main()
