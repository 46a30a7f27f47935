"""The trainer: what it logs, evaluates, freezes and refuses, and that its updates are the right ones."""

import copy
import shutil
from fractions import Fraction

import numpy as np
import optuna
import pytest
import torch
import torch.nn.functional as F
from tiny_models import PLAIN, TIMM, TRANSFORMERS, classifier_layer
from transformers import TrainerCallback, set_seed

from hf_robust_transfer import PixelClassifier, RobustTrainer, RobustTrainingArguments, ThreatModel, pgd, threat_model
from hf_robust_transfer.modeling.attack_copy import attack_copy
from hf_robust_transfer.modeling.classifier import full_precision
from hf_robust_transfer.randomness import fold_in
from hf_robust_transfer.transfer import blocks

TRAINABLE = [kind for kind in (*TIMM, *TRANSFORMERS) if kind != "hf-swin"]


class Pixels(torch.utils.data.Dataset):
    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return {"pixel_values": self.images[row], "labels": int(self.labels[row])}


@pytest.fixture
def trainer_on(tiny, digit_batch, tmp_path):
    """A function (kind, **arguments) -> a trainer of a tiny model on digits; `trainer=` options go to the trainer."""

    def make(kind="timm-convnext", count=24, dtype=torch.float32, trainer=None, **arguments):
        model, processor = tiny(kind)
        images, labels = digit_batch(32 if kind.endswith("resnet") else 8, count, dtype)
        arguments = {
            **PLAIN,
            "report_to": "none",
            "disable_tqdm": True,
            "logging_steps": 1,
            "save_strategy": "no",
            **arguments,
        }
        args = RobustTrainingArguments(str(tmp_path / "run"), use_cpu=True, **arguments)
        data = Pixels(images, labels)
        options = {"teacher": PixelClassifier(tiny(kind, seed=1)[0].to(dtype), processor)} if args.lwf_weight else {}
        options |= {"train_dataset": data, "eval_dataset": data, **(trainer or {})}
        return RobustTrainer(model.to(dtype), args, processing_class=processor, **options)

    return make


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("objective", ["natural", "trades"])
def test_logged_terms_add_up_to_the_logged_loss(trainer_on, objective):
    trainer = trainer_on(
        objective=objective, lwf_weight=0.1, max_steps=4, per_device_train_batch_size=8, gradient_accumulation_steps=2
    )
    trainer.train()
    losses = logged(trainer, "loss")
    names = {"loss_natural", "loss_lwf"} | ({"loss_trades"} if objective == "trades" else set())
    terms = [logged(trainer, name) for name in sorted(names)]
    assert len(losses) == 4 and all(min(term) > 0 for term in terms)
    assert np.sum(terms, axis=0) == pytest.approx(losses, rel=1e-4)


def test_evaluation_reports_what_the_attack_achieves_on_its_own(trainer_on):
    trainer = trainer_on(eps="0.1", eval_attack_steps=3, per_device_eval_batch_size=10)
    metrics = trainer.evaluate()
    classifier = PixelClassifier(trainer.model, trainer.processing_class).eval()
    data = trainer.eval_dataset
    adversarial = pgd(
        classifier, data.images, data.labels, ThreatModel("linf", 0.1), steps=3, seed=fold_in(trainer.args.seed, 2)
    )
    for prefix, images in (("eval_", data.images), ("eval_robust_", adversarial)):
        logits = classifier(images).detach()
        assert metrics[f"{prefix}accuracy"] == pytest.approx((logits.argmax(1) == data.labels).double().mean().item())
        assert metrics[f"{prefix}loss"] == pytest.approx(F.cross_entropy(logits, data.labels).item(), rel=1e-5)
    assert metrics["eval_robust_loss"] > metrics["eval_loss"]


def test_bf16_training_is_judged_in_float32(trainer_on):
    trainer = trainer_on(bf16=True, max_steps=1, eval_attack_steps=0)
    trainer.train()
    classifier = PixelClassifier(trainer.model, trainer.processing_class).eval()
    with torch.no_grad():
        low = classifier(trainer.eval_dataset.images)
        with full_precision(classifier):
            full = classifier(trainer.eval_dataset.images)
    assert not torch.equal(low, full)  # training does run in bf16
    expected = F.cross_entropy(full, trainer.eval_dataset.labels).item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-6)
    # Evaluations of the model in memory go by the same float32 logits, and their fast copy is of this model.
    copied = attack_copy(classifier, trainer.eval_dataset.images[:2], "float32")
    with torch.no_grad():
        torch.testing.assert_close(copied(trainer.eval_dataset.images), full, rtol=1e-4, atol=1e-5)
        next(iter(trainer.model.parameters())).zero_()
        torch.testing.assert_close(copied(trainer.eval_dataset.images), full, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_training_attacks_the_compiled_model_and_ends_with_the_same_weights(trainer_on):
    options = {"objective": "pgd", "eps": "0.1", "attack_steps": 2, "max_steps": 2, "per_device_train_batch_size": 8}
    plain = trainer_on(**options)
    compiled = trainer_on(torch_compile=True, **options)
    for trainer in (plain, compiled):
        trainer.train()
    student, attacked = compiled._views(compiled.model_wrapped)
    assert attacked._forward_through[0] is student._forward_through[0] is not compiled.model
    for name, expected in plain.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[name], expected, rtol=1e-3, atol=1e-5)


