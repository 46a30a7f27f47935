"""How fast evaluations are, and whether they find the same."""

from collections.abc import Callable
from typing import Any

import torch
from pyautoattack import AutoAttack
from torch import Tensor

from hf_robust_transfer import (
    PixelClassifier,
    evaluate_robustness,
)
from recipes.benchmark.measuring import row, shares, take_turns
from recipes.benchmark.setting import LINF_8, Plain, Setting, peers


def evaluation(setting: Setting, classifier: PixelClassifier, name: str, target: str) -> list[dict[str, Any]]:
    """Robust accuracy under PGD-20: ours in which samples leave, theirs attack-then-classify."""
    batches, size = setting.batches(), setting.args.batch_size
    plain = Plain(classifier).eval()
    found: dict[str, float] = {}

    def ours() -> None:
        report = evaluate_robustness(
            classifier,
            setting.dataset,
            LINF_8,
            ["pgd-20"],
            self_check_samples=0,
            curve_samples=0,
            chunk_size=size,
            progress=False,
        )
        found["ours"] = report.worst_case.value * len(setting.dataset)

    def theirs(peer: str, attack: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
        def run() -> None:
            right = 0
            for images, labels in batches:
                adversarial = attack(images, labels)
                with torch.no_grad():
                    right += int((plain(adversarial).argmax(1) == labels).sum())
            found[peer] = right

        return run

    contenders = {peer: theirs(peer, attack) for peer, attack in peers(classifier).items()}
    seconds = take_turns({"ours": ours, **contenders}, setting.args.rounds)
    best, samples = min(contenders, key=lambda peer: seconds[peer]), len(setting.dataset)
    speed = row(
        f"robust-accuracy evaluation, {name} source, {setting.low}",
        target,
        samples / seconds["ours"],
        samples / seconds[best],
        best,
        "images/s",
        all_peers={peer: samples / seconds[peer] for peer in contenders},
        robust_accuracy={peer: value / samples for peer, value in found.items()},
        profile=shares(ours),
    )
    if classifier is not setting.robust:
        return [speed]
    return [
        speed,
        _difference("robust accuracy found in that evaluation", found["ours"], found[best], best, samples),
    ]


def _difference(name: str, ours: float, peer: float, peer_name: str, samples: int) -> dict[str, Any]:
    """A line on how many samples two evaluations differ by: one in 200 may come from other random starts."""
    off, allowed = abs(ours - peer), max(1, samples // 200)
    line = {"name": f"{name}, difference", "ratio": off, "target": f"<= {allowed}", "met": off <= allowed}
    return {**line, "ours": ours, "peer": peer, "peer_name": peer_name, "unit": f"robust images of {samples}"}


def autoattack(setting: Setting) -> list[dict[str, Any]]:
    """AutoAttack standard in one round, ours against the package called plainly."""
    images, labels = setting.first(setting.args.autoattack_samples)
    dataset = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images.cpu(), labels, strict=True)]
    plain = Plain(setting.robust).to(setting.device).eval().requires_grad_(True)
    found: dict[str, float] = {}

    def ours() -> None:
        report = evaluate_robustness(
            setting.robust,
            dataset,
            LINF_8,
            ["autoattack"],
            self_check_samples=0,
            curve_samples=0,
            chunk_size=len(dataset),
            progress=False,
        )
        found["ours"] = report.worst_case.value * len(dataset)

    def theirs() -> None:
        attack = AutoAttack(plain, norm="Linf", eps=8 / 255, seed=0, version="standard", device=setting.device)
        adversarial, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
        with torch.no_grad():
            found["theirs"] = int((plain(adversarial).argmax(1) == labels).sum())

    seconds = take_turns({"ours": ours, "theirs": theirs}, 1, warm_up=False)
    speed = row(
        f"AutoAttack standard, {len(dataset)} images, robust source, {setting.low}",
        ">= 2.5",
        60 * len(dataset) / seconds["ours"],
        60 * len(dataset) / seconds["theirs"],
        "pyautoattack",
        "images/min",
    )
    return [speed, _difference("robust accuracy found by it", found["ours"], found["theirs"], "pyautoattack", len(dataset))]
