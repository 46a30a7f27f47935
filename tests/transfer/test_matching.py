"""A teacher of other images and labels than the student's, in the student's terms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings, strategies as st
from tiny_models import PLAIN
from torch.utils.data import DataLoader
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_robust_transfer import PixelClassifier, PixelDataset, RobustTrainer, RobustTrainingArguments
from hf_robust_transfer.attacks import pgd
from hf_robust_transfer.data import collate
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.evaluation.subject import make_ready
from hf_robust_transfer.modeling.resizing import resized
from hf_robust_transfer.threat_model import ThreatModel
from hf_robust_transfer.training.known_features import cache_features
from hf_robust_transfer.transfer import label_columns, matched_teacher
from hf_robust_transfer.transfer.matching import at_pixels_of

# ---- the resize ----

SIDES = st.integers(1, 24)


def matrix(before, after, mode="bilinear", antialias=True):
    """The linear map of one dimension that an interpolation is, (after, before)."""
    one = torch.eye(before, dtype=torch.float64)[:, None, :, None].expand(before, 1, before, 2)
    return F.interpolate(one, size=(after, 2), mode=mode, antialias=antialias)[:, 0, :, 0].T


@given(before=SIDES, after=st.integers(1, 40), antialias=st.booleans())
def test_bilinear_weights_are_means_and_bound_a_difference_in_l2_by_the_enlargement(before, after, antialias):
    weights = matrix(before, after, antialias=antialias)
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)
    assert torch.linalg.matrix_norm(weights, 2) <= 1.007 * max(1, after / before) ** 0.5


@settings(max_examples=40)
@given(SIDES, SIDES, st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**31))
def test_the_resize_keeps_the_ball_in_linf_the_pixel_range_and_is_the_product_of_both_dimensions(
    height, width, new_height, new_width, seed
):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64).round()  # to the corners
    moved = (images + 0.1 * (torch.rand(images.shape, generator=generator, dtype=torch.float64) - 0.5).sign()).clamp(0, 1)
    one, other = (resized(each, (new_height, new_width)) for each in (images, moved))
    assert (one - other).abs().max() <= (images - moved).abs().max() + 1e-12
    assert one.min() >= -1e-12 and one.max() <= 1 + 1e-12
    growth = max(1, new_height / height) ** 0.5 * max(1, new_width / width) ** 0.5
    differences = [(a - b).flatten(1).norm(dim=1) for a, b in ((one, other), (images, moved))]
    assert (differences[0] <= 1.014 * growth * differences[1] + 1e-12).all()
    expected = matrix(height, new_height) @ images @ matrix(width, new_width).T
    torch.testing.assert_close(one, expected)


@example(8, 12, False)
@example(12, 8, True)
@given(st.integers(4, 24), st.integers(4, 40), st.booleans())
def test_bicubic_interpolation_would_leave_the_ball(before, after, antialias):
    """What the docstring says is why the teacher's own filter is not used."""
    weights = matrix(before, after, "bicubic", antialias)
    largest = weights.abs().sum(1).max()  # what a difference of 1 in each pixel becomes at most
    if after % before and before % after:
        assert weights.min() < 0 and largest > 1


def test_gradients_flow_through_the_resize_and_images_of_the_size_stay_as_they_are():
    images = torch.rand(2, 3, 12, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: resized(x, (5, 14)), images)
    assert resized(images, (12, 9)) is images
    assert resized(torch.rand(1, 3, 8, 8).bfloat16(), (4, 4)).dtype == torch.float32


# ---- the labels ----


def test_labels_are_found_by_their_names():
    assert label_columns(["a", "b", "c"], ["a", "b", "c"]) == [0, 1, 2]
    assert label_columns(["a", "b", "c"], ["c", "a", "b"]) == [2, 0, 1]
    assert label_columns(["a", "b", "c", "d"], ["d", "b"]) == [3, 1]
    assert label_columns(["a", "b", "a", "d"], ["d", "b"]) == [3, 1]  # of two "a" none is asked for
    assert label_columns(["a", "a"], ["a", "a"]) == [0, 1]  # the same list
    assert label_columns(["LABEL_0", "LABEL_1"], ["LABEL_0", "LABEL_1"]) == [0, 1]


