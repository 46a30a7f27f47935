"""The head before all else with a schedule of its own, and what a training does that diverges."""

import copy
import dataclasses
import math

import pytest
import torch
from tiny_models import DIGITS, PLAIN
from transformers import TrainerCallback

from hf_robust_transfer import PixelClassifier, RobustTrainer, RobustTrainingArguments
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.modeling.heads import head_parameters


class Named(list):
    """Items that are the same each time."""

    fingerprint = "24 digits"


@pytest.fixture
def trainer_of(tiny, digit_batch, tmp_path):
    """A function (**arguments) -> a trainer on 24 digits in batches of 8; each call has the same model to start from."""

    def make(folder="run", callbacks=(), **arguments):
        images, labels = digit_batch(count=24)
        data = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]
        data = Named(data) if "feature_cache_dir" in arguments else data
        options = {**PLAIN, "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no"}
        options |= {"per_device_train_batch_size": 8, **arguments}
        args = RobustTrainingArguments(str(tmp_path / folder), use_cpu=True, **options)
        model, processor = tiny("timm-convnext", DIGITS)
        teacher = PixelClassifier(*tiny("timm-convnext", DIGITS, seed=1)) if args.lwf_weight else None
        given = {
            "train_dataset": data,
            "eval_dataset": data,
            "teacher": teacher,
            "callbacks": [each() for each in callbacks],
        }
        return RobustTrainer(model, args, processing_class=processor, **given)

    return make


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def watch(rates):
    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
            rates.append(optimizer.param_groups[0]["lr"])

    return Watch


