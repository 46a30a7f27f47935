"""How fast PGD is."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hf_robust_transfer import (
    pgd,
)
from hf_robust_transfer.modeling.attack_copy import attack_copy
from recipes.benchmark.measuring import attack_step_operations, ceiling, row, shares, take_turns
from recipes.benchmark.setting import LINF_8, Setting, peers


def pgd_all_steps(setting: Setting, precision: str) -> dict[str, Any]:
    """PGD-20 with all steps on all images."""
    classifier, batches = setting.robust, setting.batches()
    fast = attack_copy(classifier, batches[0][0][:2], precision)

    def ours() -> None:
        for images, labels in batches:
            pgd(fast, images, labels, LINF_8, steps=20)

    contenders = {name: _on(batches, attack) for name, attack in peers(classifier).items()}
    seconds = take_turns({"ours": ours, **contenders}, setting.args.rounds)
    best, samples = min(contenders, key=lambda name: seconds[name]), sum(len(labels) for _, labels in batches)
    images, labels = batches[0]
    step_rate = 20 * attack_step_operations(classifier, images[:2]) * samples
    ceilings = {each: ceiling(each, setting.device) for each in (precision, "float32")}
    return row(
        f"PGD-20, all steps, {precision}",
        ">= 4" if precision == "bf16" else ">= 1.15",
        samples / seconds["ours"],
        samples / seconds[best],
        best,
        "images/s",
        all_peers={name: samples / seconds[name] for name in contenders},
        share_of_ceiling={
            "ours": step_rate / seconds["ours"] / ceilings[precision],
            "peer": step_rate / seconds[best] / ceilings["float32"],
        },
        ceiling_to_float32=ceilings[precision] / ceilings["float32"],
        profile=shares(lambda: pgd(fast, images, labels, LINF_8, steps=5)),
    )


def _on(batches: list[tuple[Tensor, Tensor]], attack: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], list[Tensor]]:
    return lambda: [attack(images, labels) for images, labels in batches]
