"""Time, operations and profiles, and a line of the table from them."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from recipes.benchmark.setting import LOW


def timed(run: Callable[[], Any]) -> float:
    """Seconds that a call takes, the device's work included."""
    synchronise()
    began = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - began


def synchronise() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def take_turns(contenders: dict[str, Callable[[], Any]], rounds: int, *, warm_up: bool = True) -> dict[str, float]:
    """The median seconds of each contender over rounds in which all of them run, one after the other."""
    if warm_up:
        for run in contenders.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            seconds[name].append(timed(run))
    return {name: median(values) for name, values in seconds.items()}


def ceiling(precision: str, device: torch.device) -> float:
    """The rate of a large convolution in a precision, in floating-point operations per second: best of five.

    Convolutions, because that is what the models here consist of; on CPUs they can be faster than matrix products.
    """
    dtype = LOW if precision == "bf16" else torch.float32
    convolution = nn.Conv2d(256, 256, 3, padding=1, bias=False, device=device, dtype=dtype).requires_grad_(False)
    convolution = convolution.to(memory_format=torch.channels_last)
    images = torch.rand(32, 256, 16, 16, device=device).to(dtype, memory_format=torch.channels_last)
    operations = 2 * 9 * 256**2 * images.shape[0] * 16 * 16
    return operations / min(timed(lambda: [convolution(images) for _ in range(10)]) / 10 for _ in range(5))


def attack_step_operations(classifier: nn.Module, images: Tensor) -> float:
    """Floating-point operations of one image's forward pass and input gradient, which costs as many again."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        classifier(images)
    return 2 * counter.get_total_flops() / len(images)


def shares(run: Callable[[], Any]) -> dict[str, float]:
    """What a call spends its time on: the shares of the five costliest operators."""
    with profile() as profiler:
        run()
    events = {event.key: event.self_cpu_time_total + event.self_device_time_total for event in profiler.key_averages()}
    total = sum(events.values())
    costliest = sorted(events, key=lambda key: -events[key])[:5]
    return {key.removeprefix("aten::"): round(events[key] / total, 3) for key in costliest}


def row(name: str, target: str, ours: float, peer: float, peer_name: str, unit: str, **more: Any) -> dict[str, Any]:
    """One line of the table. The ratio is ours to the peer's."""
    ratio = ours / peer
    shown: dict[str, Any] = {"name": name, "ratio": ratio, "target": target, "met": _meets(ratio, target)}
    return {**shown, "ours": ours, "peer": peer, "peer_name": peer_name, "unit": unit, **more}


def _meets(value: float, target: str) -> bool:
    bound = float(target.split()[1])
    return value >= bound if target.startswith(">=") else value <= bound