@pytest.mark.parametrize("length", [{"max_steps": 5}, {"num_train_epochs": 5 / 3}])
def test_the_heads_epochs_come_first_and_both_parts_have_a_cosine_of_their_own(trainer_of, length):
    rates = []
    rate = {"learning_rate": 0.01, "warm_start_learning_rate": 0.5, "warm_start_epochs": 2, "unfreeze_warmup_steps": 0.4}
    trainer = trainer_of(callbacks=[watch(rates)], **rate, **length)
    trainer.train()
    head = [0.5 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    ramp = [0.01 / 3, 0.02 / 3]  # two of the five steps that follow
    rest = [0.01 * (1 + math.cos(math.pi * step / 3)) / 2 for step in range(3)]
    assert rates == pytest.approx([*head, *ramp, *rest])
    assert trainer.state.max_steps == 11
    assert [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry] == pytest.approx(rates)


def test_the_heads_epochs_do_what_a_frozen_transfer_does(trainer_of):
    after = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            after.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    trainer_of(
        "both", [Look], learning_rate=0.01, warm_start_learning_rate=0.5, warm_start_epochs=2, lwf_weight=1.0, max_steps=1
    ).train()
    frozen = trainer_of("frozen", freeze="backbone", learning_rate=0.5, num_train_epochs=2)
    frozen.train()
    assert same(after[5], weights(frozen))
    of_head = {id(parameter) for parameter in head_parameters(frozen.model)}
    backbone = [name for name, parameter in frozen.model.named_parameters() if id(parameter) not in of_head]
    assert any(not torch.equal(after[6][name], after[5][name]) for name in backbone)


class Diverge(TrainerCallback):
    """Make a weight NaN in step 5, as long as the learning rate has not been halved."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 5 and not any("diverged_at_step" in entry for entry in state.log_history):
            next(model.parameters()).data[0] = math.nan


class HalfFrom(TrainerCallback):
    """Half the learning rate from a step on."""

    step = 0

    def on_step_begin(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
        if state.global_step >= self.step:
            for group, rate in zip(optimizer.param_groups, lr_scheduler.get_last_lr(), strict=True):
                group["lr"] = rate / 2


class HalfFrom4(HalfFrom):
    step = 4


LONG = {"learning_rate": 0.05, "max_steps": 8, "lr_scheduler_type": "constant", "objective": "pgd", "attack_steps": 1}
SAVING = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}


@pytest.mark.parametrize(
    ("saving", "half"), [(SAVING, HalfFrom4), ({}, HalfFrom), ({**SAVING, "save_only_model": True}, HalfFrom)]
)
def test_a_training_that_diverges_goes_back_and_on_at_half_the_rate(trainer_of, saving, half):
    expected = trainer_of("steady", [half], **LONG)
    expected.train()
    trainer = trainer_of("diverging", [Diverge], halve_on_divergence=1, **LONG, **saving)
    done = trainer.train()
    assert same(weights(trainer), weights(expected))
    assert trainer.halvings == [5] and done.global_step == 8
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == [0.05] * half.step + [0.025] * (8 - half.step)
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


def test_a_resumed_training_knows_how_often_the_rate_was_halved(trainer_of):
    class Interrupt(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 7:
                raise KeyboardInterrupt

    options = {"halve_on_divergence": 1, **LONG, **SAVING}
    whole = trainer_of("whole", [Diverge], **options)
    whole.train()
    interrupted = trainer_of("interrupted", [Diverge, Interrupt], **options)
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    resumed = trainer_of("interrupted", [Diverge], **options)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(resumed), weights(whole)) and resumed.halvings == [5]


@pytest.mark.parametrize(("times", "tries"), [(0, 1), (2, 3)])
def test_a_training_that_diverges_at_any_rate_ends(trainer_of, times, tries):
    begun = []

    class Always(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            begun.append(state.global_step)
            if state.global_step == 1:
                next(model.parameters()).data[0] = math.nan

    trainer = trainer_of(callbacks=[Always], halve_on_divergence=times, **LONG)
    with pytest.raises(FloatingPointError, match="step 1: loss term adversarial=nan"):
        trainer.train()
    assert begun == [0, 1] * tries


def test_a_weight_that_the_last_step_broke_is_a_divergence_too(trainer_of):
    class Last(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
            if state.global_step == 7 and optimizer.param_groups[0]["lr"] > 0.03:
                next(model.parameters()).data[0] = math.inf

    trainer = trainer_of(callbacks=[Last], halve_on_divergence=1, **LONG)
    trainer.train()
    assert trainer.halvings == [8]
    assert all(torch.isfinite(tensor).all() for tensor in weights(trainer).values())


def test_presets_with_the_heads_epochs_in_place_of_a_share_of_steps(tmp_path):
    args = RobustTrainingArguments(str(tmp_path), transfer="lwf", warm_start_epochs=20)
    assert (args.warm_start_steps, args.warm_start_epochs, args.halve_on_divergence) == (0, 20, 3)
    assert dataclasses.replace(args).warm_start_epochs == 20
    with pytest.raises(UsageError, match="--warm_start_steps and --warm_start_epochs both say"):
        RobustTrainingArguments(str(tmp_path), transfer="lwf", warm_start_epochs=20, warm_start_steps=0.4)
    with pytest.raises(UsageError, match="reduce_lr_on_plateau is no schedule over steps"):
        RobustTrainingArguments(
            str(tmp_path), warm_start_epochs=1, lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="epoch"
        )


@pytest.mark.parametrize("before", [0, 1])
def test_eps_is_nothing_then_grows_and_then_stays_and_the_heads_epochs_do_not_count(trainer_of, before):
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append(trainer._training_threat_model().eps)

    trainer = trainer_of(
        callbacks=[Watch], objective="fast", eps="0.08", eps_schedule="hinge", warm_start_epochs=before, max_steps=8
    )
    trainer.train()
    assert seen == pytest.approx([0.0] * (3 * before) + [0, 0, 0.02, 0.04, 0.06, 0.08, 0.08, 0.08])


def test_roli_trains_the_head_and_then_all_adversarially_and_keeps_the_most_robust_epoch(trainer_of):
    trainer = trainer_of(
        transfer="roli", warm_start_epochs=2, num_train_epochs=2, attack_steps=2, eval_attack_steps=2, eps="0.1",
        learning_rate=0.05, save_strategy="epoch", unfreeze_warmup_steps=0.5,
    )  # fmt: skip
    trainer.train()
    logs = trainer.state.log_history
    assert all("loss_adversarial" in entry for entry in logs if "loss" in entry) and trainer.state.max_steps == 12
    measured = {entry["step"]: entry["eval_robust_accuracy"] for entry in logs if "eval_robust_accuracy" in entry}
    assert list(measured) == [3, 6, 9, 12]
    assert trainer.evaluate()["eval_robust_accuracy"] == max(measured.values()) == trainer.state.best_metric


def test_the_anchor_holds_adversarial_features_and_costs_no_attack_while_the_backbone_is_still(trainer_of, tmp_path):
    options = {"transfer": "anchor", "warm_start_epochs": 1, "max_steps": 3, "attack_steps": 2, "eps": "0.1"}
    trainer = trainer_of(feature_cache_dir=str(tmp_path / "features"), learning_rate=0.01, **options)
    source = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    terms = [{name for name in entry if name.startswith("loss_")} for entry in trainer.state.log_history if "loss" in entry]
    assert terms == [{"loss_natural"}] * 3 + [{"loss_natural", "loss_anchor"}] * 3
    teacher = trainer.source.model.state_dict()
    assert same(teacher, source)  # the model as it was given
    assert not same(weights(trainer), source)