@pytest.mark.parametrize(
    ("teacher", "student", "words"),
    [
        (["a", "b"], ["a", "c", "d"], r"does not know the labels c, d, only a, b .*--transfer frozen"),
        (["a", "b"], ["A", "b"], r"does not know the labels A, .* to the letter"),
        (["a b", "c"], ["a_b", "c"], "does not know the labels a_b"),
        (["0", "1"], ["zero", "one"], "does not know the labels zero, one"),
        (["LABEL_0", "LABEL_1"], ["a", "b"], "labels of the teacher have no names .*--transfer frozen"),
        (["a", "b"], ["LABEL_0", "LABEL_1"], "labels of the student have no names"),
        (["LABEL_0", "LABEL_1", "LABEL_2"], ["LABEL_0", "LABEL_1"], "teacher and the student have no names"),
        (["a", "b", "a"], ["a", "b"], "teacher has more than one label named a"),
        (["a", "b", "c"], ["a", "b", "a"], "student has more than one label named a"),
    ],
)
def test_labels_that_cannot_be_matched_are_refused_with_the_way(teacher, student, words):
    with pytest.raises(UsageError, match=words) as error:
        label_columns(teacher, student)
    assert "\n" not in str(error.value)


# ---- both, of a model ----

LETTERS = dict(enumerate("abcde"))


def vit(side, labels, seed=0, channels=3, hidden=8, **options):
    torch.manual_seed(seed)
    tiny = {"num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "patch_size": 4}
    names = {"id2label": labels, "label2id": {name: index for index, name in labels.items()}}
    config = ViTConfig(hidden_size=hidden, image_size=side, num_channels=channels, **tiny, **names)
    return ViTForImageClassification(config).eval(), ViTImageProcessor(size={"height": side, "width": side}, **options)


def test_a_matched_teacher_gives_the_students_labels_at_the_students_pixels():
    teacher = PixelClassifier(*vit(16, LETTERS, image_mean=[0.2, 0.3, 0.4], image_std=[0.1, 0.2, 0.3]))
    _, processor = vit(8, {0: "d", 1: "a"})
    images = torch.rand(3, 3, 8, 8, requires_grad=True)
    view = matched_teacher(teacher, processor, ["d", "a"])
    by_hand = F.interpolate(images, size=(16, 16), mode="bilinear", antialias=True)
    normalised = (by_hand - torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)) / torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    expected = teacher.model(normalised).logits[:, [3, 0]]
    torch.testing.assert_close(view(images), expected)
    assert view.labels == ["d", "a"] and teacher.labels == list("abcde")
    logits, features = view.outputs(images)
    assert logits.shape == (3, 2) and features.shape == (3, 8)
    loss = F.kl_div(view(images).log_softmax(1), torch.full((3, 2), 0.5), reduction="batchmean")
    (gradient,) = torch.autograd.grad(loss, images)
    assert gradient.abs().amax((1, 2, 3)).min() > 0
    # The original is as it was, and the weights are the same ones.
    assert teacher.input_size is None and teacher.columns is None and view.model is teacher.model
    torch.testing.assert_close(teacher(by_hand), teacher.model(normalised).logits)


def test_an_attack_on_a_students_pixels_moves_a_larger_teacher_within_the_same_ball():
    teacher = matched_teacher(PixelClassifier(*vit(16, LETTERS)), vit(8, LETTERS)[1], list("abcde"))
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    moved = pgd(teacher, images, labels, ThreatModel("linf", 0.1), steps=5)
    assert F.cross_entropy(teacher(moved), labels) > F.cross_entropy(teacher(images), labels)
    assert (resized(moved, (16, 16)) - resized(images, (16, 16))).abs().max() <= 0.1 + 1e-6


def test_a_teacher_of_the_students_size_is_the_given_one():
    teacher = PixelClassifier(*vit(8, LETTERS))
    assert at_pixels_of(teacher, vit(8, LETTERS)[1]) is teacher


