"""Training objectives, one file each: ``objective(step, *, …) -> ObjectiveOutput``.

To add one, write its file, name it in `OBJECTIVES`, and give its own options, if it has any, a field in
`RobustTrainingArguments` and a line in its ``objective_options``.
"""

from .fast import fast
from .free import ReplaySampler, free
from .natural import natural
from .pgd import pgd_adversarial_training
from .step import Objective, ObjectiveOutput, TrainingStep
from .trades import trades

OBJECTIVES: dict[str, Objective] = {
    "natural": natural,
    "pgd": pgd_adversarial_training,
    "trades": trades,
    "free": free,
    "fast": fast,
}

__all__ = [
    "OBJECTIVES",
    "Objective",
    "ObjectiveOutput",
    "ReplaySampler",
    "TrainingStep",
    "fast",
    "free",
    "natural",
    "pgd_adversarial_training",
    "trades",
]
