"""The trainer and the evaluation take data as users have them, and mean the same pixels and labels."""

from types import SimpleNamespace

import datasets
import pytest
import torch
from tiny_models import DIGITS, PLAIN
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torchvision.transforms.functional import to_tensor
from transformers import PreTrainedTokenizerFast, VideoMAEVideoProcessor, ViTImageProcessor

from hf_robust_transfer import (
    PixelClassifier,
    PixelDataset,
    RobustTrainer,
    RobustTrainingArguments,
    ThreatModel,
    evaluate_robustness,
)
from hf_robust_transfer.errors import UsageError

NAMES = list(DIGITS.values())


@pytest.fixture
def trainer_of(tiny, tmp_path):
    """A function (training set, **trainer's options) -> a trainer of a tiny model for a step."""

    def make(train, eval_dataset=None, labels=DIGITS, arguments=None, **options):
        model, processor = tiny("timm-convnext", labels)
        args = RobustTrainingArguments(
            str(tmp_path / "run"),
            use_cpu=True,
            **{
                **PLAIN,
                "report_to": "none",
                "disable_tqdm": True,
                "max_steps": 1,
                "save_strategy": "no",
                "feature_cache_dir": str(tmp_path / "features"),
                "eval_attack_steps": 1,
                **(arguments or {}),
            },
        )
        options = {"processing_class": processor, **options}
        return RobustTrainer(model, args, train_dataset=train, eval_dataset=eval_dataset, **options)

    return make


def weights(trainer):
    trainer.train()
    return torch.cat([parameter.flatten() for parameter in trainer.model.state_dict().values()])


@pytest.fixture
def few(digits):
    return digits.select(range(24))


def with_pixels(rows):
    return {"pixel_values": [to_tensor(image.convert("RGB")) for image in rows["image"]], "labels": rows["label"]}


def test_training_on_any_way_in_is_training_on_the_same_images(trainer_of, few, tiny):
    expected = weights(trainer_of(PixelDataset(few, tiny("timm-convnext")[1])))
    rows = [{"photo": row["image"], "kind": row["label"]} for row in few]
    columns = {"image_column_name": "photo", "label_column_name": "kind"}
    assert torch.equal(weights(trainer_of(few)), expected)
    assert torch.equal(weights(trainer_of(rows, **columns)), expected)
    assert torch.allclose(weights(trainer_of(few.with_transform(with_pixels))), expected, atol=1e-6)


def test_what_a_transform_makes_of_images_is_never_kept(trainer_of, few):
    seen = []

    def darker(rows):
        seen.extend(rows["label"])
        return {
            **with_pixels(rows),
            "pixel_values": [image * torch.rand(()) for image in with_pixels(rows)["pixel_values"]],
        }

    frozen = {"freeze": "backbone", "max_steps": 9, "per_device_train_batch_size": 8}
    trainer = trainer_of(few.with_transform(darker), arguments=frozen)
    looks = len(seen)
    trainer.train()
    assert len(seen) - looks >= 3 * len(few) and not trainer.caches_features
    assert trainer_of(few, arguments=frozen).caches_features


def test_making_a_trainer_leaves_the_random_state_of_training_alone(trainer_of, few):
    def drawing(rows):
        torch.rand(1)
        return with_pixels(rows)

    states = [(trainer_of(data), torch.get_rng_state())[1] for data in (few, few.with_transform(drawing))]
    assert torch.equal(*states)


def test_the_validation_split_is_evaluated_on(trainer_of, few):
    splits = datasets.DatasetDict(train=few, test=few.select([0, 1]), valid=few.select([2, 3, 4]))
    trainer = trainer_of(splits, splits)
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (24, 3)
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate(splits["valid"])["eval_loss"]
    assert trainer.evaluate(splits)["eval_loss"] == trainer.evaluate()["eval_loss"]
    assert len(trainer.predict(splits).predictions[0]) == 2
    with pytest.raises(UsageError, match="validation data set is to be chosen from train"):
        trainer_of(few, datasets.DatasetDict(train=few))
    with pytest.raises(UsageError, match="train data set is to be chosen from test"):
        trainer_of(datasets.DatasetDict(test=few))
    several = trainer_of(few, datasets.DatasetDict(clean=few, foggy=few.select([0]))).evaluate()
    assert {"eval_clean_accuracy", "eval_foggy_accuracy"} <= several.keys()


