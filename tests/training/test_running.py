"""Trainings as a whole: what they leave of a model's flags, what a search looks for, and how one that breaks ends."""

import math

import optuna
import pytest
import torch
from tiny_models import PLAIN, classifier_layer
from transformers import TrainerCallback

from hf_robust_transfer import PixelClassifier, RobustTrainer, RobustTrainingArguments
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.training import trainer as training_module
from hf_robust_transfer.training.reporting import LossTerms

PLAIN = {**PLAIN, "per_device_train_batch_size": 8, "max_steps": 3, "eval_attack_steps": 1, "save_strategy": "no"}


@pytest.fixture
def data(digit_batch):
    images, labels = digit_batch(8, 24)
    return [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]


@pytest.fixture
def trainer_of(tiny, data, tmp_path):
    """A function (model, **arguments) -> a trainer of it on digits; `trainer=` options go to the trainer."""

    def make(model, trainer=None, **arguments):
        options = {**PLAIN, "report_to": "none", "disable_tqdm": True, **arguments}
        args = RobustTrainingArguments(str(tmp_path / "run"), use_cpu=True, **options)
        given = {"train_dataset": data, "eval_dataset": data, **(trainer or {})}
        return RobustTrainer(model, args, processing_class=tiny("timm-convnext")[1], **given)

    return make


def test_training_changes_nothing_that_somebody_else_froze(tiny, trainer_of):
    teacher = PixelClassifier(*tiny("timm-convnext", seed=1))
    for options in ({}, {"warm_start_steps": 2}, {"freeze": "1"}, {"lwf_weight": 0.5, "warm_start_steps": 1}):
        model, _ = tiny("timm-convnext")
        for name, parameter in model.named_parameters():  # as an adapter leaves it
            parameter.requires_grad_("stages.3" in name or "head.fc" in name)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        flags = [parameter.requires_grad for parameter in model.parameters()]
        trainer_of(model, trainer={"teacher": teacher}, **{**options, "learning_rate": 0.05}).train()
        changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        assert changed and all("stages.3" in name or "head.fc" in name for name in changed)
        assert any("stages.3" in name for name in changed)
        assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_a_training_that_is_interrupted_in_its_warm_start_leaves_nothing_frozen(tiny, trainer_of):
    class Interrupt(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise KeyboardInterrupt

    model, _ = tiny("timm-convnext")
    with pytest.raises(KeyboardInterrupt):
        trainer_of(model, trainer={"callbacks": [Interrupt()]}, warm_start_steps=2).train()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_that_is_frozen_whole_is_refused(tiny, trainer_of):
    model, _ = tiny("timm-convnext")
    with pytest.raises(UsageError, match="every parameter of the model is frozen"):
        trainer_of(model.requires_grad_(False))


def test_a_search_looks_for_the_most_robust_model(tiny, trainer_of):
    measured = []

    class Measure(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            measured.append(metrics["eval_robust_accuracy"])

    options = {"model_init": lambda: tiny("timm-convnext")[0], "callbacks": [Measure()]}
    trainer = trainer_of(None, trainer=options, eps="0.01", eval_strategy="steps", eval_steps=20)
    rates = [1e-9, 3e-2]
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", rates), "max_steps": 40},
        n_trials=2,
        backend="optuna",
        sampler=optuna.samplers.GridSampler({"learning_rate": rates}),
    )
    # The trainer goes on training after an evaluation, and a trial counts by its last.
    assert len(measured) == 4 and measured[1] != measured[3] and best.objective == max(measured[1], measured[3])


def test_a_search_for_what_is_not_measured_or_for_the_least_robust_model_is_refused(tiny, trainer_of):
    options = {"model_init": lambda: tiny("timm-convnext")[0]}
    with pytest.raises(UsageError, match="--eval_attack_steps 0 measures no robust accuracy"):
        trainer_of(None, trainer=options, eval_attack_steps=0).hyperparameter_search(n_trials=1)
    with pytest.raises(UsageError, match="least robust model"):
        trainer_of(None, trainer=options).hyperparameter_search(n_trials=1, direction="minimize")
    with pytest.raises(UsageError, match=r"--learning_rate -1\.0 must be at least 0"):
        trainer_of(None, trainer=options).hyperparameter_search(lambda trial: {"learning_rate": -1.0}, n_trials=1)


def test_weights_that_are_no_numbers_are_not_saved(tiny, trainer_of, tmp_path):
    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                with torch.no_grad():
                    classifier_layer(model)[1].bias[0] = math.nan

    trainer = trainer_of(
        tiny("timm-convnext")[0], trainer={"callbacks": [Break()]}, max_steps=2, save_strategy="steps", save_steps=1
    )
    with pytest.raises(FloatingPointError, match=r"step 2: 1 tensors of weights are not finite .*head\.fc\.bias"):
        trainer.train()
    assert (tmp_path / "run" / "checkpoint-1").is_dir() and not (tmp_path / "run" / "checkpoint-2").exists()
    with pytest.raises(FloatingPointError, match="not finite"):
        trainer.save_model()
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_an_evaluation_without_numbers_is_an_error(tiny, trainer_of):
    model, _ = tiny("timm-convnext")
    trainer = trainer_of(model)

    def overflow(_module, _inputs, output):
        output.logits[:1] = math.nan
        return output

    model.register_forward_hook(overflow)
    with pytest.raises(FloatingPointError, match="evaluation: the logits of 3 of 24 clean images are not finite"):
        trainer.args.per_device_eval_batch_size = 8
        trainer.evaluate()


def test_a_model_that_always_gives_one_answer_is_told_of(tiny, trainer_of, data, caplog):
    model, _ = tiny("timm-convnext")
    _, head = classifier_layer(model)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()[3] = 100.0
    trainer = trainer_of(model, learning_rate=1e-9, eval_strategy="steps", eval_steps=1)
    trainer.train()
    assert "no better than" not in caplog.text
    trainer.evaluate()
    (told,) = [each.getMessage() for each in caplog.records if "no better than" in each.getMessage()]
    right = sum(row["labels"] == 3 for row in data) / len(data)
    assert f"classifies {right:.1%} of {len(data)} images" in told and "learning_rate" in told
    trainer.evaluate([row for row in data if row["labels"] == 3])  # where one answer is right
    assert caplog.text.count("no better than") == 1


@pytest.mark.parametrize("late", [False, True])  # as on a CPU, and as on a GPU
@pytest.mark.parametrize("save_steps", [1, 2])
def test_a_loss_that_is_no_number_stops_training_and_keeps_the_checkpoint(
    tiny, trainer_of, tmp_path, monkeypatch, late, save_steps
):
    monkeypatch.setattr(training_module, "LossTerms", lambda *, late: LossTerms(late=given))
    given, stepped = late, []

    class Break(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                with torch.no_grad():
                    next(model.parameters()).fill_(math.nan)

        def on_step_end(self, args, state, control, **kwargs):
            stepped.append(state.global_step)

    trainer = trainer_of(
        tiny("timm-convnext")[0],
        lwf_weight=0.1,
        max_steps=8,
        per_device_train_batch_size=8,
        save_strategy="steps",
        save_steps=save_steps,
        logging_steps=100,
        trainer={"callbacks": [Break()]},
    )
    with pytest.raises(FloatingPointError, match=r"step 2: loss term natural=nan, lwf=nan"):
        trainer.train()
    checkpoint = trainer.model.from_pretrained(tmp_path / "run" / "checkpoint-2")
    assert all(torch.isfinite(value).all() for value in checkpoint.state_dict().values())
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))[-1] == "checkpoint-2"
    assert stepped[-1] == (3 if late else 2)
