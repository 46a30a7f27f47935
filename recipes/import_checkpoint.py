"""Turn an external PyTorch checkpoint into a folder that `from_pretrained` loads.

    python recipes/import_checkpoint.py --file robust.pt --architecture cifar_resnet18 --labels cat dog … \\
        --output_dir outputs/source
"""

from dataclasses import dataclass, field
from pathlib import Path

from hf_robust_transfer.modeling import import_checkpoint
from hf_robust_transfer.running import parse_arguments, parse_json_object, run_recipe


@dataclass
class ImportArguments:
    """What the file holds, and where to write the folder."""

    file: str = field(metadata={"help": "A .pt, .pth or .safetensors file; only weights are ever loaded from it."})
    architecture: str = field(metadata={"help": "The timm architecture that the weights belong to, like cifar_resnet18."})
    labels: list[str] = field(metadata={"help": "The names of its classes, in their order."})
    output_dir: str = field(metadata={"help": "The folder to write."})
    mean: list[float] = field(
        default_factory=lambda: [0.0, 0.0, 0.0], metadata={"help": "Its normalisation of [0, 1] pixels."}
    )
    std: list[float] = field(default_factory=lambda: [1.0, 1.0, 1.0], metadata={"help": "Likewise."})
    model_args: str | None = field(default=None, metadata={"help": "Arguments of the architecture as JSON."})
    image_size: int | None = field(default=None, metadata={"help": "Side of its input in pixels; by default its own."})


def main() -> None:
    """Parse, import, save."""
    (args,) = parse_arguments([ImportArguments], "Turn an external PyTorch checkpoint into a checkpoint folder.")
    model, processor = import_checkpoint(
        args.file,
        architecture=args.architecture,
        id2label=dict(enumerate(args.labels)),
        model_args=parse_json_object(args.model_args, "--model_args"),
        mean=tuple(args.mean),
        std=tuple(args.std),
        image_size=args.image_size,
    )
    model.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)
    print(f"wrote {Path(args.output_dir).resolve()}: {args.architecture} with {len(args.labels)} labels")


if __name__ == "__main__":
    run_recipe(main)
