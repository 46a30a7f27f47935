"""What lies in a run's folder: every file name, and what each file is.

One rule holds for all of them: a file is evidence only for the weights and the configuration that it was made with.
"""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from .errors import UsageError

CONFIG_NAME = "config.json"
PROCESSOR_NAME = "preprocessor_config.json"
WEIGHTS_NAME = "model.safetensors"
WEIGHTS_INDEX_NAME = "model.safetensors.index.json"  # where the weights are in several files
ONNX_NAME, TORCH_NAME = "model.onnx", "model.pt2"  # the model, exported
ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"  # peft's
ADAPTER_FOLDER = "adapter"  # with these two, beside the model that the adapter was merged into
CARD_NAME = "README.md"
RUN_NAME = "run.json"  # what defines the run; in its checkpoints, too
AVERAGE_NAME = "averaging.safetensors"  # in a checkpoint whose model is an average: what training goes on from
RECORD_NAME = "training.json"  # how the model here was made
RESULTS_NAME = "all_results.json"
FINISHED_NAME = "finished.json"  # written last of all
STATE_NAME = "trainer_state.json"  # written last in a checkpoint
ARGUMENTS_NAME = "training_args.bin"  # pickled, with the Hub token
REPORT_NAME, REPORT_TEXT_NAME = "robustness.json", "robustness.md"
CURVE_NAME, EXAMPLES_NAME = "robustness_curve.png", "robustness_examples.png"
COMPARISON_NAME = "comparison.json"  # the quickstart's table
INTERPOLATION_NAME, INTERPOLATION_TEXT_NAME = "interpolation.json", "interpolation.md"  # the models between two
INTERPOLATION_PICTURE_NAME = "interpolation.png"
TEACHERS_NAME, TEACHERS_TEXT_NAME = "teachers.json", "teachers.md"  # a comparison of them
LOCK_NAME = ".lock"
PROGRESS_NAME = "evaluation_progress"  # a folder with the finished chunks of an evaluation

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# A model and all that describes or accompanies it.
_OF_A_MODEL = re.compile(
    r"model.*\.safetensors|pytorch_model.*\.bin(\.index\.json)?|"
    + "|".join(
        map(
            re.escape,
            (
                *(CONFIG_NAME, PROCESSOR_NAME, WEIGHTS_INDEX_NAME, RECORD_NAME, ONNX_NAME, TORCH_NAME),
                *(ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME),
                *(REPORT_NAME, REPORT_TEXT_NAME, CURVE_NAME, EXAMPLES_NAME),
            ),
        )
    )
)
# What else is of one run.
_OF_A_RUN = re.compile(
    r"\w+_results\.json|interpolation\.(json|md|png)|"
    + "|".join(map(re.escape, (STATE_NAME, RUN_NAME, FINISHED_NAME, COMPARISON_NAME, ARGUMENTS_NAME)))
)
# Of a checkpoint, what a training resumes from.
_FOR_RESUMING = re.compile(
    r"model[^/]*\.safetensors(\.index\.json)?|([\w.-]+/)?adapter_(config\.json|model\.safetensors)"
    r"|(carried_\d+|averaging)\.safetensors|latest"
    r"|optimizer\.(pt|bin)|scheduler\.pt|scaler\.pt|rng_state(_\d+)?\.pth"
    r"|((pytorch_model_fsdp|optimizer)_\d+|global_step\d+)/[\w.-]+|"
    + "|".join(map(re.escape, (CONFIG_NAME, PROCESSOR_NAME, STATE_NAME, RUN_NAME)))
)
_LEFT_BEHIND = re.compile(r"_(saving|publishing)-.*|.*\.part")


def check_writable(folder: str | Path, flag: str) -> None:
    """Make sure that a folder can be made and written to, before the work whose results it is for; nothing is made yet.

    Args:
        folder: that will be written to.
        flag: the option that named it, for errors.

    Raises:
        UsageError: it is a file, or it cannot be written to.
    """
    if Path(folder).exists() and not Path(folder).is_dir():
        raise UsageError(f"{flag} {folder} is a file: choose a new or an empty folder")
    above = next(place for place in (Path(folder).absolute(), *Path(folder).absolute().parents) if place.exists())
    try:
        TemporaryFile(dir=above).close()
    except OSError:
        raise UsageError(f"{flag} {folder} cannot be made in {above}: choose another folder") from None


