"""Presets: the same recipe from Python as from the command line."""

import dataclasses

import pytest
import torch
from tiny_models import DIGITS

from hf_robust_transfer import PixelClassifier, RobustTrainer, RobustTrainingArguments, load_model
from hf_robust_transfer.cli.finetune import FinetuningArguments
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.transfer import PRESETS, head_learning_rate, preset


@pytest.mark.parametrize("name", list(PRESETS))
@pytest.mark.parametrize("given", [{}, {"learning_rate": 0.2, "batch_norm_eval": False}, {"freeze": "2"}])
def test_python_and_command_line_train_by_the_same_options(tmp_path, name, given):
    args = RobustTrainingArguments(str(tmp_path), transfer=name, **given)
    commanded = FinetuningArguments(str(tmp_path), transfer=name, **given)
    for field in dataclasses.fields(args):
        if field.name not in ("logging_dir", "run_name"):
            assert getattr(args, field.name) == getattr(commanded, field.name), field.name


def test_a_weight_of_lwf_alone_is_the_preset_lwf(tmp_path):
    alone = RobustTrainingArguments(str(tmp_path), lwf_weight=1)
    named = RobustTrainingArguments(str(tmp_path), transfer="lwf")
    for name in (*preset("lwf", {}), "transfer"):
        assert getattr(alone, name) == getattr(named, name), name
    assert (alone.warm_start_epochs, alone.unfreeze_warmup_steps, alone.learning_rate) == (20, 0.3, 0.03)
    plain = RobustTrainingArguments(str(tmp_path), lwf_weight=1, warm_start_steps=0, unfreeze_warmup_steps=0)
    assert (plain.warm_start_steps, plain.warm_start_epochs, plain.unfreeze_warmup_steps) == (0, 0, 0)


def test_a_head_that_is_attacked_trains_alone_for_fewer_epochs(tmp_path):
    epochs = {
        objective: RobustTrainingArguments(str(tmp_path), transfer="fine_tuned", objective=objective).warm_start_epochs
        for objective in (None, "natural", "pgd", "rslad")
    }
    assert epochs == {None: 20, "natural": 20, "pgd": 5, "rslad": 5}
    given = RobustTrainingArguments(str(tmp_path), transfer="fine_tuned", objective="pgd", warm_start_epochs=7)
    assert given.warm_start_epochs == 7


def test_without_a_transfer_nothing_is_frozen_held_or_distilled(tmp_path):
    args = RobustTrainingArguments(str(tmp_path), optim="adamw_torch")
    assert (args.learning_rate, args.freeze, args.lwf_weight, args.warm_start_steps) == (0.01, "none", 0, 0)
    assert args.transfer is None and args.batch_norm_eval is None


@pytest.mark.parametrize(("name", "rate"), [("frozen", "learning_rate"), ("lwf", "warm_start_learning_rate")])
def test_a_new_heads_rate_follows_from_the_first_training_images(tiny, digit_batch, tmp_path, name, rate):
    model, processor = tiny("timm-convnext", DIGITS)
    images, labels = digit_batch(count=20)
    data = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]
    options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "max_steps": 4}
    teacher = PixelClassifier(*tiny("timm-convnext", DIGITS)) if name == "lwf" else None
    expected = head_learning_rate(PixelClassifier(model, processor), images)
    args = RobustTrainingArguments(str(tmp_path), transfer=name, **options)
    assert getattr(args, rate) is None
    trainer = RobustTrainer(model, args, processing_class=processor, teacher=teacher, train_dataset=data)
    assert getattr(args, rate) == expected
    before = model.timm_model.get_classifier().weight.clone()
    trainer.train()
    assert not torch.equal(model.timm_model.get_classifier().weight, before)
    given = RobustTrainingArguments(str(tmp_path), transfer=name, **{rate: 0.25}, **options)
    RobustTrainer(model, given, processing_class=processor, teacher=teacher, train_dataset=data)
    assert getattr(given, rate) == 0.25


def test_an_unknown_transfer_and_a_rate_that_there_is_no_default_for_are_refused(tmp_path):
    with pytest.raises(UsageError, match="--transfer magic is unknown: use frozen, lwf, fine_tuned, roli or anchor"):
        RobustTrainingArguments(str(tmp_path), transfer="magic")
    with pytest.raises(UsageError, match=r"--learning_rate is missing: .* not for adamw_torch"):
        RobustTrainingArguments(str(tmp_path), transfer="lwf", optim="adamw_torch")


@pytest.mark.parametrize("name", ["lwf", "fine_tuned"])
def test_few_images_and_few_steps_are_learned_without_diverging(digit_batch, tmp_path, caplog, name):
    images, labels = digit_batch(size=32, count=348)
    rows = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]
    model, processor = load_model("robust-tiny", id2label=DIGITS)
    options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "eval_attack_steps": 0}
    args = RobustTrainingArguments(str(tmp_path), transfer=name, **options)
    trainer = RobustTrainer(model, args, processing_class=processor, train_dataset=rows[:48], eval_dataset=rows[48:])
    trainer.train()  # ten steps; without clipping lwf becomes NaN in the seventh
    assert trainer.halvings == [] and "no better" not in caplog.text
    assert trainer.evaluate()["eval_accuracy"] > 0.6
