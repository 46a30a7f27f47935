"""Robustness evaluation: attacks by name, self-checks, a report with pictures, and `evaluate` metrics.

The evaluator with the interface of `evaluate` is `hf_robust_transfer.evaluation.evaluator.RobustnessEvaluator`.
"""

from .autoattack import autoattack
from .metrics import load_metric
from .named_attacks import attack_summaries, parse_attack, parse_attacks
from .report import RobustnessReport
from .robustness import DEFAULT_ATTACKS, evaluate_robustness

__all__ = [
    "DEFAULT_ATTACKS",
    "RobustnessReport",
    "attack_summaries",
    "autoattack",
    "evaluate_robustness",
    "load_metric",
    "parse_attack",
    "parse_attacks",
]
