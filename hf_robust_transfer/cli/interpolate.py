"""The trade-off between clean and robust accuracy as a knob: models between two checkpoints, without training.

    hf-robust-transfer interpolate outputs/frozen outputs/lwf --output_dir outputs/between --choose knee

The weights between A (α = 0) and B (α = 1) are (1 − α) · A + α · B, where B was trained from A, or both from the same
weights and head. Each α is evaluated on validation images; a table, a figure and the chosen model are written.
"""

from collections.abc import Sequence

from ..data import DataArguments
from ..errors import UsageError
from ..runs.interpolate import InterpolationArguments, interpolate_checkpoints
from .main import run_command
from .options import HubArguments
from .parsing import as_flags, parse_arguments


def main(argv: Sequence[str]) -> None:
    """Parse, measure, write."""
    named = [word for word in argv[:2] if not word.startswith("-")]
    if len(named) < 2 and not {"-h", "--help"} & set(argv):
        raise UsageError("name two checkpoints first: hf-robust-transfer interpolate A B --output_dir …")
    hub, data_args, args = parse_arguments(
        "hf-robust-transfer interpolate A B",
        [HubArguments, DataArguments, InterpolationArguments],
        "Walk the weights from checkpoint A to checkpoint B, folders or Hub ids, both trained from the same weights and"
        " head: (1 - alpha) of A and alpha of B. Every alpha is evaluated on validation images, clean and under attack; a"
        " table, a figure and the chosen model are written. No training. Batch-norm statistics are kept where both models"
        " have the same, and measured anew on training images where they differ. A command that was stopped goes on where"
        " it was when it is started again with the same output folder.",
        argv[len(named) :],
    )
    interpolate_checkpoints(
        (named[0], named[1]),
        data_args,
        args,
        overwrite=args.overwrite_output_dir,
        command=["interpolate", *named, *as_flags(argv[2:])],
        **hub.hub_options,
    )


if __name__ == "__main__":
    run_command("interpolate")