def test_workers_read_images_where_that_helps(trainer_on):
    assert trainer_on().args.dataloader_num_workers == 0  # a CPU has better to do
    assert trainer_on(dataloader_num_workers=2).args.dataloader_num_workers == 2


def test_further_metrics_see_the_clean_logits(trainer_on):
    def more(prediction):
        assert prediction.predictions.shape == (24, 10)
        return {"spread": float(np.ptp(prediction.predictions))}

    metrics = trainer_on(trainer={"compute_metrics": more}, eval_attack_steps=1).evaluate()
    assert metrics["eval_spread"] > 0 and "eval_robust_accuracy" in metrics


def test_predictions_without_labels_are_clean_logits(trainer_on):
    trainer = trainer_on()
    images = trainer.eval_dataset.images
    output = trainer.predict([{"pixel_values": image} for image in images])
    assert output.predictions == pytest.approx(
        PixelClassifier(trainer.model, trainer.processing_class)(images).detach().numpy(), abs=1e-5
    )


def test_evaluating_does_not_advance_the_random_state_of_training(trainer_on):
    trainer = trainer_on(eval_attack_steps=1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    numpy_state = np.random.get_state()[1].copy()
    trainer.evaluate()
    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_the_best_model_is_the_most_robust_one(trainer_on):
    trainer = trainer_on(
        objective="fast",
        eps="0.2",
        num_train_epochs=4,
        per_device_train_batch_size=8,
        learning_rate=0.3,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=None,
        load_best_model_at_end=True,
        metric_for_best_model="robust_accuracy",
        eval_attack_steps=2,
    )
    trainer.train()
    measured = logged(trainer, "eval_robust_accuracy")
    assert len(measured) == 4 and max(measured) > min(measured)
    assert trainer.state.best_metric == max(measured)
    assert trainer.evaluate()["eval_robust_accuracy"] == max(measured)


@pytest.mark.parametrize("kind", TRAINABLE)
@pytest.mark.parametrize("frozen", ["none", "2", "backbone"])
def test_every_backbone_trains_with_every_way_of_freezing(trainer_on, kind, frozen):
    warm_start_steps = 0 if frozen == "backbone" else 1
    trainer = trainer_on(
        kind,
        freeze=frozen,
        warm_start_steps=warm_start_steps,
        max_steps=2,
        per_device_train_batch_size=8,
        learning_rate=0.05,
    )
    model = trainer.model
    before = copy.deepcopy(model.state_dict())
    trainer.train()
    head_name, _ = classifier_layer(model)
    all_blocks = blocks(model)
    kept = {"none": 0, "2": 2, "backbone": len(all_blocks)}[frozen]
    frozen_names = {name for block in all_blocks[:kept] for name in block.parameters}
    for name, parameter in model.named_parameters():
        if name in frozen_names:
            assert torch.equal(parameter, before[name]), name
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith(head_name) for name in changed)
    if kept < len(all_blocks):  # what the warm start held back moved afterwards
        assert changed & set(all_blocks[-1].parameters)
    frozen_modules = {name.rpartition(".")[0] for name in frozen_names}
    for name, buffer in model.named_buffers():
        if name.rpartition(".")[0] in frozen_modules or frozen == "backbone":
            assert torch.equal(buffer, before.get(name, buffer)), name


def test_batch_norm_statistics_stay_under_lwf_and_move_without(trainer_on):
    for lwf_weight, stays in ((0.5, True), (0.0, False)):
        trainer = trainer_on("timm-resnet", lwf_weight=lwf_weight, max_steps=1, per_device_train_batch_size=8)
        before = trainer.model.timm_model.bn1.running_mean.clone()
        trainer.train()
        assert torch.equal(trainer.model.timm_model.bn1.running_mean, before) == stays


