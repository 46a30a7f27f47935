"""A run leaves a whole model or, where it ends without numbers, nothing that could be taken for one."""

import math

import pytest
from peft import LoraConfig, get_peft_model

from hf_robust_transfer import RobustTrainingArguments
from hf_robust_transfer.data import ImageSplits
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.hub import read_facts
from hf_robust_transfer.run_folder import FINISHED_NAME, is_finished, is_of_a_model
from hf_robust_transfer.runs.train import train_and_evaluate


def test_an_evaluation_without_numbers_leaves_no_model(tiny, digits, tmp_path):
    model, processor = tiny("timm-convnext")

    def overflow(module, _inputs, output):  # in evaluations only: not of the two images of a trial, and not in training
        if not module.training and len(output.logits) > 2:
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


def test_a_run_with_an_adapter_leaves_the_merged_model_and_its_record(tiny, digits, tmp_path):
    model, processor = tiny("timm-vit")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["qkv"], modules_to_save=["head"]))
    splits = ImageSplits(digits.select(range(32)), digits.select(range(32, 48)), None, [str(digit) for digit in range(10)])
    options = {"max_steps": 2, "eval_attack_steps": 1, "report_to": "none", "learning_rate": 0.1, "disable_tqdm": True}
    args = RobustTrainingArguments(str(tmp_path), per_device_train_batch_size=16, use_cpu=True, **options)
    train_and_evaluate(adapted, processor, splits, args)
    facts = read_facts(tmp_path)  # of the folder's model; a record of another one would not count
    assert is_finished(tmp_path) and facts.training["images"]["train"] == 32
    assert facts.adapted.rank == 4 and facts.adapted.targets == ["qkv"] and facts.adapted.whole == ["head"]
    with pytest.raises(UsageError, match="--merge_adapter false does not"):
        args.merge_adapter = False
        train_and_evaluate(adapted, processor, splits, args)
