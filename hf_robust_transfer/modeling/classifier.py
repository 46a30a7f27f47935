"""The pixel-space classifier: the only view of a model that attacks and objectives have."""

import copy
import hashlib
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial, wraps
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import BaseImageProcessor, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from ..data import image_channels
from ..errors import UsageError
from .adapters import merged
from .heads import classifier_layers, logits_of_features
from .input_size import model_channels
from .processors import normalisation
from .resizing import resized


class ClassifierOutput(NamedTuple):
    """What a forward pass gives: logits (B, classes) and penultimate features (B, D)."""

    logits: Tensor
    features: Tensor


class PixelClassifier(nn.Module):
    """A classifier over [0, 1] pixels, with the checkpoint's normalisation inside.

    Args:
        model: any `transformers` image classifier, timm's inside `TimmWrapperForImageClassification` included.
        processor: the checkpoint's image processor, which knows its mean and standard deviation.
        forward_through: what to call instead of ``model``: the same model wrapped for distributed training, so that
            gradients are synchronised. It holds ``model``, whose `classifier_layers` give the features.

    Called with images (B, C, H, W) in [0, 1], it returns logits (B, classes), so that it goes wherever attack libraries
    expect a model; `outputs` returns the penultimate features too.

    Example:
        >>> from hf_robust_transfer.modeling import create_model
        >>> classifier = PixelClassifier(*create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"}))
        >>> logits, features = classifier.outputs(torch.rand(2, 3, 32, 32))
        >>> logits.shape, features.shape
        (torch.Size([2, 2]), torch.Size([2, 512]))
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: PreTrainedModel, processor: BaseImageProcessor, *, forward_through: nn.Module | None = None
    ) -> None:
        super().__init__()
        mean, std, self.flipped = normalisation(processor)
        self.model, self.processor = model, processor
        self._forward_through = [forward_through if forward_through is not None else model]  # a list: no submodule
        self.input_size: tuple[int, int] | None = None
        self.columns: list[int] | None = None
        self._layers = tuple(classifier_layers(model))
        self._channels_last = takes_channels_last(model)
        channels = model_channels(model)
        if image_channels(processor) != channels:
            raise UsageError(
                f"the model takes images of {channels} channels, its image processor makes them of"
                f" {image_channels(processor)}: load both with load_model, or give its"
                f" image_mean and image_std {channels} value{'s'[: channels - 1]}"
            )
        dtype = torch.promote_types(model.dtype, torch.float32)
        for name, value in (("mean", mean), ("std", std)):
            tensor = torch.tensor(value, dtype=dtype, device=model.device).view(1, -1, 1, 1)
            self.register_buffer(name, tensor, persistent=False)

    def view(self, *, size: tuple[int, int] | None = None, columns: Sequence[int] | None = None) -> "PixelClassifier":
        """The same classifier, weights and all, for images of another size or with some of its labels.

        Args:
            size: the height and width at which it sees images, which `resized` makes of them; by default as they come.
            columns: the labels that there are logits of, by their numbers and in this order; by default all.

        Example:
            >>> from hf_robust_transfer.modeling import create_model
            >>> teacher = PixelClassifier(*create_model("cifar_resnet18", id2label={0: "cat", 1: "dog", 2: "eel"}))
            >>> view = teacher.view(size=(32, 32), columns=[2, 0])
            >>> view(torch.rand(2, 3, 80, 64)).shape, view.labels
            (torch.Size([2, 2]), ['eel', 'cat'])
        """
        view = copy.copy(self)
        view.input_size = size
        view.columns = None if columns is None else list(columns)
        return view

    def merged(self, *, needed: bool = False) -> "PixelClassifier":
        """This classifier itself or, of a model with adapters of peft, a copy that has them merged into the weights.

        Args:
            needed: refuse adapters that cannot be merged; otherwise the classifier is then given back as it is.

        Raises:
            UsageError: some of the adapters cannot be merged.
        """
        whole = merged(self.model, needed=needed)
        if whole is self.model:
            return self
        copied = copy.deepcopy(self, {id(self.model): whole})  # all but the model, also of a class of the user's own
        copied._layers = tuple(classifier_layers(whole))
        return copied

    @property
    def labels(self) -> list[str]:
        """The labels' names, in the order of the logits."""
        id2label: dict[Any, str] = self.model.config.id2label or {}
        names = [id2label[index] for index in sorted(id2label)]
        return names if self.columns is None else [names[column] for column in self.columns]

    def from_features(self, features: Tensor) -> ClassifierOutput:
        """What `outputs` gives, from its features (B, D): the head alone, once `accept_features` was called."""
        logits = self._forward_through[0](pixel_values=None, features=features).logits
        return ClassifierOutput(self._chosen(logits), features)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W) in [0, 1], of any floating type."""
        if not images.is_floating_point():
            raise UsageError(f"images are {images.dtype}: pass floating pixels, as as_pixels makes them of uint8")
        dtype = torch.promote_types(images.dtype, torch.float32)  # to normalise in
        if self.input_size is not None:
            images = resized(images, self.input_size)
        normalised = ((images - self.mean.to(dtype)) / self.std.to(dtype)).to(self.model.dtype)
        normalised = normalised.flip(1) if self.flipped else normalised
        if self._channels_last:
            normalised = normalised.contiguous(memory_format=torch.channels_last)
        return self._chosen(self._forward_through[0](pixel_values=normalised).logits)

    def _chosen(self, logits: Tensor) -> Tensor:
        return logits if self.columns is None else logits[:, self.columns]

    def outputs(self, images: Tensor) -> ClassifierOutput:
        """Logits and penultimate features (B, D): the flattened inputs of all `classifier_layers`, put together."""
        captured: dict[str, Tensor] = {}

        def keep(name: str, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
            captured[name] = inputs[0]

        with ExitStack() as undo:
            for name in self._layers:
                hook = self.model.get_submodule(name).register_forward_pre_hook(partial(keep, name))
                undo.callback(hook.remove)
            logits = self(images)
        features = [captured[name].flatten(1) for name in self._layers]
        return ClassifierOutput(logits, features[0] if len(features) == 1 else torch.cat(features, 1))


def takes_channels_last(model: nn.Module) -> bool:
    """Whether a model may compute in the channels-last format, with which convolutions are fastest.

    On CPUs the gradient of a 1×1 convolution with a stride and less than eight input channels writes beyond its memory in
    that format (torch 2.9 to 2.14), as in the first block of MobileOne and RepVGG.
    """
    return not any(
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and max(module.stride) > 1 and module.in_channels < 8
        for module in model.modules()
    )


@contextmanager
def full_precision(classifier: nn.Module) -> Iterator[None]:
    """Run a classifier in float32: without autocast, without TF32, and without what `accelerate` puts around its model."""
    model = getattr(classifier, "model", classifier)
    patched = model.__dict__.get("forward")
    undo_mixed_precision(model)
    try:
        with without_tf32(), torch.autocast(device_of(classifier).type, enabled=False):
            yield
    finally:
        if patched is not None:
            model.forward = patched


@contextmanager
def without_tf32() -> Iterator[None]:
    """Have convolutions and matrix products of float32 computed in float32, and restore the settings on leaving.

    By default NVIDIA's convolutions round their factors to TF32, which has 10 bits of a float32's 23, and a user may have
    asked for TF32 or bfloat16 in matrix products too, also on CPUs.

    Example:
        >>> with without_tf32():
        ...     torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        (False, False)
    """
    backends: Any = torch.backends
    cuda, cudnn, onednn = backends.cuda, backends.cudnn, backends.mkldnn
    # Each kind of operation, with what it inherits its precision from where it has none of its own.
    kinds = [(cuda.matmul, cudnn), (cudnn.conv, cudnn), (cudnn.rnn, cudnn)]
    kinds += [(onednn.matmul, onednn), (onednn.conv, onednn), (onednn.rnn, onednn)]
    with ExitStack() as undo:
        for kind, parent in kinds:
            precision = kind.fp32_precision
            undo.callback(setattr, kind, "fp32_precision", "none" if precision == parent.fp32_precision else precision)
        # The older settings too, for torch refuses to tell them while they disagree with the newer ones.
        with suppress(RuntimeError):
            undo.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        with suppress(RuntimeError):
            undo.callback(setattr, cudnn, "allow_tf32", cudnn.allow_tf32)
            cudnn.allow_tf32 = False
        for kind, _ in kinds:
            kind.fp32_precision = "ieee"
        yield


def undo_mixed_precision(model: nn.Module) -> None:
    """Take off, in place, the autocast that `accelerate` puts around a prepared model's forward."""
    if "_original_forward" in model.__dict__:
        model.forward = model._original_forward  # type: ignore[assignment]


def accept_features(model: PreTrainedModel) -> None:
    """Let ``model(pixel_values=None, features=…)`` apply the head alone, whatever the model is wrapped in."""

    @wraps(type(model).forward)  # so that it shows the same arguments
    def forward(self: Any, *args: Any, features: Tensor | None = None, **kwargs: Any) -> Any:
        if features is None:
            return type(self).forward(self, *args, **kwargs)
        return ImageClassifierOutput(logits=logits_of_features(self, features))

    model.forward = MethodType(forward, model)


def weights_sha256(model: nn.Module, *, but: Container[str] = ()) -> str:
    """A hash over names, types, shapes and values of a model's parameters and buffers; of a `PixelClassifier`, its model's.

    Adapters of peft are merged into the weights before, where they can be.

    Args:
        model: any module.
        but: names of parameters and buffers to leave out.

    Example:
        >>> weights_sha256(nn.Identity()) == weights_sha256(nn.ReLU())
        True
    """
    digest = hashlib.sha256()
    model = merged(model.model if isinstance(model, PixelClassifier) else model, needed=False)
    for name, tensor in sorted(model.state_dict().items()):
        if name not in but:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's parameters, the CPU for one without any."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
