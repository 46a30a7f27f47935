"""Attacks, one file each: ``attack(classifier, images, labels, threat_model, *, …) -> adversarial images``."""

from .fgsm import fgsm
from .pgd import LOSSES, pgd, pgd_until_fooled

__all__ = ["LOSSES", "fgsm", "pgd", "pgd_until_fooled"]
