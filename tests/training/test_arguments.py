"""Options of training that are refused."""

import pytest

from hf_robust_transfer import RobustTrainingArguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": "8"}, r"--eps=8 .* divide it by 255"),
        ({"eps": "abc"}, r"--eps='abc' is not a number"),
        ({"norm": "l7"}, r"--norm l7 is unknown: use linf or l2"),
        ({"objective": "magic"}, r"--objective magic is unknown: use natural, .* or saad"),
        ({"lwf_distance": "l3"}, r"--lwf_distance l3 is unknown"),
        ({"freeze": "some"}, r"--freeze='some' must be"),
        ({"attack_step_size": "0"}, r"--attack_step_size must be above 0"),
        ({"eval_attack_step_size": "x"}, r"--eval_attack_step_size='x' is not a number"),
        ({"attack_steps": 0}, r"--attack_steps 0 must be at least 1"),
        ({"lwf_weight": -1.0}, r"--lwf_weight -1.0 must be at least 0"),
        ({"warm_start_steps": 0.5, "freeze": "backbone"}, r"--warm_start_steps .* --freeze backbone"),
        ({"label_smoothing_factor": 0.1}, r"--label_smoothing_factor is not supported"),
        ({"bf16_full_eval": True}, r"--bf16_full_eval is not supported: robustness is judged in float32"),
    ],
)
def test_bad_arguments_are_refused_by_name(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        RobustTrainingArguments(str(tmp_path), **arguments)
