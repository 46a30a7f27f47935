"""Pixels of every type in training, and what its evaluations judge by."""

import pytest
import torch
from tiny_models import PLAIN

from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.training import RobustTrainer, RobustTrainingArguments


@pytest.fixture
def trainer_on(tiny, digit_batch, tmp_path):
    """A function (a function of pixels) -> a trainer with adversarial training on what it makes of sixteen digits."""

    def make(change, **trainer):
        model, processor = tiny("timm-convnext")
        images, labels = digit_batch(count=16)
        images = (images * 255).round() / 255
        data = [{"pixel_values": change(image), "labels": int(label)} for image, label in zip(images, labels, strict=True)]
        options = {"objective": "pgd", "attack_steps": 2, "eval_attack_steps": 2, "max_steps": 1, "report_to": "none"}
        options |= {"save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "per_device_train_batch_size": 8}
        args = RobustTrainingArguments(str(tmp_path / "run"), **PLAIN, **options)
        return RobustTrainer(model, args, processing_class=processor, train_dataset=data, eval_dataset=data, **trainer)

    return make


def trained_and_evaluated(trainer):
    trainer.train()
    metrics = trainer.evaluate()
    return {name: metrics[f"eval_{name}"] for name in ("loss", "robust_loss", "accuracy", "robust_accuracy")}


def test_training_and_its_evaluation_take_pixels_of_every_floating_type_and_bytes(trainer_on):
    expected = trained_and_evaluated(trainer_on(lambda pixels: pixels))
    for change, tolerance in {
        lambda pixels: (pixels * 255).byte(): 1e-4,
        torch.Tensor.double: 1e-4,
        torch.Tensor.half: 0.02,
        torch.Tensor.bfloat16: 0.1,
    }.items():
        assert trained_and_evaluated(trainer_on(change)) == pytest.approx(expected, rel=tolerance, abs=0.07)


@pytest.mark.parametrize(
    "change", [lambda pixels: (pixels * 255).long(), lambda pixels: pixels > 0.5, lambda pixels: pixels * 255]
)
def test_other_pixels_are_refused(trainer_on, change):
    with pytest.raises(UsageError, match="pixel_values are"):
        trainer_on(change).train()
    with pytest.raises(UsageError, match="pixel_values are"):
        trainer_on(change).evaluate()


def test_a_collator_of_ones_own_that_makes_whole_pixels_is_refused(trainer_on):
    def collated(items):
        images = torch.stack([(item["pixel_values"] * 255).long() for item in items])
        return {name: torch.tensor([item[name] for item in items]) for name in ("labels", "indices")} | {
            "pixel_values": images
        }

    trainer = trainer_on(lambda pixels: pixels, data_collator=collated)
    for do in (trainer.train, trainer.evaluate):
        with pytest.raises(UsageError, match="as_pixels"):
            do()


def test_evaluations_of_training_judge_without_tf32(trainer_on):
    trainer = trainer_on(lambda pixels: pixels)
    seen = []
    backends = torch.backends
    trainer.model.register_forward_pre_hook(
        lambda *_: seen.append((torch.is_grad_enabled(), backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32))
    )
    torch.set_float32_matmul_precision("high")
    try:
        trainer.evaluate()
        judged = [flags for with_gradient, *flags in seen if not with_gradient]
        assert judged == [[False, False]] * 2  # the images as they are and attacked
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
