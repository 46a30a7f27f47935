"""Attacks by their names, with numbers and options."""

import pytest

from hf_robust_transfer.evaluation import (
    parse_attack,
    parse_attacks,
)


def test_attacks_are_read_with_their_numbers_and_options():
    assert parse_attack("pgd-20").options == {"steps": 20, "restarts": 1, "step_size": None, "loss": "cross_entropy"}
    restarted = parse_attack("pgd-100:restarts=5,step_size=2/255")
    assert (restarted.options["restarts"], restarted.options["step_size"]) == (5, 2 / 255)
    assert parse_attack("cw-100").options["loss"] == "margin"
    assert parse_attack("noise-10").options == {"restarts": 10}
    assert parse_attack("square-500").options == {"queries": 500}
    assert parse_attack("apgd-ce").kind == "apgd-ce" and parse_attack("fgsm:random_start=true").options["random_start"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pgd20", "attack 'pgd20' is unknown: use noise, fgsm, pgd"),
        ("pgd-20:step=3", "pgd has no option 'step', only steps, restarts, step_size, loss"),
        ("fgsm-3", "fgsm has no number, only random_start"),
        ("autoattack-5", "autoattack has no number and no options"),
        ("pgd-0", "steps='0' must be a whole number of at least 1"),
        ("pgd:loss=hinge", "loss='hinge' is unknown: use cross_entropy, margin, kl"),
        ("pgd:step_size=big", "step_size='big' is not a number"),
        ("fgsm:random_start=1", "random_start='1' must be true or false"),
    ],
)
def test_a_misspelled_attack_is_refused_with_what_there_is(name, message):
    with pytest.raises(ValueError) as error:
        parse_attack(name)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "attacks (none): name at least one, and none twice"),
        (["pgd-20", "pgd-20"], "none twice"),
        (["transfer"], "give a surrogate of the same labels"),
    ],
)
def test_a_list_of_attacks_that_cannot_run_is_refused(names, message):
    with pytest.raises(ValueError) as error:
        parse_attacks(names, surrogate=False)
    assert message in str(error.value)
