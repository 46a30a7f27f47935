"""Publish a checkpoint folder on the Hub, with a model card that says what was measured.

    hf-robust-transfer publish --folder outputs/mine --repo_id you/mine --dry_run

A folder without a report of these very weights is evaluated first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ..data import DataArguments
from ..hub import UnreachableHub, check_access, files_to_publish, publish, read_facts
from ..hub.origin import license_of
from ..run_folder import check_checkpoint
from ..runs.evaluate import EvaluationArguments, evaluate_checkpoint
from .main import run_command
from .parsing import parse_arguments


@dataclass
class PublishingArguments:
    """What to publish, and where."""

    group: ClassVar[str] = "parameters that control publishing"

    folder: str = field(metadata={"help": "The checkpoint folder."})
    repo_id: str = field(metadata={"help": "The Hub repository, user/name; it is made where it does not exist."})
    private: bool = field(default=False, metadata={"help": "Make a new repository a private one."})
    revision: str = field(default="main", metadata={"help": "The branch; made where it does not exist."})
    commit_message: str = field(default="Publish model and model card", metadata={"help": "Of the one commit."})
    license: str | None = field(
        default=None,
        metadata={
            "help": "Of the weights, as a Hub identifier: apache-2.0, …; by default that of the robust source that they"
            " come from."
        },
    )
    token: str | None = field(default=None, metadata={"help": "Hub token; by default the one of `hf auth login`."})
    dry_run: bool = field(default=False, metadata={"help": "Show what would be uploaded, and upload nothing."})
    without_evaluation: bool = field(
        default=False, metadata={"help": "Do not evaluate a folder without a report; the card then claims no robustness."}
    )


def main(argv: Sequence[str]) -> None:
    """Parse, evaluate if need be, publish."""
    args, data_args, evaluation_args = parse_arguments(
        "hf-robust-transfer publish",
        [PublishingArguments, DataArguments, EvaluationArguments],
        "Publish a checkpoint folder on the Hub. Unless it holds a report of these very weights, it is evaluated first,"
        " with the options of hf-robust-transfer evaluate.",
        argv,
    )
    folder = Path(args.folder)
    check_checkpoint(folder, "--folder")
    try:
        check_access(args.repo_id, token=args.token)
    except UnreachableHub as error:
        if not args.dry_run:
            raise
        print(f"The Hub was not asked whether you may write there: {error}")
    facts = read_facts(folder)
    license_of(args.license, facts.origin)
    if facts.report is None and not args.without_evaluation:
        evaluation_args.output_dir = str(folder)
        evaluate_checkpoint(str(folder), data_args, evaluation_args, overwrite=True)
    if args.dry_run:
        for name, content in files_to_publish(folder, args.repo_id, license=args.license, token=args.token).items():
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
    run_command("publish")
