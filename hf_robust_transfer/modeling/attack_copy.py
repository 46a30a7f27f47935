"""A copy of a classifier for attacks: the same function, in the form that this hardware computes fastest."""

import copy
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import UsageError
from ..logits import logits_in, logits_of
from .classifier import PixelClassifier, device_of, full_precision, undo_mixed_precision

PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

_SMALLEST_BATCH = 8


def choose_precision(precision: str, device: torch.device) -> str:
    """Replace ``"auto"`` by ``"bf16"`` where the hardware multiplies in it, else by ``"float32"``.

    fp16 is never chosen by itself: small gradients vanish in it.

    Raises:
        ValueError: neither ``"auto"`` nor one of `PRECISIONS`.

    Example:
        >>> choose_precision("fp16", torch.device("cpu"))
        'fp16'
    """
    if precision != "auto":
        if precision not in PRECISIONS:
            raise UsageError(f"precision={precision!r} is unknown: use auto, {', '.join(PRECISIONS)}")
        return precision
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        cpu: Any = torch.cpu
        able = device.type == "cpu" and (cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
    return "bf16" if able else "float32"


def attack_copy(
    classifier: nn.Module,
    images: Tensor,
    precision: str = "auto",
    *,
    compiled: bool = False,
    largest_batch: int | None = None,
) -> Callable[[Tensor], Tensor]:
    """A function from images to logits that equals a classifier in eval mode but for rounding, and is faster.

    It runs a `folded_copy` under autocast. What happens to the classifier later does not show in it.

    Args:
        classifier: maps [0, 1] images to logits, on its device.
        images: a few images that it takes, (B, C, H, W), as for `folded_copy`.
        precision: ``"float32"``, ``"bf16"`` or ``"fp16"``, as autocast computes in it; ``"auto"`` as `choose_precision`.
        compiled: run it through `torch.compile`, which takes a minute at first and needs a C++ compiler.
        largest_batch: pad smaller batches to this size, its half, its quarter, …: attacks ask with ever fewer images, and
            for each new size a GPU chooses its kernels again, and `torch.compile` compiles again.

    Returns:
        A function of images on the classifier's device, differentiable in them; logits have the images' dtype.

    Raises:
        ValueError: an unknown precision.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)).eval()
        >>> images = torch.rand(5, 3, 4, 4)
        >>> torch.allclose(attack_copy(model, images, "float32")(images), model(images), atol=1e-5)
        True
    """
    device = device_of(classifier)
    precision = choose_precision(precision, device)
    module = folded_copy(classifier, images, precision)
    run: Callable[[Tensor], Tensor] = torch.compile(module) if compiled else module

    def fast(images: Tensor) -> Tensor:
        with autocast(device, precision):
            return logits_of(run, images).to(images.dtype)

    return fast if largest_batch is None else _padding(fast, largest_batch)


def _padding(classify: Callable[[Tensor], Tensor], largest: int) -> Callable[[Tensor], Tensor]:
    """The same function of images, which sees few sizes of batches. In eval mode images do not see each other."""
    sizes = [largest]
    while sizes[-1] > _SMALLEST_BATCH:
        sizes.append(math.ceil(sizes[-1] / 2))

    def padded(images: Tensor) -> Tensor:
        size = min((size for size in sizes if size >= len(images)), default=len(images))
        if len(images) in (0, size):
            return classify(images)
        more = images.detach()[-1:].expand(size - len(images), *images.shape[1:])
        return classify(torch.cat([images, more]))[: len(images)]

    return padded


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to a precision on a device; in float32, none."""
    return torch.autocast(device.type, dtype=PRECISIONS[precision], enabled=PRECISIONS[precision] is not None)


Module = TypeVar("Module", bound=nn.Module)


def folded_copy(classifier: Module, images: Tensor, precision: str) -> Module:
    """A copy in eval mode, to run under `autocast`: batch-norm folded into convolutions, weights cast once, channels-last.

    No parameter of it requires a gradient.

    Args:
        classifier: a network over [0, 1] images.
        images: a few images that it takes; folding is compared on them with the original, and done only where both agree.
        precision: one of `PRECISIONS`.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
        >>> print(folded_copy(model, torch.rand(2, 3, 8, 8), "float32")[1])
        Sequential()
    """
    given = classifier.merged() if isinstance(classifier, PixelClassifier) else classifier
    copied: Any = copy.deepcopy(given).eval().requires_grad_(False)
    undo_mixed_precision(getattr(copied, "model", copied))  # it would run the original
    if PRECISIONS[precision] is not None:
        copied.float()  # autocast expects it of what it does not compute in low precision
    _fold_batch_norms(copied, images)
    for module in copied.modules():
        if type(module) in (nn.Conv2d, nn.Linear):
            module.to(dtype=PRECISIONS[precision]).to(memory_format=torch.channels_last)
    return copied


def _fold_batch_norms(model: nn.Module, images: Tensor) -> None:
    """Fold each batch-norm that directly follows a convolution into it, in place, in eval mode.

    Which one follows which is observed on a forward pass; that nothing else uses what is between them follows from the
    logits staying the same.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    calls: list[nn.Module] = []
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after_convolution(module: nn.Conv2d, _: Any, output: Tensor) -> None:
        calls.append(module)
        outputs[id(output)] = (module, output)  # kept, so that its id is not given to another tensor

    def before_norm(module: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        calls.append(module)
        if id(inputs[0]) in outputs:
            pairs.append((outputs[id(inputs[0])][0], module))

    handles = []
    for module in model.modules():
        if type(module) is nn.Conv2d:
            handles.append(module.register_forward_hook(after_convolution))
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d) and module.running_var is not None:
            handles.append(module.register_forward_pre_hook(before_norm))
    with torch.no_grad(), full_precision(model):
        expected = logits_in(model(images))
        for handle in handles:
            handle.remove()
        pairs = [pair for pair in pairs if all(calls.count(module) == 1 for module in pair)]
        # All at once, or else one by one, keeping those that leave the logits as they were.
        if not _fold(model, pairs, images, expected):
            for pair in pairs:
                _fold(model, [pair], images, expected)


def _fold(model: nn.Module, pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]], images: Tensor, expected: Tensor) -> bool:
    """Fold each batch-norm into its convolution; where the logits do not stay as expected, undo it and say so."""
    names = {module: name for name, module in model.named_modules()}
    for convolution, norm in pairs:
        rest = [norm.drop, norm.act] if isinstance(norm, BatchNormAct2d) else []
        model.set_submodule(names[norm], nn.Sequential(*rest))
        model.set_submodule(names[convolution], fuse_conv_bn_eval(convolution, norm))
    if torch.allclose(logits_in(model(images)), expected, rtol=0, atol=1e-4 * float(expected.abs().amax())):
        return True
    for pair in pairs:
        for module in pair:
            model.set_submodule(names[module], module)
    return False
