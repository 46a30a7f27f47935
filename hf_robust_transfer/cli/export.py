"""Write a checkpoint to one file that runs without this package and `transformers`, and check it.

    hf-robust-transfer export --model_name_or_path outputs/mine --output outputs/mine

The file takes float32 pixels (B, C, H, W) in [0, 1], for any B, and gives logits: the normalisation is inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ..errors import UsageError
from ..hub.exporting import CHECKED_BATCHES, FORMATS, export_classifier, export_file
from ..modeling import PixelClassifier, load_model
from .main import run_command
from .options import SourceArguments
from .parsing import parse_arguments


@dataclass
class ExportArguments:
    """Where to write what."""

    group: ClassVar[str] = "parameters that control the export"

    output: str = field(
        metadata={
            "help": "A file that ends in .onnx or .pt2, or a folder to write model.onnx or model.pt2 to. What lies in the"
            " checkpoint's own folder is published with it."
        }
    )
    format: str = field(
        default="onnx",
        metadata={
            "help": "onnx, which takes pip install 'hf-robust-transfer[export]', or torch, for torch.export.",
            "choices": [*FORMATS],
        },
    )


def main(argv: Sequence[str]) -> None:
    """Parse, load, export."""
    source, args = parse_arguments(
        "hf-robust-transfer export",
        [SourceArguments, ExportArguments],
        "Write a checkpoint to one file that runs without this package, from float32 pixels (B, C, H, W) in [0, 1] to"
        " logits. Before it is there, it is run and compared with the model.",
        argv,
    )
    if source.model_name_or_path is None:
        raise UsageError("--model_name_or_path is missing: a checkpoint folder or a Hub id")
    export_file(args.output, args.format)  # before the model is loaded
    loaded = load_model(source.model_name_or_path, revision=source.model_revision, **source.hub_options)
    exported = export_classifier(PixelClassifier(*loaded), args.output, args.format)
    batches = ", ".join(map(str, CHECKED_BATCHES))
    print(
        f"wrote {exported.file}: on batches of {batches} random images its logits differ from the model's by at most"
        f" {exported.difference:.1g} of the largest"
    )


if __name__ == "__main__":
    run_command("export")
