"""Attacks, one file each: ``attack(classifier, images, labels, threat_model, *, …) -> adversarial images``."""

from .early_stopping import early_stopping_pgd
from .fgsm import fgsm
from .losses import LOSSES
from .pgd import pgd

__all__ = ["LOSSES", "early_stopping_pgd", "fgsm", "pgd"]