@pytest.mark.parametrize(("objective", "lwf_weight"), [("natural", 0.0), ("pgd", 0.0), ("natural", 0.5), ("trades", 0.5)])
@pytest.mark.parametrize("count", [32, 27])
def test_accumulated_small_batches_update_as_one_large_batch(trainer_on, objective, lwf_weight, count):
    # 27 samples make a last micro-batch of 3, whose samples must weigh as much as any other.
    weights = []
    for batch, accumulation in ((32, 1), (8, 4)):
        trainer = trainer_on(
            "timm-wrn",
            count,
            torch.float64,
            objective=objective,
            lwf_weight=lwf_weight,
            batch_norm_eval=True,
            eps="0.1",
            attack_steps=3,
            max_steps=2,
            learning_rate=0.1,
            random_crop=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train()
        weights.append(trainer.model.state_dict())
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, rtol=1e-9, atol=1e-11, msg=name)


def test_the_lwf_step_descends_the_written_objective(trainer_on):
    """One SGD step is −lr times the finite-difference gradient of CE + λ_d · mean ‖z − z₀‖₂."""
    trainer = trainer_on(
        "timm-wrn",
        8,
        torch.float64,
        lwf_weight=0.7,
        max_steps=1,
        learning_rate=0.1,
        optim_args="momentum=0.0",
        weight_decay=0.0,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
    )
    model, data = trainer.model.eval(), trainer.train_dataset
    name = "timm_model.stages.1.blocks.0.conv1.weight"
    start = model.get_parameter(name).detach().clone()
    classifier = PixelClassifier(model, trainer.processing_class)

    def objective():
        with torch.no_grad():
            output, source = classifier.outputs(data.images), trainer.source.outputs(data.images)
        distance = ((output.features - source.features) ** 2).sum(1).sqrt().mean()
        return (F.cross_entropy(output.logits, data.labels) + 0.7 * distance).item()

    numerical = []
    places = [(output, 3, output % 3, 1) for output in range(5)]
    for place in places:
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                model.get_parameter(name)[place] = start[place] + sign * 1e-6
            sides.append(objective())
        with torch.no_grad():
            model.get_parameter(name)[place] = start[place]
        numerical.append((sides[0] - sides[1]) / 2e-6)
    trainer.train()
    moved = torch.stack([(model.get_parameter(name).detach() - start)[place] for place in places])
    assert (-moved / 0.1).tolist() == pytest.approx(numerical, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize(
    ("ramp", "rates"),
    [
        (0, (0.5, 0.4375, 0.375, 0.3125, 0.005, 0.00375, 0.0025, 0.00125)),
        (2, (0.5, 0.4375, 0.375, 0.3125, 0.005 / 3, 0.00375 * 2 / 3, 0.0025, 0.00125)),
    ],
)
def test_the_warm_start_has_a_learning_rate_of_its_own_and_ends_in_a_ramp(trainer_on, ramp, rates):
    used = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
            used.append({group["lr"] for group in optimizer.param_groups})

    trainer = trainer_on(
        learning_rate=0.01,
        warm_start_learning_rate=0.5,
        warm_start_steps=0.5,
        unfreeze_warmup_steps=ramp,
        lr_scheduler_type="linear",
        max_steps=8,
        per_device_train_batch_size=8,
        trainer={"callbacks": [Watch()]},
    )
    trainer.train()
    assert [sorted(groups) for groups in used] == [pytest.approx([rate]) for rate in rates]


def test_training_again_after_an_interrupted_warm_start_trains_the_backbone(trainer_on):
    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    interrupt = Interrupt()
    trainer = trainer_on(
        warm_start_steps=2,
        max_steps=3,
        per_device_train_batch_size=8,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        trainer={"callbacks": [interrupt]},
    )
    before = trainer.model.timm_model.stem[0].weight.detach().clone()
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(interrupt)
    trainer.train()
    assert not torch.equal(trainer.model.timm_model.stem[0].weight, before)


def test_eps_grows_during_its_warm_up(trainer_on):
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append(trainer._training_threat_model().eps)

    trainer = trainer_on(
        objective="fast",
        eps="0.2",
        eps_warmup_steps=0.5,
        max_steps=6,
        per_device_train_batch_size=8,
        trainer={"callbacks": [Watch()]},
    )
    trainer.train()
    assert seen == pytest.approx([0.2 / 3, 0.4 / 3, 0.2, 0.2, 0.2, 0.2])


def test_free_replays_each_batch_at_the_cost_of_natural_training(trainer_on):
    seen = []

    class Watch(torch.utils.data.Dataset):
        def __init__(self, data):
            self.data = data

        def __len__(self):
            return len(self.data)

        def __getitem__(self, row):
            seen.append(row)
            return self.data[row]

    options = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    natural = trainer_on(count=32, objective="natural", **options)
    natural.train()
    trainer = trainer_on(count=32, objective="free", free_replays=2, eps="0.1", **options)
    trainer.train_dataset = Watch(trainer.train_dataset)
    trainer.train()
    del seen[: len(seen) - 2 * 32]  # the first looks at what is in it
    assert trainer.state.global_step == natural.state.global_step == 8
    groups = [tuple(seen[first : first + 8]) for first in range(0, len(seen), 8)]
    assert groups[0::2] == groups[1::2] and len(set(groups)) == 4
    assert sorted(seen) == sorted([*range(32)] * 2)
    assert set(trainer.carried) == {"free_perturbation_0", "free_perturbation_1"}


def test_hyperparameter_search_finds_the_better_learning_rate(trainer_on, tiny):
    processor = tiny("timm-convnext")[1]
    built = []
    base = trainer_on(max_steps=6, per_device_train_batch_size=24, eval_strategy="steps", eval_steps=6, eval_attack_steps=1)
    trainer = RobustTrainer(
        args=base.args,
        model_init=lambda: built.append(tiny("timm-convnext")[0]) or built[-1],
        processing_class=processor,
        train_dataset=base.train_dataset,
        eval_dataset=base.eval_dataset,
    )
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {
            "learning_rate": trial.suggest_categorical("learning_rate", [1e-9, 1e-1]),
            "freeze": trial.suggest_categorical("freeze", ["2"]),
        },
        compute_objective=lambda metrics: metrics["eval_loss"] + 0 * metrics["eval_robust_loss"],
        n_trials=2,
        direction="minimize",
        backend="optuna",
        sampler=optuna.samplers.GridSampler({"learning_rate": [1e-9, 1e-1], "freeze": ["2"]}),
    )
    assert best.hyperparameters["learning_rate"] == 1e-1
    assert not any(parameter.requires_grad for name, parameter in built[-1].named_parameters() if ".stem." in name)


