"""Publish a checkpoint folder on the Hub, with a model card that says what was measured.

    python recipes/publish.py --folder outputs/mine --repo_id you/mine --dry_run

A folder without a report of these very weights is evaluated first.
"""

from dataclasses import dataclass, field
from pathlib import Path

from hf_robust_transfer.cli.options import parse_arguments, run_recipe
from hf_robust_transfer.data import DataArguments
from hf_robust_transfer.hub import files_to_publish, publish, read_facts
from hf_robust_transfer.runs.evaluate import EvaluationArguments, evaluate_checkpoint


@dataclass
class PublishingArguments:
    """What to publish, and where."""

    folder: str = field(metadata={"help": "The checkpoint folder."})
    repo_id: str = field(metadata={"help": "The Hub repository, user/name; it is made where it does not exist."})
    private: bool = field(default=False, metadata={"help": "Make a new repository a private one."})
    revision: str = field(default="main", metadata={"help": "The branch; made where it does not exist."})
    commit_message: str = field(default="Publish model and model card", metadata={"help": "Of the one commit."})
    license: str | None = field(default=None, metadata={"help": "Of the weights, as a Hub identifier: apache-2.0, …"})
    token: str | None = field(default=None, metadata={"help": "Hub token; by default the one of `hf auth login`."})
    dry_run: bool = field(default=False, metadata={"help": "Show what would be uploaded, and upload nothing."})
    without_evaluation: bool = field(
        default=False, metadata={"help": "Do not evaluate a folder without a report; the card then claims no robustness."}
    )


def main() -> None:
    """Parse, evaluate if need be, publish."""
    args, data_args, evaluation_args = parse_arguments(
        [PublishingArguments, DataArguments, EvaluationArguments],
        "Publish a checkpoint folder on the Hub. Unless it holds a report of these very weights, it is evaluated first,"
        " with the options of recipes/evaluate.py.",
    )
    folder = Path(args.folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"--folder {folder} holds no checkpoint: it has no config.json")
    if read_facts(folder).report is None and not args.without_evaluation:
        evaluation_args.output_dir = str(folder)
        evaluate_checkpoint(str(folder), data_args, evaluation_args, overwrite=True)
    if args.dry_run:
        for name, content in files_to_publish(folder, args.repo_id, license=args.license).items():
            print(f"{len(content) if isinstance(content, bytes) else content.stat().st_size:>12,} bytes  {name}")
        print(f"Nothing was uploaded to {args.repo_id}.")
        return
    commit = publish(
        folder,
        args.repo_id,
        token=args.token,
        private=args.private,
        revision=args.revision,
        commit_message=args.commit_message,
        license=args.license,
    )
    print(f"published: {commit.commit_url}")


if __name__ == "__main__":
    run_recipe(main)
