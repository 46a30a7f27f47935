"""Free adversarial training."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Sampler

from ..errors import UsageError
from ..functions import Count
from ..randomness import fold_in
from .step import ObjectiveOutput, TrainingStep


def free(step: TrainingStep, *, replays: Count = 4) -> ObjectiveOutput:
    """Cross-entropy on x + δ, whose one backward pass updates both the weights and δ (Shafahi et al., arXiv 1904.12843).

    δ takes a step of ε along its own gradient, is projected back into the ball, and is carried over to the next replay of
    the batch and from there to the next batch. `ReplaySampler` shows every batch m times. Costs no more than natural
    training per step; the paper's robust ImageNet sources were made this way.

    The carried δ is ``step.carried``; it is updated when the gradient arrives, in a hook on the backward pass.

    Args:
        step: the batch.
        replays: how often each batch is shown in a row, m in the paper; the sampler sees to it.

    Example:
        >>> shown = list(ReplaySampler(4, group=2, replays=2, seed=0))
        >>> shown[:2] == shown[2:]
        True
    """
    name = f"free_perturbation_{step.slot}"
    delta = step.carried.get(name)
    if delta is None or delta.shape != step.images.shape:
        delta = torch.zeros_like(step.images)
    delta = step.threat_model.clip(delta.to(step.images)).requires_grad_()

    def ascend(gradient: Tensor) -> None:
        ascended = delta.detach() + step.threat_model.step(gradient, step.threat_model.eps)
        step.carried[name] = step.threat_model.clip(ascended)

    delta.register_hook(ascend)
    adversarial = (step.images + delta).clamp(*step.threat_model.bounds)
    return ObjectiveOutput({"adversarial": F.cross_entropy(step.student(adversarial), step.labels)})


class ReplaySampler(Sampler[int]):
    """Show every group of samples ``replays`` times in a row, at no more steps per epoch than without replays.

    The shuffled passes over the data set form one stream of groups, of which an epoch takes the next 1/m of a pass: after
    m epochs each sample was shown m times, in one go. So ``num_train_epochs`` keeps its meaning as a cost, and the data
    are passed over epochs / m times, as in the paper.

    Args:
        size: number of samples in the data set.
        group: samples per optimizer step, over all processes and accumulation steps. The samples that do not fill a last
            group are left out of a pass; which ones changes with the shuffling.
        replays: how often each group is shown, m in the paper.
        seed: of the shuffling, together with the number of the pass.

    Raises:
        UsageError: the data set is smaller than one group.
    """

    def __init__(self, size: int, *, group: int, replays: int, seed: int) -> None:
        if size < group:
            raise UsageError(
                f"Free adversarial training replays whole batches of {group} samples, but the training set has {size}:"
                " lower per_device_train_batch_size"
            )
        self.size, self.group, self.replays, self.seed, self.epoch = size, group, replays, seed, 0
        self._groups_per_epoch = max(1, round(size // group / replays))

    def set_epoch(self, epoch: int) -> None:
        """Choose the part of the stream; the data loader calls it at the beginning of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._groups_per_epoch * self.group * self.replays

    def __iter__(self) -> Iterator[int]:
        groups_per_pass = self.size // self.group
        first = self.epoch * self._groups_per_epoch
        for number in range(first, first + self._groups_per_epoch):
            position = number % groups_per_pass
            generator = torch.Generator().manual_seed(fold_in(self.seed, number // groups_per_pass))
            order = torch.randperm(self.size, generator=generator)
            yield from order[position * self.group : (position + 1) * self.group].tolist() * self.replays


free.sampler = ReplaySampler  # type: ignore[attr-defined]