def test_a_teacher_that_sees_less_than_the_student_is_told_of(caplog):
    teacher, student = PixelClassifier(*vit(8, LETTERS)), vit(32, LETTERS)[1]
    assert at_pixels_of(teacher, student)(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    assert "sees 6.2 % of the pixels that the student sees: images of 32 × 32 are resized to its 8 × 8" in caplog.text
    caplog.clear()
    at_pixels_of(PixelClassifier(*vit(32, LETTERS)), vit(8, LETTERS)[1])
    assert not caplog.text


def test_an_image_processor_of_another_size_than_its_model_is_refused():
    teacher = PixelClassifier(vit(8, LETTERS)[0], vit(16, LETTERS)[1])
    with pytest.raises(UsageError, match="makes images of 16 × 16 pixels, which the teacher does not take"):
        at_pixels_of(teacher, vit(8, LETTERS)[1])


# ---- LwF ----


@pytest.fixture
def lwf(digits, tmp_path):
    """A function (teacher, **arguments) -> a trainer of a ViT for 8×8 images with LwF."""

    def make(teacher, **arguments):
        model, processor = vit(8, {index: str(index) for index in range(10)})
        small = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "max_steps": 2}
        small |= {"lwf_weight": 0.5, "learning_rate": 0.05, "feature_cache_dir": str(tmp_path / "features")}
        args = RobustTrainingArguments(str(tmp_path / "run"), **{**PLAIN, **small, **arguments})
        dataset = PixelDataset(digits.select(range(20)), processor)
        return RobustTrainer(model.double(), args, processing_class=processor, teacher=teacher, train_dataset=dataset)

    return make


def test_lwf_keeps_the_features_near_those_of_a_larger_teacher_cached_or_not(lwf):
    teacher = PixelClassifier(vit(16, LETTERS, seed=3)[0].double(), vit(16, LETTERS)[1])
    ends = []
    for options in ({}, {"cache_features": False}):
        trainer = lwf(teacher, **options)
        trainer.train()
        ends.append(trainer.model.state_dict())
        logged = [entry["loss_lwf"] for entry in trainer.state.log_history if "loss_lwf" in entry]
        assert all(value > 0 for value in logged)
    for name, expected in ends[0].items():
        torch.testing.assert_close(ends[1][name], expected, rtol=1e-6, atol=1e-8, msg=name)
    assert teacher.input_size is None


def test_the_features_of_one_teacher_at_two_sizes_are_not_mistaken_for_each_other(tiny, tmp_path):
    teacher = PixelClassifier(*tiny("hf-resnet"))  # takes images of any size
    images = [{"pixel_values": torch.rand(3, 8, 8)} for _ in range(3)]
    views = (teacher, teacher.view(size=(32, 32)))
    found = [
        cache_features(view, DataLoader(images, 3, collate_fn=collate), tmp_path, fingerprint="same", progress=False)
        for view in views
    ]
    batch = torch.stack([item["pixel_values"] for item in images])
    for view, cache in zip(views, found, strict=True):
        expected = view.outputs(batch).features.detach()
        torch.testing.assert_close(cache.of(torch.arange(3)), expected, rtol=1e-4, atol=1e-5)


def test_features_of_another_size_and_grey_teachers_are_refused(lwf):
    with pytest.raises(UsageError, match="features have size 12, the model's 8"):
        lwf(PixelClassifier(*vit(16, LETTERS, hidden=12)))
    with pytest.raises(UsageError, match="the teacher takes grey images"):
        lwf(PixelClassifier(*vit(16, LETTERS, channels=1, image_mean=[0.5], image_std=[0.5])))


def test_a_view_is_no_evidence_for_the_whole_model(tiny):
    whole = PixelClassifier(*vit(8, LETTERS))
    items = [{"pixel_values": torch.rand(3, 8, 8), "labels": 0}]
    views = (whole, whole.view(columns=[4, 0]), whole.view(columns=[0, 4]), whole.view(size=(8, 8), columns=[0, 4]))
    subjects = [make_ready(view, items) for view in views]
    assert len({subject.fingerprint for subject in subjects}) == 4 and subjects[1].labels == ("e", "a")
