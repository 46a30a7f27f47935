"""Training with a teacher: whose labels, at which pixels, in which modes, and what it costs."""

import pytest
import torch
from tiny_models import PLAIN

from hf_robust_transfer import RobustTrainer, RobustTrainingArguments
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.modeling import PixelClassifier, create_model
from hf_robust_transfer.modeling.classifier import weights_sha256
from hf_robust_transfer.objectives import OBJECTIVES, trait

WRN = {"depth": 10, "width": 1}
DISTILLING = sorted(name for name, objective in OBJECTIVES.items() if trait(objective, "of_teacher"))


class Pixels(torch.utils.data.Dataset):
    """Random images that stay the same."""

    def __init__(self, count, size=8, classes=3):
        generator = torch.Generator().manual_seed(count)
        self.images = torch.rand(count, 3, size, size, generator=generator)
        self.labels = torch.randint(classes, (count,), generator=generator)
        self.fingerprint = f"random {count} {size} {classes}"

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return {"pixel_values": self.images[row], "labels": int(self.labels[row])}


def network(labels=("a", "b", "c"), seed=0, size=8, architecture="cifar_wrn", model_args=WRN):
    torch.manual_seed(seed)
    return create_model(architecture, id2label=dict(enumerate(labels)), model_args=model_args, image_size=size)


def teacher_of(*args, seed=1, **kwargs):
    """A teacher that is sure of something: a head at random is not."""
    model, processor = network(*args, seed=seed, **kwargs)
    with torch.no_grad():
        model.timm_model.get_classifier().weight.mul_(30)
    return PixelClassifier(model, processor)


def trainer_of(folder, teacher, *, student=None, data=None, **options):
    model, processor = network() if student is None else student
    arguments = {
        **PLAIN,
        "eps": "0.1",
        "attack_steps": 2,
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "report_to": "none",
        "eval_attack_steps": 1,
        "feature_cache_dir": str(folder / "features"),
        **options,
    }
    args = RobustTrainingArguments(str(folder / "run"), **arguments)
    data = Pixels(16) if data is None else data
    return RobustTrainer(
        model, args, processing_class=processor, teacher=teacher, train_dataset=data, eval_dataset=Pixels(8, 8)
    )


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("name", DISTILLING)
def test_every_objective_trains_and_the_teacher_stays_as_it_is(tmp_path, name):
    teacher = teacher_of()
    before = weights_sha256(teacher)
    trainer = trainer_of(tmp_path, teacher, objective=name, averaging="none")
    start = weights_sha256(trainer.model)
    trainer.train()
    assert weights_sha256(trainer.model) != start
    assert weights_sha256(teacher) == before
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    logged = trainer.state.log_history[0]
    terms = [value for key, value in logged.items() if key.startswith("loss_")]
    assert sum(terms) == pytest.approx(logged["loss"], rel=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"freeze": "backbone"},
        {"freeze": "1"},
        {"lwf_weight": 0.5, "transfer": "lwf"},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {"bf16": True},
        {"norm": "l2", "eps": "0.5"},
        {"eps_schedule": "hinge", "max_steps": 4},
        {"random_crop": 1, "random_flip": True},
        {"averaging": "ema"},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("name", ["rslad", "saad"])
def test_objectives_go_with_what_else_training_has(tmp_path, name, options):
    trainer = trainer_of(tmp_path, teacher_of(), objective=name, **options)
    trainer.train()
    assert all(loss > 0 for loss in losses(trainer)[:1])
    if "lwf_weight" in options:  # the source is the model as it was given, not the teacher
        assert weights_sha256(trainer.source) == weights_sha256(network()[0])
        assert any("loss_lwf" in entry for entry in trainer.state.log_history)


def test_saad_logs_its_mean_weight_and_how_many_samples_move_the_teacher(tmp_path):
    trainer = trainer_of(tmp_path, teacher_of(), objective="saad")
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["mean_weight"] > 0
    assert 0 <= logged["teacher_moved"] <= 1


