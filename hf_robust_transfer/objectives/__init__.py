"""Training objectives, one file each: ``objective(step, *, …) -> ObjectiveOutput``.

One of your own is a function of a `TrainingStep`; its keyword-only parameters are its options:

    >>> import torch.nn.functional as F
    >>> def margin(step, *, weight: float = 1.0):
    ...     top, second = step.clean().logits.topk(2).values.unbind(1)
    ...     adversarial = step.student(step.pgd_images())
    ...     terms = {"adversarial": F.cross_entropy(adversarial, step.labels), "margin": weight * (second - top).mean()}
    ...     return ObjectiveOutput(terms)

In Python it is ``RobustTrainer(model, args, objective=margin, …)``, with other options ``partial(margin, weight=2.0)``; on
the command line ``--objective my_file.py:margin --objective_options '{"weight": 2}'``. Checkpoints, resuming, logs by term,
LwF, freezing and the model card work as with the objectives here. What it keeps from step to step goes into
``step.carried``, and `trait` lists what else it may say of itself.
"""

from .adaad import adaad
from .anchor import anchor
from .ard import ard
from .fast import fast
from .free import ReplaySampler, free
from .iad import iad
from .igdm import igdm
from .natural import natural
from .pgd import pgd_adversarial_training
from .rslad import rslad
from .saad import saad
from .step import Objective, ObjectiveOutput, TrainingStep, trait
from .trades import trades

OBJECTIVES: dict[str, Objective] = {
    "natural": natural,
    "pgd": pgd_adversarial_training,
    "trades": trades,
    "anchor": anchor,
    "free": free,
    "fast": fast,
    "ard": ard,
    "rslad": rslad,
    "iad": iad,
    "adaad": adaad,
    "igdm": igdm,
    "saad": saad,
}

__all__ = [
    "OBJECTIVES",
    "Objective",
    "ObjectiveOutput",
    "ReplaySampler",
    "TrainingStep",
    "adaad",
    "anchor",
    "ard",
    "fast",
    "free",
    "iad",
    "igdm",
    "natural",
    "pgd_adversarial_training",
    "rslad",
    "saad",
    "trades",
    "trait",
]
