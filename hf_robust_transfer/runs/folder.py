"""A run's output folder: one run at a time, that goes on where it was stopped, and only as the same run."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from ..atomic import write_json
from ..errors import UsageError
from ..run_folder import (
    LOCK_NAME,
    RECORD_NAME,
    RUN_NAME,
    clear,
    is_complete,
    is_finished,
    is_of_a_run,
    last_checkpoint,
    read_json,
    remove_if_empty,
    tidy,
)
from ..training import RobustTrainingArguments


@contextmanager
def claimed_output_dir(
    args: RobustTrainingArguments, *, overwrite: bool = False, uses: Sequence[str | None] = ()
) -> Iterator[str | None]:
    """Hold a run's output folder against other runs, and find where to resume. Changes nothing of what is in it.

    Args:
        args: the run's arguments.
        overwrite: `begin` will delete the checkpoints and results of an earlier run.
        uses: models that the run starts from, which it must not delete.

    Yields:
        The checkpoint to resume from: the one asked for, else the last complete one in the folder, else None.

    Raises:
        UsageError: another run holds the folder, it has a finished run, ``resume_from_checkpoint`` is no complete
            checkpoint, or overwriting would delete what the run needs.
    """
    output_dir = Path(args.output_dir or "")
    with locked(output_dir, args.process_index, args.world_size):
        yield _where_to_resume(args, output_dir, overwrite, uses)


@contextmanager
def locked(folder: Path, process_index: int, processes: int) -> Iterator[None]:
    """Hold an output folder, which need not exist, against others; where nothing comes to be in it, it goes again.

    Args:
        folder: to be held, by the first of the processes.
        process_index: of this one.
        processes: of this run; all of them must come here.

    Raises:
        UsageError: another run holds it, or it cannot be made or written.
    """
    lock, refused = FileLock(folder / LOCK_NAME), [""]
    new = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    if process_index == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            refused = [f"--output_dir {folder} is in use by another command: wait until it ends, or choose another folder"]
        except OSError as error:
            refused = [f"--output_dir {folder} cannot be made or written: {error.strerror or error}"]
    if processes > 1:
        broadcast_object_list(refused)
    if refused[0]:
        raise UsageError(refused[0])
    try:
        yield
    finally:
        if process_index == 0:
            (folder / LOCK_NAME).unlink(missing_ok=True)
            lock.release()
            remove_if_empty(new)


def _where_to_resume(
    args: RobustTrainingArguments, output_dir: Path, overwrite: bool, uses: Sequence[str | None]
) -> str | None:
    asked = str(args.resume_from_checkpoint or "")
    explicit = asked if asked.lower() not in ("", "true", "false") else None
    if overwrite:
        for used in (*uses, explicit):
            if used is not None and is_of_a_run(Path(used), output_dir):
                raise UsageError(
                    f"--overwrite_output_dir would delete {used}, which this run needs: choose another --output_dir"
                )
    elif is_finished(output_dir):
        raise UsageError(
            f"--output_dir {output_dir} holds a finished run: choose another folder, or start anew with"
            " --overwrite_output_dir"
        )
    if explicit is not None and not is_complete(Path(explicit)):
        raise UsageError(f"--resume_from_checkpoint {explicit} is not a complete checkpoint folder")
    if explicit is not None or overwrite or asked.lower() == "false":
        return explicit
    found: list[Any] = [last_checkpoint(output_dir)]
    if args.world_size > 1:
        broadcast_object_list(found)  # all processes resume from what the first one found
    if found[0] is not None and args.process_index == 0:
        print(f"resuming from {found[0]}; to start anew, use --overwrite_output_dir", flush=True)
    return None if found[0] is None else str(found[0])


def begin(args: RobustTrainingArguments, identity: dict[str, Any], resume_from: str | None, *, overwrite: bool) -> None:
    """Note in the output folder what defines this run or, where it goes on, make sure that it is the same.

    Args:
        args: the run's arguments.
        identity: all that defines the run.
        resume_from: a checkpoint to go on from.
        overwrite: first delete the checkpoints, results and model of an earlier run.

    Raises:
        UsageError: the folder has a model or checkpoints of another run, or ``resume_from`` is of another run.
    """
    output_dir = Path(args.output_dir or "")
    identity = json.loads(json.dumps(identity, default=str))
    with args.main_process_first(desc="checking the output folder"):
        noted = None if overwrite else _identity_of(output_dir)
        if noted is not None:
            what = f"--output_dir {output_dir} has checkpoints of a run with"
            _check_same(identity, noted, what, "--overwrite_output_dir")
        if resume_from is not None:
            checkpoint = Path(resume_from)
            places = [checkpoint, checkpoint.parent] if is_of_a_run(checkpoint, output_dir) else [checkpoint]
            noted = next((found for place in places if (found := read_json(place / RUN_NAME))), None)
            if noted is None:
                raise UsageError(
                    f"--resume_from_checkpoint {resume_from} does not say which run it is of (it has no {RUN_NAME}):"
                    " start from its weights, with --model_name_or_path"
                )
            what = f"--resume_from_checkpoint {resume_from} is of a run with"
            _check_same(identity, noted, what, "--resume_from_checkpoint false")
        if args.should_save:
            output_dir.mkdir(parents=True, exist_ok=True)
            if overwrite:
                clear(output_dir)
            tidy(output_dir)
            write_json(output_dir / RUN_NAME, identity)


def _identity_of(output_dir: Path) -> dict[str, Any] | None:
    """What defines the run that left something worth going on from; a first attempt that did not binds nobody."""
    left = last_checkpoint(output_dir) is not None or (output_dir / RECORD_NAME).is_file()
    return read_json(output_dir / RUN_NAME) if left else None


def _check_same(identity: dict[str, Any], noted: dict[str, Any], what: str, instead: str) -> None:
    for name in sorted(noted.keys() & identity.keys()):
        if noted[name] != identity[name]:
            shown = f"--{name} {noted[name]}, not {identity[name]}"
            if name == "training_images":
                shown = "other training images, or other labels of them"
            raise UsageError(f"{what} {shown}: choose another folder, or start anew with {instead}")
