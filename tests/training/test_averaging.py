"""Averages of the weights: what they are, where they are used, and that a training goes on with them."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny_models import DIGITS, PLAIN
from transformers import TrainerCallback

from hf_robust_transfer import PixelClassifier, RobustTrainer, RobustTrainingArguments
from hf_robust_transfer.transfer import estimate_batch_norm

LORA = {"r": 2, "target_modules": ["qkv", "fc1"], "modules_to_save": ["head"]}


@pytest.fixture
def trainer_of(tiny, digit_batch, tmp_path):
    """A function (kind, **arguments) -> a trainer on 24 digits in batches of 8, and the weights after each of its steps."""

    def make(kind="timm-convnext", folder="run", callbacks=(), **arguments):
        images, labels = digit_batch(32 if kind == "timm-resnet" else 8, 24)
        data = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]
        options = {**PLAIN, "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no"}
        options |= {"per_device_train_batch_size": 8, "learning_rate": 0.05, "eval_attack_steps": 1, "eps": "0.1"}
        args = RobustTrainingArguments(str(tmp_path / folder), use_cpu=True, **{**options, **arguments})
        model, processor = tiny("timm-vit" if kind == "lora" else kind, DIGITS)
        teacher = PixelClassifier(*tiny(kind, DIGITS, seed=1)) if args.lwf_weight else None
        if kind == "lora":
            model = get_peft_model(model, LoraConfig(**LORA))
        seen = []

        class Look(TrainerCallback):
            def on_step_end(self, args, state, control, model=None, **kwargs):
                seen.append({name: each.detach().double().numpy().copy() for name, each in model.named_parameters()})

        given = {"train_dataset": data, "eval_dataset": data, "callbacks": [Look(), *callbacks]}
        return RobustTrainer(model, args, processing_class=processor, teacher=teacher, **given), seen

    return make


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


EMA = {"averaging": "ema", "averaging_decay": 0.7}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("timm-convnext", {}),
        ("timm-convnext", {"averaging_start": 0.5, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}),
        ("timm-convnext", {"freeze": "2", "lwf_weight": 0.5, "warm_start_epochs": 1, "averaging_start": 2, "max_steps": 3}),
        ("lora", {"averaging_start": 1}),
    ],
)
def test_the_model_that_training_leaves_is_the_exponential_average(trainer_of, kind, options):
    trainer, seen = trainer_of(kind, **EMA, max_steps=options.pop("max_steps", 6), **options)
    trainer.train()
    first = {0.5: 3, 1: 1, 2: 5}.get(options.get("averaging_start"), 0)  # after three steps of the head alone
    assert len(seen) == 6
    for name, parameter in trainer.model.named_parameters():
        expected = seen[first][name]
        for later in seen[first + 1 :]:
            expected = 0.7 * expected + 0.3 * later[name]
        assert parameter.detach().numpy() == pytest.approx(expected, abs=1e-6), name
    moved = [
        name for name, parameter in trainer.model.named_parameters() if np.abs(seen[-1][name] - seen[0][name]).max() > 0
    ]
    assert moved and (first == 5 or any(not np.allclose(seen[-1][name], weights(trainer)[name]) for name in moved))


def test_equal_parts_are_of_the_epochs_ends_from_the_start_on(trainer_of):
    trainer, seen = trainer_of(averaging="swa", num_train_epochs=4)  # of three steps; by default from the second half on
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert parameter.detach().numpy() == pytest.approx((seen[8][name] + seen[11][name]) / 2, abs=1e-6), name


def test_evaluations_and_checkpoints_have_the_average_and_training_goes_on_without_it(trainer_of, tmp_path):
    saving = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": None,
    }
    plain, steps = trainer_of(folder="plain", max_steps=4)
    plain.train()
    trainer, seen = trainer_of(**EMA, **saving, max_steps=4)
    trainer.train()
    assert all(np.array_equal(seen[step][name], steps[step][name]) for step in range(4) for name in steps[0])
    measured = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.evaluate()["eval_loss"] == measured[-1]["eval_loss"] != plain.evaluate()["eval_loss"]
    saved = load_file(tmp_path / "run/checkpoint-4/model.safetensors")
    assert all(torch.equal(saved[name.removeprefix("timm_model.")], weights(trainer)[name]) for name in weights(trainer))
    best, _ = trainer_of(folder="best", **EMA, **saving, max_steps=4, load_best_model_at_end=True)
    best.train()
    found = int(best.state.best_model_checkpoint.rpartition("-")[2])
    entry = next(entry for entry in measured if entry["step"] == found)
    assert best.evaluate()["eval_loss"] == pytest.approx(entry["eval_loss"])


@pytest.mark.parametrize("average", [EMA, {"averaging": "swa", "averaging_start": 0.2}])
def test_a_training_that_goes_on_ends_with_the_average_of_one_that_did_not_stop(trainer_of, average, tmp_path):
    class Interrupt(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    options = {**average, "max_steps": 8, "save_strategy": "steps", "save_steps": 4, "objective": "natural"}
    whole, _ = trainer_of("timm-resnet", "whole", **options)
    whole.train()
    stopped, _ = trainer_of("timm-resnet", "stopped", [Interrupt()], **options)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert (tmp_path / "stopped/checkpoint-4/averaging.safetensors").is_file()
    resumed, _ = trainer_of("timm-resnet", "stopped", **options)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(resumed), weights(whole))


def test_the_averages_batch_norm_statistics_are_those_of_all_training_images(trainer_of):
    trainer, _ = trainer_of("timm-resnet", **EMA, max_steps=4)
    trainer.train()
    model, processor = trainer.model, trainer.processing_class
    images = torch.stack([item["pixel_values"] for item in trainer.train_dataset])
    mean, std = (torch.tensor(processor.data_config[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        inputs = model.timm_model.conv1((images - mean) / std).split(8)
    first = model.timm_model.bn1
    means = torch.stack([each.transpose(0, 1).flatten(1).mean(1) for each in inputs]).mean(0)
    variances = torch.stack([each.transpose(0, 1).flatten(1).var(1) for each in inputs]).mean(0)
    assert torch.allclose(first.running_mean, means, atol=1e-5) and torch.allclose(first.running_var, variances, rtol=1e-4)
    assert first.momentum == 0.1


@pytest.mark.parametrize("options", [{"batch_norm_eval": True}, {"freeze": "backbone"}])
def test_batch_norm_that_does_not_train_keeps_its_statistics(trainer_of, options):
    trainer, _ = trainer_of("timm-resnet", **EMA, max_steps=2, **options)
    before = {name: buffer.clone() for name, buffer in trainer.model.named_buffers()}
    trainer.train()
    assert all(torch.equal(buffer, before[name]) for name, buffer in trainer.model.named_buffers())


def test_measuring_statistics_leaves_modes_and_flags_and_dropout_off(tiny, digit_batch):
    classifier = PixelClassifier(*tiny("timm-resnet", DIGITS)).train()
    classifier.model.timm_model.drop_rate = 0.9
    layers = [module for module in classifier.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    results = []
    for _ in range(2):
        estimate_batch_norm(classifier, digit_batch(32, 16)[0].split(8), layers[1:])
        results.append(torch.cat([layer.running_mean for layer in layers]))
    assert torch.equal(*results) and all(module.training for module in classifier.modules())
    assert layers[0].num_batches_tracked == 0 and layers[1].num_batches_tracked == 2
    assert all(parameter.requires_grad for parameter in classifier.parameters())
