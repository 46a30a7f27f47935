"""A report made by hand, of figures that agree with each other."""

import numpy as np

from hf_robust_transfer.evaluation import RobustnessReport
from hf_robust_transfer.evaluation.accuracy import Accuracy, by_class, counted
from hf_robust_transfer.evaluation.named_attacks import parse_attack
from hf_robust_transfer.evaluation.report import AttackResult, ClassResult
from hf_robust_transfer.evaluation.self_checks import SelfCheck

LABELS = np.array([0, 0, 1, 1, 2, 2, 2, 0])
CLEAN = np.array([0, 0, 1, 0, 2, 2, 1, 0])
ATTACKED = {"fgsm": np.array([0, 1, 1, 0, 2, 0, 1, 0]), "pgd-20": np.array([0, 1, 0, 0, 2, 0, 1, 1])}


def made_report(names=("ant", "bee", "cow"), data_name="me/pets", **changes):
    """A report of eight images in three classes under two attacks."""
    right = CLEAN == LABELS
    robust = {attack: right & (found == LABELS) for attack, found in ATTACKED.items()}
    everywhere = np.logical_and.reduce(list(robust.values()))
    attacks = [
        AttackResult(name, parse_attack(name).kind, parse_attack(name).options, ["a remark"], *counted(right, robust[name]))
        for name in ATTACKED
    ]
    columns = [by_class(each, LABELS, range(3)) for each in (right, everywhere, *robust.values())]
    rows = zip(names, np.bincount(LABELS).tolist(), *columns, strict=True)
    fields = {
        "model": {"name": "mine", "fingerprint": "f", "weights_sha256": "w", "input_shape": [3, 8, 8]},
        "data": {"name": data_name, "split": "test", "samples": 8, "pixels_sha256": "p", "options": {}},
        "threat_model": {"norm": "linf", "eps": 8 / 255, "bounds": [0.0, 1.0]},
        "settings": {"seed": 0, "precision": "float32", "chunk_size": 50, "cascade": False, "surrogate": None},
        "clean": Accuracy.of(right),
        "attacks": attacks,
        "worst_case": Accuracy.of(everywhere),
        "per_class": [
            ClassResult(name, samples, clean, worst, dict(zip(ATTACKED, each, strict=True)))
            for name, samples, clean, worst, *each in rows
        ],
        "self_checks": [SelfCheck("huge_eps", False, 0.5, "a detail")],
        "curve": [],
        "predictions": {
            "labels": LABELS.tolist(),
            "clean": CLEAN.tolist(),
            **{name: found.tolist() for name, found in ATTACKED.items()},
        },
        "versions": {"torch": "2.15.0"},
        "hardware": "CPU",
        "timing": {"created": "now", "seconds": {"total": 1.0, "attacks": dict.fromkeys(ATTACKED, 0.5)}, "processes": 1},
    }
    return RobustnessReport(**{**fields, **changes})
