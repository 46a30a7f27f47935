"""Ways to transfer by name: the options that go together."""

from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from ..functions import choices

_ALL_TRAINS = {"batch_norm_eval": True, "halve_on_divergence": 3}
# The head until it has converged: with known features it costs seconds, and what follows starts from where it belongs.
# Clipping there bites in the few steps that would diverge, and in no others that were measured.
_WARM_START = {**_ALL_TRAINS, "warm_start_epochs": 20.0, "max_grad_norm": 5.0}
_ATTACKED_HEAD = 5.0
PRESETS: dict[str, dict[str, Any]] = {
    "frozen": {"freeze": "backbone"},
    "lwf": {**_WARM_START, "unfreeze_warmup_steps": 0.3, "learning_rate": 0.03, "lwf_weight": 1.0},
    "fine_tuned": {**_WARM_START, "unfreeze_warmup_steps": 0.1},
    "roli": {
        **_ALL_TRAINS,
        "objective": "pgd",
        "warm_start_epochs": _ATTACKED_HEAD,
        "unfreeze_warmup_steps": 0.15,
        "eval_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "robust_accuracy",
    },
    "anchor": {
        **_ALL_TRAINS,
        "objective": "anchor",
        "warm_start_epochs": 20.0,
        "unfreeze_warmup_steps": 0.15,
    },
}
# How ε of training grows: nothing, then linearly, then all of it (Ngnawé et al., arXiv 2509.23325).
EPS_SCHEDULES = {
    "constant": {"eps_delay_steps": 0.0, "eps_warmup_steps": 0.0},
    "hinge": {"eps_delay_steps": 0.25, "eps_warmup_steps": 0.5},
}
_OTHERWISE = {
    "objective": "natural",
    "freeze": "none",
    "learning_rate": 0.01,
    "warm_start_steps": 0.0,
    "warm_start_epochs": 0.0,
    "unfreeze_warmup_steps": 0.0,
    "halve_on_divergence": 0,
    "max_grad_norm": 0.0,
    "batch_norm_eval": None,
    "lwf_weight": 0.0,
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "metric_for_best_model": None,
}


def preset(name: str | None, given: Mapping[str, Any], *, optim: str = "sgd", attacks_head: bool = False) -> dict[str, Any]:
    """The options of a way to transfer; what is given goes before.

    Args:
        name: ``"frozen"``, the head alone is retrained; ``"lwf"``, first the head, then all of it, its features kept close
            to the source's (Shafahi et al., ICLR 2020); ``"fine_tuned"``, first the head, then all of it; ``"roli"``, the
            same adversarially, and the epoch of the highest robust accuracy is kept (Hua et al., CVPR 2024); ``"anchor"``,
            first the head, then all of it, the features of adversarial images kept close to the source's of clean ones; or
            None, for training that is no transfer.
        given: options by their names, None where they are to follow from the preset.
        optim: the optimizer.
        attacks_head: whether an attack is made in each step in which the head trains alone, which is then at most 5 epochs
            by default.

    Returns:
        ``objective``, ``learning_rate``, ``freeze``, ``warm_start_steps``, ``warm_start_epochs``,
        ``unfreeze_warmup_steps``, ``halve_on_divergence``, ``max_grad_norm``, ``batch_norm_eval``, ``lwf_weight``,
        ``eval_strategy``, ``load_best_model_at_end`` and ``metric_for_best_model``. Where a preset trains the head alone
        ``learning_rate`` may stay None: it follows from the head's features. A warm start that is given in epochs takes
        the place of one in steps, and the other way round.

    Raises:
        UsageError: an unknown name, or an optimizer that the presets have no learning rate for.

    Example:
        >>> options = preset("lwf", {"lwf_weight": 0.5})
        >>> options["lwf_weight"], options["learning_rate"], options["warm_start_epochs"]
        (0.5, 0.03, 20.0)
    """
    if name is not None and name not in PRESETS:
        raise UsageError(f"--transfer {name} is unknown: use {choices(PRESETS)}")
    if name is not None and optim != "sgd" and given.get("learning_rate") is None:
        raise UsageError(f"--learning_rate is missing: there is a default for --optim sgd, but not for {optim}")
    options = {**_OTHERWISE, **PRESETS.get(name or "", {})}
    for option, other in (("warm_start_steps", "warm_start_epochs"), ("warm_start_epochs", "warm_start_steps")):
        if given.get(option) is not None:
            options[other] = _OTHERWISE[other]
    if attacks_head:
        options["warm_start_epochs"] = min(options["warm_start_epochs"], _ATTACKED_HEAD)
    options |= {option: given[option] for option in options if given.get(option) is not None}
    if name is not None and options["freeze"] == "backbone" and given.get("learning_rate") is None:
        options["learning_rate"] = None
    return options
