"""The command ``hf-robust-transfer``, and how each of its commands is started."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from ..errors import UsageError

COMMANDS = {
    "finetune": "transfer a robust source to your own images; without arguments, the quickstart",
    "pretrain": "train a source, naturally or adversarially",
    "choose-teacher": "compare teachers for a student on your images, before you distil",
    "evaluate": "attack a checkpoint, and report what it withstands",
    "interpolate": "trade clean for robust accuracy along the way between two checkpoints, without training",
    "publish": "put a checkpoint on the Hub, with a model card that says what was measured",
    "export": "write a checkpoint to one ONNX file, from pixels to logits",
    "import-checkpoint": "turn a PyTorch file from elsewhere into a checkpoint folder",
    "sources": "list robust checkpoints of others that have a name here, and import the file of one",
    "cache": "show the features that are kept for later runs, and delete them",
    "quickstart": "the embedded example: six transfers between handwritten digits",
}


def main() -> None:
    """The command ``hf-robust-transfer COMMAND …``."""
    name, *argv = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS)) + 2
        print("usage: hf-robust-transfer COMMAND [options.yaml] [--option value ...]\n\ncommands:")
        print("\n".join(f"  {command:<{width}}{summary}" for command, summary in COMMANDS.items()))
        print("\n`hf-robust-transfer COMMAND --help` explains a command. On several GPUs:")
        print("  accelerate launch -m hf_robust_transfer.cli.finetune …")
    elif name == "--version":
        print(f"hf-robust-transfer {version('hf-robust-transfer')}")
    elif name not in COMMANDS:
        sys.exit(f"error: {name} is no command: use {', '.join(COMMANDS)}")
    else:
        run_command(name, argv)


def run_command(name: str, argv: Sequence[str] | None = None) -> None:
    """Run one command; what a user may read in one line becomes ``error: …`` and status 1, anything else its traceback.

    Args:
        name: one of `COMMANDS`.
        argv: its arguments, by default the program's.
    """
    with one_line_errors():
        import_module(f".{name.replace('-', '_')}", __package__).main(list(sys.argv[1:] if argv is None else argv))
    from torch import distributed

    # A process that ends with its group alive may be aborted by the group's threads.
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with ``error: …`` and status 1 on what a user may read in one line."""
    try:
        yield
    except (UsageError, FloatingPointError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")  # also where a name in it has line breaks


def run_script(file: str) -> None:
    """Run the command that a script is named after.

    Args:
        file: the script's ``__file__``. Python looks for modules in its folder first; there, `recipes/evaluate.py` would
            hide the library of that name, so the folder is taken off the path.
    """
    script = Path(file).resolve()
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != script.parent]
    run_command(script.stem.replace("_", "-"))
