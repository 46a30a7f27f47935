"""Evaluate a checkpoint's robustness, and write a report that can be believed.

    accelerate launch -m hf_robust_transfer.cli.evaluate --model_name_or_path outputs/mine --attacks pgd-20 autoattack

By default the data and the threat model are those that the checkpoint was trained for.
"""

from collections.abc import Sequence

from ..data import DataArguments
from ..errors import UsageError
from ..runs.evaluate import EvaluationArguments, evaluate_checkpoint
from .main import run_command
from .options import CheckpointArguments
from .parsing import parse_arguments


def main(argv: Sequence[str]) -> None:
    """Parse, evaluate."""
    checkpoint, data_args, args = parse_arguments(
        "hf-robust-transfer evaluate",
        [CheckpointArguments, DataArguments, EvaluationArguments],
        "Evaluate a checkpoint's robustness. Give flags, after a YAML or JSON file of them if you like. An evaluation that"
        " was stopped goes on where it was when it is started again with the same output folder.",
        argv,
    )
    if checkpoint.model_name_or_path is None:
        raise UsageError("--model_name_or_path is missing: a checkpoint folder or a Hub id")
    evaluate_checkpoint(
        checkpoint.model_name_or_path,
        data_args,
        args,
        **checkpoint.checkpoint_options,
        overwrite=checkpoint.overwrite_output_dir,
        **checkpoint.hub_options,
    )


if __name__ == "__main__":
    run_command("evaluate")
