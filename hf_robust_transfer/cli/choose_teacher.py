"""Which teacher to distil from, found out on one's own images.

    hf-robust-transfer choose-teacher --teachers outputs/a outputs/b --model_name_or_path cifar_resnet18 \\
        --dataset_name my/images --output_dir outputs/teachers
"""

from collections.abc import Sequence

from ..data import DataArguments
from ..errors import UsageError
from ..runs.choose_teacher import ChoiceArguments, compare_teachers
from .main import run_command
from .options import ArchitectureArguments
from .parsing import parse_arguments


def main(argv: Sequence[str]) -> None:
    """Parse, train a pilot, attack, compare."""
    student, data, args = parse_arguments(
        "hf-robust-transfer choose-teacher",
        [ArchitectureArguments, DataArguments, ChoiceArguments],
        "Compare teachers for adversarial distillation on your images: their clean and robust accuracy, how unsure they are"
        " of a student's adversarial images, and the share of these that move them as an attack of their own does. A"
        " teacher that is not moved has nothing to teach, however robust it is. --model_name_or_path is the student: an"
        " architecture, which is trained shortly as a pilot, or a checkpoint for these labels.",
        argv,
    )
    if student.model_name_or_path is None:
        raise UsageError("--model_name_or_path is missing: the student, a timm architecture or a checkpoint folder")
    name, options = student.model_name_or_path, student.defining_options
    compare_teachers(name, student.load, options, data, args, **student.hub_options)


if __name__ == "__main__":
    run_command("choose_teacher")
