"""One row of the table of bad input: what is done, and what the one line about it says.

**How to add rows.** Each area has a file of its own beside this one, ``rows_<area>.py``, with a list ``ROWS``; the test in
`test_bad_input.py` collects all of them. A row is a command line or a Python call that must be refused::

    from row import Row

    def empty_class(here, places):
        (here / "pets" / "cat").mkdir(parents=True)

    ROWS = [
        Row("negative learning rate", "pretrain <pretrain> --learning_rate -1", "--learning_rate -1"),
        Row("a class without images", "pretrain <tiny> --train_dir pets --output_dir run", "cat", make=empty_class),
        Row("steps below 0", lambda here, places: pgd(…, steps=-1), "steps"),
    ]

What is asserted of every row: it ends with status 1 (a call: with a `UsageError`) and one line ``error: …`` that has all
of the words in it, no traceback is shown, and neither the row's own folder nor any shared one has changed: nothing was
written, not even an empty output folder. Words are best the flag with its value, and what to do instead.

Each row runs in a fresh empty folder, which is the working directory; ``make`` fills it first. In a command line,
``<name>`` stands for one of the places below. All command lines run once more in processes of their own in the slow test,
so that they may depend on nothing else.

Keep rows cheap: most are refused before data or a model are loaded. There are hundreds of them.
"""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Places = Mapping[str, Path]  # the shared folders: see `folders` in test_bad_input.py

# Command lines that are right: the test makes sure that they run to their end. Rows add what is wrong, and the last of two
# values for one flag counts.
GOOD = {
    # an untrained model for 8×8 images
    "tiny": "--model_name_or_path convnext_tiny --image_size 8"
    """ --model_args '{"patch_size": 1, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}'""",
    # a short training
    "short": "--dataset_name <images> --output_dir run --max_steps 1 --per_device_train_batch_size 16"
    " --eval_attack_steps 1 --disable_tqdm true --report_to none --feature_cache_dir features --use_cpu",
    "pretrain": "<tiny> <short>",
    "finetune": "--model_name_or_path <model> <short>",
    "evaluate": "--model_name_or_path <model> --dataset_name <images> --output_dir report --attacks fgsm"
    " --self_check_samples 0 --curve_samples 0 --use_cpu",
    "publish": "--folder <model> --repo_id me/mine --dataset_name <images> --attacks fgsm --self_check_samples 0"
    " --curve_samples 0 --use_cpu --dry_run",
    "export": "--model_name_or_path <model> --output exported --format torch",
    "import-checkpoint": "--file <weights>/weights.pt --architecture convnext_tiny --image_size 8 --output_dir imported"
    """ --model_args '{"patch_size": 1, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}' --labels 0 1 2 3 4 5 6 7 8 9""",
}


@dataclass(frozen=True)
class Row:
    """Something that a user may do, and the words of the one line that refuses it.

    Args:
        name: what is wrong about it; with the area, the test's name.
        act: a command line (``"pretrain --eps 8"``) or a function of the row's own folder and the shared ones.
        words: what the line has in it, each of them; ``<name>`` stands for a place here, too.
        make: fills the row's own folder before.
    """

    name: str
    act: str | Callable[[Path, Places], Any]
    words: str | tuple[str, ...]
    make: Callable[[Path, Places], Any] | None = None


def filled(text: str, places: Places) -> str:
    """A text with every ``<name>`` replaced: by a good command line of that name, or by a shared folder."""
    for name in [*GOOD, *GOOD]:  # twice: some are inside others
        text = text.replace(f"<{name}>", GOOD[name])
    for name, place in places.items():
        text = text.replace(f"<{name}>", str(place))
    return text


def arguments(line: str, places: Places) -> list[str]:
    """A command line as its words."""
    return shlex.split(filled(line, places))
