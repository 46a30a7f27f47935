"""Objectives of a user's own: given as functions or by name, with their options and samplers."""

import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tiny_models import PLAIN
from torch.utils.data import Sampler
from transformers import TrainingArguments

from hf_robust_transfer import PixelClassifier, RobustTrainer, RobustTrainingArguments
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.functions import Weight, function_named
from hf_robust_transfer.objectives import OBJECTIVES, ObjectiveOutput, trades
from hf_robust_transfer.transfer import DISTANCES

FILE = """
from tiny_models import PLAIN
import torch.nn.functional as F
from hf_robust_transfer.objectives import ObjectiveOutput

def doubled(step, *, weight: float = 2.0):
    clean = step.clean()
    return ObjectiveOutput({"doubled": weight * F.cross_entropy(clean.logits, step.labels)}, clean)

def largest(student, teacher):
    return (student - teacher).abs().amax(1)
"""


def scaled(step, *, weight: Weight = 1.0, name: str = "scaled"):
    """Cross-entropy times a weight."""
    clean = step.clean()
    return ObjectiveOutput({name: weight * F.cross_entropy(clean.logits, step.labels)}, clean)


@pytest.fixture(autouse=True)
def _forgotten():
    before = [(known, dict(known)) for known in (OBJECTIVES, DISTANCES)]
    yield
    for known, names in before:
        known.clear()
        known.update(names)


@pytest.fixture
def train(tiny, digit_batch, tmp_path):
    """A function (trainer's options, **arguments) -> the trainer after two steps on 16 digits."""

    def run(trainer=None, **arguments):
        model, processor = tiny("timm-convnext")
        images, labels = digit_batch(count=16)
        data = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]
        options = {
            **PLAIN,
            "report_to": "none",
            "disable_tqdm": True,
            "logging_steps": 1,
            "save_strategy": "no",
            "max_steps": 2,
        }
        options |= {"use_cpu": True, "per_device_train_batch_size": 8, **arguments}
        args = RobustTrainingArguments(str(tmp_path / "run"), **options)
        teacher = PixelClassifier(*tiny("timm-convnext", seed=1)) if args.lwf_weight else None
        made = RobustTrainer(
            model, args, processing_class=processor, teacher=teacher, train_dataset=data, **(trainer or {})
        )
        made.train()
        return made

    return run


def losses(trainer, name="loss"):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_a_function_trains_with_its_options_and_is_recorded_under_its_name(train):
    natural = train()
    trainer = train({"objective": partial(scaled, weight=1.0)})
    assert losses(trainer) == losses(natural)
    assert (trainer.args.objective, trainer.args.objective_options) == ("scaled", {"weight": 1.0, "name": "scaled"})
    assert losses(trainer, "loss_scaled") == losses(trainer)
    trainer = train(objective=scaled, objective_options={"weight": 3, "name": "mine"})
    assert losses(trainer)[0] == pytest.approx(3 * losses(natural)[0])
    assert losses(trainer, "loss_mine") == losses(trainer)


def test_a_checkpoint_of_an_own_objective_is_resumed_exactly(train, tmp_path):
    whole = train({"objective": scaled}, max_steps=4, save_strategy="steps", save_steps=2)
    saved = torch.load(tmp_path / "run" / "checkpoint-2" / "training_args.bin", weights_only=False)
    assert (saved.objective, saved.objective_options) == ("scaled", {"weight": 1.0, "name": "scaled"})
    weights = {name: value.clone() for name, value in whole.model.state_dict().items()}
    whole.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert all(torch.equal(value, weights[name]) for name, value in whole.model.state_dict().items())


@pytest.mark.parametrize("place", ["file", "module"])
def test_objectives_and_distances_are_found_in_a_users_file_or_module(train, tmp_path, monkeypatch, place):
    (tmp_path / f"own_{place}.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    where = "own_file.py" if place == "file" else "own_module"
    natural, known = train(lwf_weight=0.5), {"largest": function_named(f"{where}:largest", "--lwf_distance")}
    trainer = train(objective=f"{where}:doubled", objective_options='{"weight": 3}', lwf_weight=0.5)
    assert losses(trainer, "loss_doubled")[0] == pytest.approx(3 * losses(natural, "loss_natural")[0])
    by_name = train(lwf_weight=0.5, lwf_distance=f"{where}:largest")
    by_function = train(lwf_weight=0.5, lwf_distance=known["largest"])
    assert by_function.args.lwf_distance == "largest"
    assert losses(by_name) == losses(by_function) != losses(natural)


def test_a_sampler_of_its_own_orders_the_training_set(train):
    seen = []

    class Backwards(Sampler):
        def __init__(self, size, *, group, seed, stride):
            self.rows = [*range(size - 1, -1, -stride)]
            assert group == 8

        def __len__(self):
            return len(self.rows)

        def __iter__(self):
            return iter(self.rows)

    def ordered(step, *, stride: int = 1):
        seen.extend(step.indices.tolist())
        return scaled(step)

    ordered.sampler = Backwards
    train({"objective": ordered}, max_steps=-1, num_train_epochs=1)
    assert seen == [*range(15, -1, -1)]


def test_a_known_function_keeps_its_name_and_its_flag(tmp_path):
    args = RobustTrainingArguments(str(tmp_path), objective=trades, objective_options=json.dumps({"beta": 3}))
    assert (args.objective, args.trades_beta, args.objective_options) == ("trades", 3.0, {})
    assert args.objective_kwargs == {"beta": 3.0}
    args = RobustTrainingArguments(str(tmp_path), objective="free", free_replays=2)
    assert args.objective_kwargs == {"replays": 2}
    assert isinstance(args, TrainingArguments)


def natural(step):
    """Has the name of one of the package's objectives."""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "magic"}, r"--objective magic is unknown: use natural, .* or saad, or a function of yours"),
        ({"objective": "magic:trick"}, r"--objective 'magic:trick': there is no module 'magic'"),
        ({"objective": "magic.py:trick"}, r"there is no file magic\.py"),
        ({"objective": "math:trick"}, r"--objective 'math:trick': math has no function 'trick'"),
        ({"objective": natural}, r"--objective natural is the name of one of this package's functions"),
        (
            {"objective": "trades", "objective_options": '{"gamma": 1}'},
            r"trades has no option 'gamma', only beta",
        ),
        ({"objective_options": '{"beta": 1}'}, r"natural has no option 'beta' and no others"),
        ({"objective": "trades", "objective_options": '{"beta": -1}'}, r"beta='-1' must be a number of at least 0"),
        ({"objective": "trades", "objective_options": '{"beta": "x"}'}, r"beta='x' must be a number of at least 0"),
        ({"objective": "free", "objective_options": '{"replays": 0}'}, r"replays='0' must be a whole number of at least 1"),
        ({"objective": "free", "objective_options": '{"replays": 2.5}'}, r"replays='2.5' must be a whole number"),
        ({"objective_options": "beta=1"}, r"--objective_options beta=1 is not a JSON object"),
        ({"lwf_distance": "math:nothing"}, r"--lwf_distance 'math:nothing': math has no function 'nothing'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message) as caught:
        RobustTrainingArguments(str(tmp_path), **arguments)
    assert "\n" not in str(caught.value)


def test_an_error_in_a_users_own_module_keeps_its_traceback(tmp_path):
    (tmp_path / "broken.py").write_text("import a_module_that_is_not_there\n")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        RobustTrainingArguments(str(tmp_path), objective=f"{tmp_path}/broken.py:mine")