def test_saad_averages_its_weights_and_takes_ten_attack_steps_unless_told_otherwise(tmp_path):
    args = RobustTrainingArguments(str(tmp_path), objective="saad")
    assert (args.averaging, args.averaging_from, args.attack_steps) == ("swa", 0.5, 10)
    args = RobustTrainingArguments(str(tmp_path), objective="saad", averaging="none", attack_steps=3)
    assert (args.averaging, args.attack_steps) == ("none", 3)
    args = RobustTrainingArguments(str(tmp_path), objective="rslad")
    assert (args.averaging, args.attack_steps) == ("none", 10)
    assert RobustTrainingArguments(str(tmp_path), objective="pgd").attack_steps == 7


@pytest.mark.parametrize("name", ["rslad", "saad"])
def test_labels_are_matched_by_name(tmp_path, name):
    # The same teacher with its labels in another order, and with more of them: the same losses.
    teachers = [teacher_of(), teacher_of(("c", "a", "b")), teacher_of(("c", "x", "a", "b", "y"))]
    head = teachers[0].model.timm_model.get_classifier()
    weight, bias = head.weight.data, head.bias.data
    for teacher, rows in ((teachers[1], [2, 0, 1]), (teachers[2], [2, 2, 0, 1, 1])):
        teacher.model.load_state_dict(
            {
                **teachers[0].model.state_dict(),
                "timm_model.head.fc.weight": weight[rows],
                "timm_model.head.fc.bias": bias[rows],
            }
        )
    trained = []
    for number, teacher in enumerate(teachers):
        trainer = trainer_of(tmp_path / str(number), teacher, objective=name, averaging="none")
        trainer.train()
        trained.append(losses(trainer))
    assert trained[1] == pytest.approx(trained[0], rel=1e-5)
    assert trained[2] == pytest.approx(trained[0], rel=1e-5)


def test_a_teacher_that_does_not_know_the_labels_is_refused_with_the_way(tmp_path):
    with pytest.raises(UsageError, match=r"does not know the labels a, .*finetune --transfer frozen"):
        trainer_of(tmp_path, teacher_of(("b", "c", "dog")), objective="rslad")
    with pytest.raises(UsageError, match="rslad learns from a teacher: give --teacher_name_or_path"):
        trainer_of(tmp_path, None, objective="rslad")
    with pytest.raises(UsageError, match="shares its weights"):
        student = network()
        trainer_of(tmp_path, PixelClassifier(*student), student=student, objective="rslad")
    assert not (tmp_path / "run").exists()


def test_a_teacher_sees_images_at_its_own_size_and_with_its_own_normalisation(tmp_path):
    model, processor = network(seed=1, size=16)
    mean = [0.4, 0.5, 0.6]
    model.config.pretrained_cfg["mean"] = mean
    processor.data_config["mean"] = tuple(mean)
    teacher = PixelClassifier(model, processor)
    trainer = trainer_of(tmp_path, teacher, objective="saad")
    shapes = []
    teacher.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["pixel_values"]), with_kwargs=True
    )
    images = torch.rand(2, 3, 8, 8)
    trainer.teacher(images)
    assert shapes[0].shape == (2, 3, 16, 16)
    enlarged = torch.nn.functional.interpolate(images, (16, 16), mode="bilinear", antialias=True)
    normalised = (enlarged - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(processor.data_config["std"]).view(3, 1, 1)
    assert torch.allclose(shapes[0], normalised, atol=1e-5)
    trainer.train()


@pytest.mark.parametrize(("flip", "crop"), [(False, 0), (True, 0), (False, 1)])
def test_known_teachers_logits_train_as_computed_ones_do_and_cost_nothing(tmp_path, flip, crop):
    ends = []
    for known in (True, False):
        trainer = trainer_of(
            tmp_path / str(known), teacher_of(), objective="rslad", random_flip=flip, random_crop=crop, cache_features=known
        )
        run, seen = type(trainer)._step, []

        def counted(self, *args, run=run, seen=seen):
            step = run(self, *args)
            hook = self._teacher.classifier.model.timm_model.stem
            if not hook._forward_hooks:
                hook.register_forward_hook(lambda *_: seen.append(1))
            return step

        trainer._step = counted.__get__(trainer)
        trainer.train()
        assert len(seen) == (0 if known and not crop else 2)  # one pass in each of two steps, or none
        ends.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
    assert all(torch.allclose(value, ends[1][name], atol=1e-5) for name, value in ends[0].items())
