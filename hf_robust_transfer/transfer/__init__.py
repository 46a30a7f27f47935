"""Carrying robustness over: freezing, head warm start, feature distillation (LwF), teachers."""

from .averaging import AVERAGES, WeightAverage, estimate_batch_norm
from .block_order import Block, blocks
from .distillation import DISTANCES, feature_distance
from .freezing import describe, eval_where_frozen, freeze
from .interpolation import interpolated
from .matching import label_columns, matched_teacher
from .phases import Phases
from .presets import EPS_SCHEDULES, PRESETS, preset
from .references import make_source, make_teacher
from .warm_start import HeadWarmStart, head_learning_rate

__all__ = [
    "AVERAGES",
    "DISTANCES",
    "EPS_SCHEDULES",
    "PRESETS",
    "Block",
    "HeadWarmStart",
    "Phases",
    "WeightAverage",
    "blocks",
    "describe",
    "estimate_batch_norm",
    "eval_where_frozen",
    "feature_distance",
    "freeze",
    "head_learning_rate",
    "interpolated",
    "label_columns",
    "make_source",
    "make_teacher",
    "matched_teacher",
    "preset",
]
