"""How the trainer stands on its base class."""

from transformers import Trainer

from hf_robust_transfer import RobustTrainer


def test_private_parts_of_the_base_class_are_overridden_where_it_has_no_public_hook():
    overridden = {
        name
        for one in RobustTrainer.__mro__[: RobustTrainer.__mro__.index(Trainer)]
        for name in vars(one)
        if name.startswith("_") and not name.startswith("__") and hasattr(Trainer, name)
    }
    assert overridden == {"_get_train_sampler", "_push_from_checkpoint"}