def test_a_trainer_without_data_says_which_is_missing(trainer_of, few):
    with pytest.raises(UsageError, match="there is no training image: give train_dataset="):
        trainer_of(None, few).train()
    trainer = trainer_of(few)
    with pytest.raises(UsageError, match="there is no image to evaluate on: give eval_dataset="):
        trainer.evaluate()
    with pytest.raises(UsageError, match="the validation data set has no image"):
        trainer.evaluate([])
    with pytest.raises(UsageError, match="'foggy' is none of the trainer's"):
        trainer_of(few, {"clean": few}).evaluate("foggy")


def test_images_without_labels_are_predicted(trainer_of, few):
    trainer = trainer_of(few)
    expected = trainer.predict(few).predictions[0]
    hidden = few.remove_columns("label").add_column("label", [-1] * len(few))
    for images in (few.remove_columns("label"), hidden, [{"image": image} for image in few["image"]]):
        found = trainer.predict(images)
        assert found.label_ids is None and (found.predictions == expected).all()


def test_labels_become_the_models_by_their_names(trainer_of, few):
    model = dict(enumerate(NAMES[::-1]))
    text = few.cast_column("label", datasets.Value("string"))
    for data in (few, text.map(lambda row: {"label": NAMES[int(row["label"])]}), few.with_transform(with_pixels)):
        trainer = trainer_of(data, data, model)
        labels = [trainer.train_dataset[row]["labels"] for row in range(len(few))]
        assert [model[label] for label in labels] == [NAMES[label] for label in few["label"]]
        trainer.evaluate()


def test_the_teacher_is_by_default_the_model_as_it_was_given(trainer_of, few, tiny):
    lwf = {"lwf_weight": 0.5, "transfer": "lwf"}
    teacher = PixelClassifier(*tiny("timm-convnext"))
    expected = weights(trainer_of(few, teacher=teacher, arguments=lwf))
    trainer = trainer_of(few, arguments=lwf)
    assert torch.equal(weights(trainer), expected)
    source = tiny("timm-convnext")[0].state_dict()
    assert all(torch.equal(value, source[name]) for name, value in trainer.source.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in trainer.source.parameters())
    assert any(parameter.requires_grad for parameter in trainer.model.parameters())
    assert trainer_of(few).teacher is None


def test_evaluating_any_way_in_gives_the_same_report(few, tiny):
    model, processor = tiny("timm-convnext")
    options = {"self_check_samples": 0, "curve_samples": 0, "progress": False}

    def outcome(data, **more):
        report = evaluate_robustness(PixelClassifier(model, processor), data, ThreatModel(), ["fgsm"], **options, **more)
        return report.predictions, report.data["pixels_sha256"], report.data["split"]

    expected = outcome(PixelDataset(few, processor))
    assert outcome(few) == expected
    assert outcome([{"image": row["image"], "label": NAMES[row["label"]]} for row in few]) == expected
    assert outcome(list(zip(few["image"], few["label"], strict=True))) == expected
    other = few.select_columns(["image"]).rename_column("image", "c")
    renamed = datasets.concatenate_datasets([few.rename_columns({"image": "a", "label": "b"}), other], axis=1)
    assert outcome(renamed, image_column_name="a", label_column_name="b") == expected
    assert outcome(datasets.DatasetDict(train=few.select([0]), dev=few)) == (*expected[:2], "dev")
    with pytest.raises(UsageError, match="need the model's image processor"):
        evaluate_robustness(torch.nn.Flatten(), few, ThreatModel(), ["fgsm"], labels=NAMES)


TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel()))


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        "google/vit-base-patch16-224",
        ViTImageProcessor,
        {"image_mean": [0.5] * 3},
        TOKENIZER,
        VideoMAEVideoProcessor(),
    ],
    ids=lambda wrong: type(wrong).__name__,
)
def test_what_is_no_image_processor_is_refused(trainer_of, few, tiny, wrong):
    with pytest.raises(UsageError, match="the model's image processor is needed"):
        trainer_of(few, processing_class=wrong)
    with pytest.raises(UsageError, match="the model's image processor is needed"):
        PixelClassifier(tiny("timm-convnext")[0], wrong)


def test_a_missing_or_a_nested_image_processor_and_a_model_in_its_place_are_named(few, tiny):
    model, processor = tiny("timm-convnext")
    with pytest.raises(UsageError, match="there is none: give what load_model returns"):
        RobustTrainer(model, train_dataset=few)
    with pytest.raises(UsageError, match="there is a TimmWrapperForImageClassification"):
        PixelClassifier(processor, model)
    with pytest.raises(UsageError, match="give its image_processor"):
        PixelClassifier(model, SimpleNamespace(image_processor=processor))
