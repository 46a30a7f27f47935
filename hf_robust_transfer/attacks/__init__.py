"""Attacks, one file each: ``attack(classifier, images, labels, threat_model, *, …) -> adversarial images``."""

from .ascent import LOSSES
from .fgsm import fgsm
from .pgd import pgd
from .until_fooled import pgd_until_fooled

__all__ = ["LOSSES", "fgsm", "pgd", "pgd_until_fooled"]
