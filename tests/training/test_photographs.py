"""What training and evaluating tell about images, and random crops of photographs on the way to a model."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import DIGITS, PLAIN
from torch.utils.data import Subset
from transformers import PrinterCallback, TrainerCallback

from hf_robust_transfer import (
    PixelClassifier,
    PixelDataset,
    RobustTrainer,
    RobustTrainingArguments,
    ThreatModel,
    evaluate_robustness,
)
from hf_robust_transfer.cli.main import run_command
from hf_robust_transfer.data.cropping import RandomCrops
from hf_robust_transfer.errors import UsageError

NAMES = list(DIGITS.values())
TOLD = "24 images, 40 – 103 px → 8 × 8 px"
WARNED = "The images are made 6.44 times smaller, to 8 × 8 pixels: 1.4 % of a typical one's pixels are left"


@pytest.fixture(scope="module")
def photos():
    """24 photographs of several sizes."""
    noise = np.random.default_rng(0)
    images = [Image.fromarray(noise.integers(0, 256, (40 + row, 80 + row, 3), dtype=np.uint8)) for row in range(24)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    return datasets.Dataset.from_dict({"image": images, "label": [row % 10 for row in range(24)]}, features=features)


@pytest.fixture
def trainer_of(tiny, tmp_path):
    """A function (training set, evaluation set, **arguments) -> a trainer of a tiny model for 8×8 images."""

    def make(train, evaluation=None, **arguments):
        model, processor = tiny("timm-convnext", DIGITS)
        plain = {**PLAIN, "report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
        small = {"max_steps": 1, "eval_attack_steps": 1, "feature_cache_dir": str(tmp_path / "features")}
        args = RobustTrainingArguments(str(tmp_path / "run"), **{**plain, **small, **arguments})
        return RobustTrainer(model.double(), args, processing_class=processor, train_dataset=train, eval_dataset=evaluation)

    return make


def weights(trainer):
    return torch.cat([parameter.flatten() for parameter in trainer.model.state_dict().values()])


def test_a_training_and_its_evaluations_tell_once_what_they_do_to_images_and_warn_once(trainer_of, photos, capsys, caplog):
    trainer = trainer_of(photos, photos.select(range(5)), max_steps=4, eval_strategy="steps", eval_steps=1)
    trainer.train()
    trainer.evaluate()
    trainer.evaluate(photos.select([0]))
    trainer.predict(photos.select([1]))
    shown = capsys.readouterr().out
    lines = [line for line in shown.splitlines() if " px" in line]
    assert lines == [
        f"train: {TOLD}",
        "validation: 5 images, 40 – 84 px → 8 × 8 px",
        "validation: 1 images, 40 – 80 px → 8 × 8 px",
        "test: 1 images, 41 – 81 px → 8 × 8 px",
    ]
    assert caplog.text.count("times smaller") == 1 and WARNED in caplog.text and "photographs.md" in caplog.text


def test_nothing_is_printed_without_the_callbacks_that_print_and_the_warning_comes_all_the_same(
    trainer_of, photos, capsys, caplog
):
    trainer = trainer_of(photos)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    assert "images" not in capsys.readouterr().out and "times smaller" in caplog.text


def test_several_evaluation_sets_are_told_of_by_their_names(trainer_of, photos, digits, capsys, caplog):
    trainer = trainer_of(digits.select(range(4)), {"clean": digits.select(range(4)), "large": photos})
    trainer.evaluate()
    assert [line for line in capsys.readouterr().out.splitlines() if " px" in line] == [
        "clean: 4 images, 8 × 8 px, as they are",
        f"large: {TOLD}",
    ]
    assert caplog.text.count("times smaller") == 1


def test_an_evaluation_tells_it_unless_it_is_to_be_quiet_and_reports_it(tiny, photos, digits, capsys, caplog):
    classifier = PixelClassifier(*tiny("timm-convnext", DIGITS))
    options = {"self_check_samples": 0, "curve_samples": 0}
    report = evaluate_robustness(classifier, photos, ThreatModel(), ["fgsm"], **options)
    caution = "The images were made 6.44 times smaller, to 8 × 8 pixels: the figures are those of such tiny images."
    assert report.data["sides"] == [40, 103, 51.5] and caution in report.cautions
    assert caution in report.summary() and caution in report.markdown()
    assert f"test: {TOLD}" in capsys.readouterr().out and caplog.text.count(WARNED) == 1
    evaluate_robustness(classifier, photos, ThreatModel(), ["fgsm"], progress=False, **options)
    assert "images" not in capsys.readouterr().out
    small = evaluate_robustness(classifier, digits.select(range(4)), ThreatModel(), ["fgsm"], progress=False, **options)
    assert small.data["sides"] == [8, 8, 8] and "smaller" not in small.summary()


def test_the_commands_warn_of_photographs_for_a_network_of_8_pixels(tiny, photos, tmp_path, capsys, caplog):
    model, processor = tiny("timm-convnext", DIGITS)
    for each in (model, processor):
        each.save_pretrained(tmp_path / "source")
    for row, sample in enumerate(photos):
        file = tmp_path / "photos" / f"of {sample['label'] % 2}" / f"{row}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        sample["image"].save(file)
    short = ["--max_steps", "2", "--eval_attack_steps", "1", "--disable_tqdm", "true", "--report_to", "none", "--use_cpu"]
    source = ["--model_name_or_path", str(tmp_path / "source"), "--train_dir", str(tmp_path / "photos")]
    run = ["--output_dir", str(tmp_path / "mine"), "--feature_cache_dir", str(tmp_path / "features")]
    run_command("finetune", [*source, *run, *short, "--random_resized_crop", "0.35", "--random_flip"])
    shown = capsys.readouterr().out
    assert shown.count(" images, 4") == 2 and "train: 20 images, 4" in shown and "validation: 4 images, 4" in shown
    assert caplog.text.count("times smaller, to 8 × 8 pixels") == 1
    caplog.clear()
    quick = ["--attacks", "fgsm", "--self_check_samples", "0", "--curve_samples", "0", "--use_cpu"]
    run_command("evaluate", ["--model_name_or_path", str(tmp_path / "mine"), *quick])
    assert capsys.readouterr().out.count("px → 8 × 8 px") == 1 and "times smaller" in caplog.text


# Random crops


CROPS = {"random_resized_crop": 0.35, "random_flip": True, "per_device_train_batch_size": 8, "seed": 3}


def test_a_training_sees_the_crops_of_each_epoch_at_their_samples(trainer_of, photos, monkeypatch):
    seen = {}
    original = RobustTrainer.compute_loss

    def watch(self, model, inputs, *args, **kwargs):
        for index, pixels in zip(inputs["indices"].tolist(), inputs["pixel_values"], strict=True):
            seen.setdefault(index, []).append(pixels)
        return original(self, model, inputs, *args, **kwargs)

    class Look(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            next(iter(trainer.get_train_dataloader()))  # whoever looks at the images does not change what is trained on

    monkeypatch.setattr(RobustTrainer, "compute_loss", watch)
    trainer = trainer_of(photos, num_train_epochs=2, max_steps=-1, **CROPS)
    trainer.add_callback(Look())
    trainer.train()
    again = torch.cat([batch["pixel_values"] for batch in trainer.batches_in_order(5)])
    crops = RandomCrops(trainer.processing_class, 0.35, seed=trainer._crops.seed)
    for epoch in range(2):
        crops.begin(epoch)
        for row, sample in enumerate(photos):
            assert torch.equal(seen[row][epoch], crops(sample["image"], row))
            assert torch.equal(seen[row][epoch], again[row]) == (epoch == 0)  # what statistics are estimated on


def test_a_resumed_training_and_one_of_smaller_batches_see_the_same_crops(trainer_of, photos, tmp_path):
    steps = {"num_train_epochs": 2, "max_steps": -1, "learning_rate": 0.1}
    whole = trainer_of(photos, save_strategy="steps", save_steps=4, **steps, **CROPS)
    whole.train()  # 3 steps an epoch: the checkpoint lies within the second
    resumed = trainer_of(photos, **steps, **CROPS)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert torch.equal(weights(resumed), weights(whole))
    halves = {**CROPS, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    accumulated = trainer_of(photos, **steps, **halves)
    accumulated.train()
    torch.testing.assert_close(weights(accumulated), weights(whole))


def test_features_are_not_taken_for_known_where_images_are_cropped_at_random(trainer_of, photos):
    frozen = {"freeze": "backbone", "max_steps": 2}
    assert not trainer_of(photos, **frozen, **CROPS).caches_features and trainer_of(photos, **frozen).caches_features


def test_photographs_that_are_cropped_anew_take_no_memory(tiny, photos, tmp_path):
    dataset = PixelDataset(photos, tiny("timm-convnext", DIGITS)[1], keep=False)
    dataset.check()
    assert not dataset.in_memory


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: Subset(data, [0, 1])])
def test_a_data_set_of_pixels_is_refused_before_anything_is_written(trainer_of, wrap, tmp_path):
    pixels = [{"pixel_values": torch.rand(3, 8, 8), "labels": label} for label in range(10)]
    with pytest.raises(UsageError, match="--random_resized_crop cuts parts out of images"):
        trainer_of(wrap(pixels), **CROPS)
    assert not (tmp_path / "run").exists()
