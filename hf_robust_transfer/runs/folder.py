"""A run's output folder: claiming it, resuming in it, clearing it."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from ..errors import UsageError
from ..training import RobustTrainingArguments

_FINISHED = "all_results.json"  # written last
_CHECKPOINT = re.compile(r"checkpoint-\d+")
_RESULT = re.compile(r"\w+_results\.json|trainer_state\.json|run\.json|training\.json|comparison\.json|model\.safetensors")
# Options with which a stopped run may go on.
_MAY_CHANGE = (
    *("num_train_epochs", "per_device_eval_batch_size", "logging_steps", "save_strategy", "save_total_limit"),
    *("cache_features", "feature_cache_dir", "feature_cache_limit"),
)


def claim_output_dir(
    args: RobustTrainingArguments, *, overwrite: bool = False, uses: Sequence[str | None] = ()
) -> str | None:
    """Make sure that a run may use its output folder, and find where to resume. Changes nothing yet.

    Args:
        args: the run's arguments.
        overwrite: `clear_output_dir` will delete the checkpoints and results of an earlier run.
        uses: models that the run starts from, which it must not delete.

    Returns:
        The checkpoint to resume from: the one asked for, else the last complete one in the folder, else None.

    Raises:
        ValueError: the folder holds a finished run, ``resume_from_checkpoint`` is no complete checkpoint, or overwriting
            would delete what the run needs.
    """
    output_dir = Path(args.output_dir or "")
    asked = str(args.resume_from_checkpoint or "")
    explicit = asked if asked.lower() not in ("", "true", "false") else None
    if overwrite:
        for used in (*uses, explicit):
            if used is not None and _would_be_deleted(Path(used), output_dir):
                raise UsageError(
                    f"--overwrite_output_dir would delete {used}, which this run needs: choose another --output_dir"
                )
        return explicit
    if (output_dir / _FINISHED).exists():
        raise UsageError(
            f"--output_dir {output_dir} holds a finished run: choose another folder, or start anew with"
            " --overwrite_output_dir"
        )
    if explicit is not None:
        if not _is_complete(Path(explicit)):
            raise UsageError(f"--resume_from_checkpoint {explicit} is not a complete checkpoint folder")
        return explicit
    if asked.lower() == "false":
        return None
    complete = [path for path in output_dir.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name) and _is_complete(path)]
    found: list[Any] = [str(max(complete, key=lambda path: int(path.name.split("-")[1]))) if complete else None]
    if args.world_size > 1:
        broadcast_object_list(found)  # all processes resume from what the first one found
    if found[0] is not None and args.process_index == 0:
        print(f"resuming from {found[0]}; to start anew, use --overwrite_output_dir", flush=True)
    return None if found[0] is None else str(found[0])


def _would_be_deleted(path: Path, output_dir: Path) -> bool:
    path, output_dir = path.resolve(), output_dir.resolve()
    inside = path.relative_to(output_dir).parts if path.is_relative_to(output_dir) else None
    return inside is not None and (not inside or _CHECKPOINT.fullmatch(inside[0]) is not None)


def _is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end, which the trainer's state marks."""
    try:
        return "global_step" in json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False


def clear_output_dir(args: RobustTrainingArguments) -> None:
    """Delete the checkpoints, results and model of an earlier run in the output folder; other files stay."""
    output_dir = Path(args.output_dir or "")
    with args.main_process_first(desc="clearing the output folder"):
        if args.should_save and output_dir.is_dir():
            for path in output_dir.iterdir():
                if _CHECKPOINT.fullmatch(path.name):
                    shutil.rmtree(path)
                elif _RESULT.fullmatch(path.name):
                    path.unlink()


def check_same_run(args: RobustTrainingArguments, options: dict[str, Any]) -> None:
    """Note in the output folder what defines this run or, where it is noted already, make sure that it is the same.

    Args:
        args: the run's arguments; of them, all that `RobustTrainingArguments` adds to the base class count.
        options: what else defines the run: its model and its data.

    Raises:
        ValueError: the folder has the checkpoints of another run.
    """
    own = [name for name in RobustTrainingArguments.__annotations__ if name not in _MAY_CHANGE]
    options = {**options, "seed": args.seed, **{name: getattr(args, name) for name in own}}
    options = json.loads(json.dumps(options, default=str))
    file = Path(args.output_dir or "", "run.json")
    with args.main_process_first(desc="checking the output folder"):
        if file.is_file():
            noted = json.loads(file.read_text())
            for name in sorted(noted.keys() & options.keys()):
                if noted[name] != options[name]:
                    raise UsageError(
                        f"--output_dir {file.parent} has checkpoints of a run with --{name} {noted[name]}, not"
                        f" {options[name]}:"
                        " choose another folder, or start anew with --overwrite_output_dir"
                    )
        elif args.should_save:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(options, indent=2) + "\n")
