"""Evaluate a checkpoint's robustness, and write a report that can be believed.

    accelerate launch recipes/evaluate.py --model_name_or_path outputs/mine --attacks pgd-20 autoattack

By default the data and the threat model are those that the checkpoint was trained for.
"""

from hf_robust_transfer.cli.options import CheckpointArguments, parse_arguments, run_recipe
from hf_robust_transfer.data import DataArguments
from hf_robust_transfer.runs.evaluate import EvaluationArguments, evaluate_checkpoint


def main() -> None:
    """Parse, evaluate."""
    checkpoint, data_args, args = parse_arguments(
        [CheckpointArguments, DataArguments, EvaluationArguments],
        "Evaluate a checkpoint's robustness. Give flags, after a YAML or JSON file of them if you like. An evaluation that"
        " was stopped goes on where it was when it is started again with the same output folder.",
    )
    if checkpoint.model_name_or_path is None:
        raise ValueError("--model_name_or_path is missing: a checkpoint folder or a Hub id")
    evaluate_checkpoint(
        checkpoint.model_name_or_path,
        data_args,
        args,
        revision=checkpoint.model_revision,
        overwrite=checkpoint.overwrite_output_dir,
        **checkpoint.hub_options,
    )


if __name__ == "__main__":
    run_recipe(main)
