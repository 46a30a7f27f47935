"""The trainer and its options; they load on first use."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .arguments import RobustTrainingArguments
    from .trainer import RobustTrainer

__all__ = ["RobustTrainer", "RobustTrainingArguments"]

__getattr__, __dir__ = lazy_names(__name__, {"arguments": ("RobustTrainingArguments",), "trainer": ("RobustTrainer",)})
