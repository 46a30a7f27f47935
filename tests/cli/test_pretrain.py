"""The defaults of training from scratch."""

import pytest

from hf_robust_transfer.cli.pretrain import PretrainingArguments


@pytest.mark.parametrize(
    ("options", "rate"),
    [
        ({}, 0.1),
        ({"per_device_train_batch_size": 32}, 0.025),
        ({"per_device_train_batch_size": 64, "gradient_accumulation_steps": 4}, 0.2),
        ({"learning_rate": 0.3}, 0.3),
        ({"optim": "adamw_torch", "optim_args": None}, 0.01),
    ],
)
def test_the_rate_follows_from_the_images_of_a_step(tmp_path, options, rate):
    assert PretrainingArguments(str(tmp_path), **options).learning_rate == pytest.approx(rate)


def test_the_ramp_gives_way_to_that_of_a_warm_start(tmp_path):
    assert PretrainingArguments(str(tmp_path)).warmup_steps == 0.25
    assert PretrainingArguments(str(tmp_path), warm_start_epochs=2).warmup_steps == 0
    assert PretrainingArguments(str(tmp_path), warmup_steps=7).warmup_steps == 7
    args = PretrainingArguments(str(tmp_path))
    assert (args.lr_scheduler_type, args.weight_decay, args.halve_on_divergence) == ("linear", 5e-4, 3)