def check_checkpoint(folder: str | Path, flag: str = "") -> None:
    """Make sure that a folder holds a whole model.

    Args:
        folder: that is to be published.
        flag: the option that named it, for errors.

    Raises:
        UsageError: it has no configuration, as with an adapter of peft alone.
    """
    if not Path(folder, CONFIG_NAME).is_file():
        alone = Path(folder, ADAPTER_CONFIG_NAME).is_file()
        reason = "an adapter of peft alone: save it anew with merge_adapter=True" if alone else f"no {CONFIG_NAME}"
        raise UsageError(f"{flag} {folder} holds no checkpoint: it has {reason}".strip())


def remove_if_empty(folders: Iterable[Path]) -> None:
    """Delete those of some folders, the innermost first, that are there with nothing in them."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def step_of(folder: Path) -> int | None:
    """The step of a checkpoint's folder, None for another one.

    Example:
        >>> step_of(Path("outputs/mine/checkpoint-40")), step_of(Path("outputs/mine"))
        (40, None)
    """
    match = _CHECKPOINT.fullmatch(folder.name)
    return None if match is None else int(match[1])


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end, which the trainer's state marks."""
    return "global_step" in (read_json(checkpoint / STATE_NAME) or {})


def last_checkpoint(folder: Path) -> Path | None:
    """The latest of a run's complete checkpoints."""
    complete = [path for path in folder.glob("checkpoint-*") if step_of(path) is not None and is_complete(path)]
    return max(complete, key=lambda path: step_of(path) or 0, default=None)


def is_finished(folder: Path) -> bool:
    """Whether a run went to its end here, its evaluation and its publishing included."""
    if read_json(folder / RESULTS_NAME) is None:
        return False
    # Runs of 0.1.0 have no mark but their results, and their run.json does not say what images they trained on.
    return (folder / FINISHED_NAME).is_file() or "training_images" not in (read_json(folder / RUN_NAME) or {})


def clear(folder: Path) -> None:
    """Delete the checkpoints, results and model of a run, and all that describes them; other files stay."""
    for path in folder.iterdir() if folder.is_dir() else ():
        adapter = path.name == ADAPTER_FOLDER and (path / ADAPTER_CONFIG_NAME).is_file()
        if step_of(path) is not None or path.name == PROGRESS_NAME or adapter:
            shutil.rmtree(path)
        elif _OF_A_RUN.fullmatch(path.name) or is_of_a_model(path.name):
            path.unlink()
    tidy(folder)


def tidy(folder: Path) -> None:
    """Delete what a killed run left half-written."""
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        half_written = step_of(path) is not None and not is_complete(path)
        if half_written or _LEFT_BEHIND.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if half_written:  # then training did not end here, and a record that says so is of an earlier time
            (folder / RECORD_NAME).unlink(missing_ok=True)


def is_of_a_model(name: str) -> bool:
    """Whether a file of this name belongs to the model of its folder, and with it to what is published.

    Example:
        >>> is_of_a_model("model-00001-of-00002.safetensors"), is_of_a_model("robustness.json"), is_of_a_model("run.json")
        (True, True, False)
    """
    return _OF_A_MODEL.fullmatch(name) is not None


def is_for_resuming(path: str) -> bool:
    """Whether a file at this path in a checkpoint is needed to resume from it; the pickled arguments, for one, are not.

    Example:
        >>> is_for_resuming("optimizer.pt"), is_for_resuming("training_args.bin"), is_for_resuming(".env")
        (True, False, False)
    """
    return _FOR_RESUMING.fullmatch(path) is not None


def is_export(name: str) -> bool:
    """Whether a file of this name may be a model that was exported.

    Example:
        >>> is_export("clothes.onnx"), is_export("onnx/model.onnx")
        (True, False)
    """
    return "/" not in name and Path(name).suffix in (Path(ONNX_NAME).suffix, Path(TORCH_NAME).suffix)


def results_name(split: str) -> str:
    """The file with the metrics of one part of a run.

    Example:
        >>> results_name("train")
        'train_results.json'
    """
    return f"{split}_results.json"


def is_of_a_run(path: Path, folder: Path) -> bool:
    """Whether `clear` would delete a file or folder, or something in it."""
    path, folder = path.resolve(), folder.resolve()
    inside = path.relative_to(folder).parts if path.is_relative_to(folder) else None
    return inside is not None and (not inside or _CHECKPOINT.fullmatch(inside[0]) is not None)


def read_json(file: Path) -> dict[str, Any] | None:
    """What a JSON file holds, None where it is missing or half-written."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
