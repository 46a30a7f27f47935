"""A teacher in the terms of a student: at the student's pixels, and with the student's labels."""

from collections import Counter
from collections.abc import Sequence

from transformers import BaseImageProcessor
from transformers.utils import logging

from ..data.pixels import unnamed
from ..errors import UsageError, listed
from ..modeling.classifier import PixelClassifier
from ..modeling.input_size import model_size, refusal
from ..modeling.processors import image_sizes

logger = logging.get_logger(__name__)


def at_pixels_of(teacher: PixelClassifier, processor: BaseImageProcessor) -> PixelClassifier:
    """A teacher that is shown a student's images, and sees them at the size that its own image processor makes.

    They are resized inside the graph by `hf_robust_transfer.modeling.resizing.resized`, so that gradients flow to the
    student's pixels and what is within ε there is within ε for the teacher. Each normalises by itself. A teacher that sees
    fewer pixels than the student is told of.

    Args:
        teacher: with its own image processor.
        processor: the student's.

    Raises:
        UsageError: the teacher does not take the images that its own processor makes.
    """
    own, given = image_sizes(teacher.processor), image_sizes(processor)
    fixed = model_size(teacher.model)
    size = next(iter(own)) if len(own) == 1 else fixed
    if size is None or own == given == {fixed}:
        return teacher
    if fixed not in (None, size) and (refused := refusal(teacher.model, size)) is not None:
        raise UsageError(
            f"the teacher's image processor makes images of {size[0]} × {size[1]} pixels, which the teacher does not take"
            f" ({refused}): load both with load_model"
        )
    height, width = max(given)
    if size[0] * size[1] < height * width:
        logger.warning(
            f"The teacher sees {100 * size[0] * size[1] / (height * width):.2g} % of the pixels that the student sees:"
            f" images of {height} × {width} are resized to its {size[0]} × {size[1]}. Use a teacher of larger input or,"
            f" where it takes images of any size, load it with load_model(…, image_size={height})"
        )
    return teacher if given == {size} else teacher.view(size=size, columns=teacher.columns)


def label_columns(teacher: Sequence[str], student: Sequence[str]) -> list[int]:
    """Which of a teacher's logits are those of a student's labels: the ones of the same names.

    To select them before the softmax is to condition the teacher on the student's classes.

    Args:
        teacher: its labels, in the order of its logits; there may be more of them, in any order.
        student: the student's labels.

    Returns:
        The teacher's column of each label of the student.

    Raises:
        UsageError: the teacher lacks a label, has more than one of that name, or its labels or the student's have no names
            and are not the same ones.

    Example:
        >>> label_columns(["ant", "bee", "cow", "dog"], ["dog", "bee"])
        [3, 1]
    """
    if list(teacher) == list(student):
        return list(range(len(student)))
    nameless = [whose for whose, labels in (("teacher", teacher), ("student", student)) if unnamed(labels)]
    if nameless:
        raise UsageError(
            f"the labels of the {' and the '.join(nameless)} have no names (LABEL_0, …), so that nothing says which of the"
            f" teacher's {len(teacher)} are the student's {len(student)}: load them with id2label=. {_WAY}"
        )
    missing = [name for name in student if name not in teacher]
    if missing:
        raise UsageError(
            f"the teacher does not know the labels {listed(missing)}, only {listed(teacher)} (names are compared to the"
            f" letter): {_WAY}"
        )
    for whose, labels in (("teacher", teacher), ("student", student)):
        twice = [name for name, times in Counter(labels).items() if times > 1 and name in student]
        if twice:
            raise UsageError(f"the {whose} has more than one label named {listed(twice)}: give them names of their own")
    return [list(teacher).index(name) for name in student]


_WAY = (
    "A robust source becomes a teacher of your labels in minutes, by finetune --transfer frozen on your data; or use"
    " --transfer lwf, which compares features and needs no labels"
)


def matched_teacher(teacher: PixelClassifier, processor: BaseImageProcessor, labels: Sequence[str]) -> PixelClassifier:
    """A teacher in the terms of a student: logits of the student's labels, at the student's pixels.

    Args:
        teacher: with its own image processor.
        processor: the student's.
        labels: the student's, in the order of its logits.

    Returns:
        A view of the teacher, with the same weights; differentiable in its images.

    Raises:
        UsageError: what `label_columns` and `at_pixels_of` raise.

    Example:
        >>> import torch
        >>> from hf_robust_transfer.modeling import create_model
        >>> teacher = PixelClassifier(*create_model("cifar_resnet18", id2label={0: "cat", 1: "dog", 2: "eel"}))
        >>> student, processor = create_model("resnet18", id2label={0: "eel", 1: "cat"}, image_size=64)
        >>> matched_teacher(teacher, processor, ["eel", "cat"])(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 2])
    """
    columns = label_columns(teacher.labels, labels)
    seen = at_pixels_of(teacher, processor)
    return seen.view(size=seen.input_size, columns=columns)