def test_distillation_with_a_wrong_teacher_is_refused(trainer_on, tiny):
    for wrong in (tiny("timm-convnext")[0], "outputs/source"):
        with pytest.raises(ValueError, match=r"teacher is a .*: give PixelClassifier"):
            trainer_on(lwf_weight=0.5, trainer={"teacher": wrong})
    with pytest.raises(ValueError, match="features have size 64, the model's 16"):
        trainer_on(lwf_weight=0.5, trainer={"teacher": PixelClassifier(*tiny("timm-wrn"))})


def test_labels_that_the_head_does_not_have_are_refused(trainer_on):
    trainer = trainer_on(max_steps=1)
    trainer.train_dataset.labels = trainer.train_dataset.labels + 1
    with pytest.raises(ValueError, match=r"sample \d+ has label 10, but only 10 labels are known"):
        trainer.train()


def test_normalised_pixels_and_streams_are_refused(trainer_on):
    trainer = trainer_on(max_steps=1)
    trainer.train_dataset.images = trainer.train_dataset.images * 4 - 2
    with pytest.raises(ValueError, match=r"must be uint8, or floating and in \[0, 1\]"):
        trainer.train()

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(ValueError, match="map-style"):
        trainer_on(max_steps=1, trainer={"train_dataset": Stream()}).train()


def test_more_frozen_blocks_than_there_are_is_refused(trainer_on):
    with pytest.raises(ValueError, match=r"freeze=99, but this backbone has \d+ blocks"):
        trainer_on(freeze="99")


def test_training_is_repeatable(trainer_on):
    weights = []
    for _ in range(2):
        set_seed(3)
        trainer = trainer_on(objective="pgd", max_steps=2, per_device_train_batch_size=8, random_crop=1, random_flip=True)
        trainer.train()
        weights.append(trainer.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_radius_is_read_from_its_text_once_however_many_steps(trainer_on, monkeypatch):
    read = []
    monkeypatch.setattr(threat_model, "Fraction", lambda text: read.append(text) or Fraction(text))
    options = {"eps": "77/1000", "attack_step_size": "7/1000", "objective": "pgd", "attack_steps": 1}
    args = trainer_on(**options, per_device_train_batch_size=4).args
    read.clear()
    trainer = trainer_on(**options, per_device_train_batch_size=4, max_steps=4)
    checked = len(read)
    trainer.train()
    assert args.threat_model.eps == 0.077 and len(read) - checked <= 2


def test_each_of_several_evaluation_sets_is_evaluated_under_its_name(trainer_on):
    trainer = trainer_on(eval_attack_steps=0)
    data = trainer.eval_dataset
    other = Pixels(data.images, (data.labels + 1) % 10)
    alone = [trainer.evaluate(dataset) for dataset in (data, other)]
    trainer.eval_dataset = {"one": data, "two": other}
    both = trainer.evaluate()
    assert both["eval_one_loss"] == alone[0]["eval_loss"] != alone[1]["eval_loss"] == both["eval_two_loss"]
