"""A run that ends without numbers leaves nothing that could be taken for a trained model."""

import math

import pytest

from hf_robust_transfer import RobustTrainingArguments
from hf_robust_transfer.data import ImageSplits
from hf_robust_transfer.run_folder import FINISHED_NAME, is_finished, is_of_a_model
from hf_robust_transfer.runs.train import train_and_evaluate


def test_an_evaluation_without_numbers_leaves_no_model(tiny, digits, tmp_path):
    model, processor = tiny("timm-convnext")

    def overflow(module, _inputs, output):  # in eval mode only, so that training goes to its end
        if not module.training:
            output.logits[:1] = math.nan
        return output

    model.register_forward_hook(overflow)
    splits = ImageSplits(digits.select(range(32)), digits.select(range(32, 48)), None, [str(digit) for digit in range(10)])
    folder = tmp_path / "run"
    options = {"max_steps": 2, "save_steps": 1, "save_strategy": "steps", "eval_attack_steps": 0, "report_to": "none"}
    args = RobustTrainingArguments(str(folder), per_device_train_batch_size=16, disable_tqdm=True, use_cpu=True, **options)
    with pytest.raises(FloatingPointError, match="evaluation: the logits of 1 of 16 clean images are not finite"):
        train_and_evaluate(model, processor, splits, args)
    assert (folder / "checkpoint-2").is_dir() and not (folder / FINISHED_NAME).exists() and not is_finished(folder)
    assert not [path.name for path in folder.iterdir() if is_of_a_model(path.name)]
