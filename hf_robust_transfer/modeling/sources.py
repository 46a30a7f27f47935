"""Robust sources by name: what is known of published checkpoints, and of those that are no robust sources.

The data is `SOURCES` of `hf_robust_transfer.modeling.source_list`; a further source is a further entry, ``SOURCES[name] =
Source(name, …)``. How one is fetched says `hf_robust_transfer.modeling.fetching`.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from fnmatch import fnmatch
from typing import Any

import timm

from .source_list import SOURCES, Source

ADVISED = "salman2020-resnet50-linf-eps4"
"""The source that messages name where somebody needs one."""


def find_source(name: str) -> Source | None:
    """The source of this name, or the only one of the Hub repository of this name.

    Example:
        >>> find_source("chs20/fare2-clip").name
        'schlarmann2024-clip-vit-l-14-fare2'
        >>> find_source("timm/resnet18.a1_in1k") is None
        True
    """
    of_repository = [source for source in SOURCES.values() if source.repo_id == name]
    return of_repository[0] if len(of_repository) == 1 else SOURCES.get(name)


def matching(pattern: str | None) -> list[Source]:
    """The sources whose name, architecture, repository or reference has all words of a pattern in it; None for all.

    A word may have ``*`` and ``?`` in it, as file names have them.

    Example:
        >>> [source.clean for source in matching("resnet18 linf-eps4")]
        [52.92]
    """
    words = [f"*{word.lower()}*" for word in (pattern or "").split()]

    def text(source: Source) -> str:
        return " ".join((source.name, source.architecture, source.place, source.reference, source.layout)).lower()

    return [source for source in SOURCES.values() if all(fnmatch(text(source), word) for word in words)]


def near(name: str) -> str:
    """What an error about an unknown name ends with: the sources that may be meant, if any."""
    inside = [source.name for source in SOURCES.values() if source.repo_id == name]
    if inside:
        return f"; it holds {len(inside)} sources, such as {inside[0]}: `hf-robust-transfer sources` lists them"
    close = get_close_matches(name.lower(), SOURCES, n=3, cutoff=0.75)
    return f"; did you mean {', '.join(close)}?" if close else ""


_TIMM = "timm/"
_ADVPROP = (
    "AdvProp showed adversarial images to batch norms of their own, which were thrown away: the network that is left was"
    " trained, and judged, on natural images"
)
_FGSM = "it was trained on images of one FGSM step, which teaches a network to hide its gradients, not to withstand attacks"


def not_robust(name: str, config: Mapping[str, Any] | None = None) -> str | None:
    """Why a model whose name sounds robust is no robust source, or None for any other.

    Args:
        name: a Hub id, a timm name or a folder.
        config: what its ``config.json`` says, where that is at hand. What this package trained is not judged by its name.

    Example:
        >>> not_robust("timm/inception_v3.tf_adv_in1k")
        'it was trained on images of one FGSM step, which teaches a network to hide its gradients, not to withstand attacks'
        >>> not_robust("me/tf_adv_but_mine") is None
        True
    """
    config = config or {}
    if config.get("robust_training"):
        return None
    tag = str((config.get("pretrained_cfg") or {}).get("tag") or "")
    architecture = str(config.get("architecture") or "")
    last = re.split(r"[\\/]", name.rstrip("\\/"))[-1]
    known = name.startswith(_TIMM) or timm.is_model(last.partition(".")[0])
    names = [architecture, tag, *([last] if known else [])]
    words = {word for each in names for word in re.split(r"[._-]", each.lower())}
    if "advprop" in re.sub(r"[._-]", "", last.lower()) or words & {"ap", "advprop"}:
        return _ADVPROP
    return _FGSM if "adv" in words else None
