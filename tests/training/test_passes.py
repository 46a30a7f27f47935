"""No step makes a pass over the network that it could do without: forward and backward passes, counted with hooks."""

import pytest
import torch
from tiny_models import PLAIN

from hf_robust_transfer import PixelClassifier, RobustTrainer, RobustTrainingArguments

K = 3


class Items(list):
    """Items of a data set that stay the same."""

    fingerprint = "eight digits"


@pytest.fixture
def passes(tiny, digit_batch, tmp_path):
    """A function (**arguments) -> forward and backward passes of the student's network, and forward passes of the teacher.

    Of one step on a batch of eight; passes over other numbers of images count as the part of a batch that they are.
    """

    def count(evaluate=False, **arguments):
        model, processor = tiny("timm-convnext")
        teacher = PixelClassifier(*tiny("timm-convnext", seed=1)) if arguments.get("lwf_weight") else None
        seen = {"forward": 0.0, "backward": 0.0, "teacher": 0.0}

        def watch(network, name, backward):
            def forward(_, inputs, output):
                if len(inputs[0]) == 2:  # the first two images, looked at before training
                    return
                seen[name] += len(inputs[0]) / 8
                if backward and output.requires_grad:
                    output.register_hook(lambda gradient: seen.update(backward=seen["backward"] + len(gradient) / 8))

            network.timm_model.stages[-1].register_forward_hook(forward)

        watch(model, "forward", True)
        if teacher is not None:
            watch(teacher.model, "teacher", False)
        images, labels = digit_batch(8)
        data = Items({"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True))
        args = RobustTrainingArguments(
            str(tmp_path / "run"),
            use_cpu=True,
            feature_cache_dir=str(tmp_path / "features"),
            eps="0.1",
            attack_steps=K,
            eval_attack_steps=K,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            **{
                **PLAIN,
                "max_steps": 1,
                "cache_features": False,
                "free_replays": 1,
                "per_device_train_batch_size": 8,
                **arguments,
            },
        )
        trainer = RobustTrainer(
            model, args, processing_class=processor, teacher=teacher, train_dataset=data, eval_dataset=data
        )
        trainer.evaluate() if evaluate else trainer.train()
        return seen["forward"], seen["backward"], seen["teacher"]

    return count


@pytest.mark.parametrize(
    ("objective", "forward", "backward"),
    [
        ("natural", 1, 1),
        ("pgd", K + 1, K + 1),
        # The attack compares with clean logits in eval mode, training with those in train mode.
        ("trades", 1 + K + 2, K + 2),
        ("fast", 2, 2),
        # One backward pass for both the weights and the perturbation.
        ("free", 1, 1),
    ],
)
def test_a_step_makes_the_passes_of_its_definition(passes, objective, forward, backward):
    assert passes(objective=objective) == (forward, backward, 0)
    # The LwF term needs clean features, of the student and of the teacher; natural and trades have the student's.
    clean = 0 if objective in ("natural", "trades") else 1
    assert passes(objective=objective, lwf_weight=0.5) == (forward + clean, backward + clean, 1)


def test_known_features_of_the_teacher_cost_a_step_nothing(passes):
    assert passes(lwf_weight=0.5, cache_features=True, max_steps=4) == (4, 4, 1)
    assert passes(lwf_weight=0.5, cache_features=True, max_steps=4) == (4, 4, 0)  # found again


def test_a_frozen_backbone_is_run_once_and_never_backwards(passes):
    assert passes(freeze="backbone", cache_features=True, max_steps=4) == (1, 0, 0)
    assert passes(freeze="backbone", max_steps=4) == (4, 0, 0)


def test_an_evaluation_attacks_and_then_looks_at_clean_and_adversarial_images(passes):
    assert passes(evaluate=True) == (K + 2, K, 0)


def test_frozen_first_blocks_keep_nothing_for_a_backward_pass(tiny, digit_batch, tmp_path):
    """Bytes that autograd saves in a natural step fall with every block that is frozen."""
    saved = []
    for blocks in range(5):
        model, processor = tiny("timm-convnext")
        images, labels = digit_batch(8)
        data = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]
        args = RobustTrainingArguments(
            str(tmp_path / "run"),
            use_cpu=True,
            freeze=str(blocks),
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            max_steps=1,
        )
        trainer = RobustTrainer(model, args, processing_class=processor, train_dataset=data)
        saved.append(0)

        def pack(tensor):
            saved[-1] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer.train()
    assert saved == sorted(saved, reverse=True) and saved[-1] < saved[0] / 2
