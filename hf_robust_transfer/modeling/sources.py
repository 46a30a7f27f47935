"""Robust sources by name: what is known of published checkpoints, and of those that are no robust sources.

`SOURCES` is data: a further source is a further entry, ``SOURCES[source.name] = source``. How one is fetched says
`hf_robust_transfer.modeling.fetching`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatch
from typing import Any

import timm

ADVISED = "salman2020-resnet50-linf-eps4"
"""The source that messages name where somebody needs one."""

IMAGENET_NORMALISATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_NORMALISATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LAYOUTS = ("checkpoint", "open_clip", "transformers")


@dataclass(frozen=True)
class Source:
    """A published checkpoint, and what is known of it.

    Args:
        name: to call it by; not the name of a timm architecture.
        architecture: timm's, into which the weights are put.
        norm, eps: of the threat model that it was trained for, as `ThreatModel` takes them; ε 0 is a natural twin.
        clean, robust: published accuracies in percent, at ``eps``, None where none is published.
        figures: how they were measured, and by whom.
        parameters: in millions, of the part that is used.
        reference: where it is described.
        license: its weights', a Hub identifier; None where it is not stated. Its repository's own statement goes before.
        repo_id: the Hub repository; None for a file that is to be had from ``url`` only.
        files: the names that its file may have, the first that is there counts; for ``"transformers"``, patterns.
        url: a page or file for a browser, where there is no repository.
        layout: ``"checkpoint"``, a PyTorch file of an ImageNet classifier; ``"open_clip"`` or ``"transformers"``, a CLIP in
            the format of that library, of which the image tower is taken.
        input_size: side of its images in pixels.
        mean, std: its normalisation of [0, 1] pixels, unless its file holds its own.
        crop_pct, interpolation: how images are made for it, as timm has it.
        model_args: arguments of the architecture.
        sha256: of its file, where it is known.
    """

    name: str
    architecture: str
    norm: str
    eps: str
    clean: float | None = None
    robust: float | None = None
    figures: str = ""
    parameters: float = 0.0
    reference: str = ""
    license: str | None = None
    repo_id: str | None = None
    files: tuple[str, ...] = ()
    url: str | None = None
    layout: str = "checkpoint"
    input_size: int = 224
    mean: tuple[float, ...] = IMAGENET_NORMALISATION[0]
    std: tuple[float, ...] = IMAGENET_NORMALISATION[1]
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    sha256: str | None = None

    @property
    def place(self) -> str:
        """Where it is to be had, in words."""
        if self.repo_id is None:
            return str(self.url)
        return f"{self.repo_id}/{self.files[0]}" if self.layout == "checkpoint" else self.repo_id


_SALMAN = "Salman et al., NeurIPS 2020, arXiv 2007.08489"
_README = "clean: the authors' README"
_ROBUSTBENCH = "clean, AutoAttack: RobustBench, 5 000 images"
# Clean accuracies at each ε; where RobustBench measured both, its figures.
_LINF = ("0.5", "1.0", "2.0", "4.0", "8.0")
_L2 = ("0", "0.01", "0.03", "0.05", "0.1", "0.25", "0.5", "1", "3", "5")
_SALMAN_ACCURACIES = {
    ("resnet18", "linf"): (66.13, 63.46, 59.63, 52.49, 42.11),
    ("resnet50", "linf"): (73.73, 72.05, 69.10, 63.86, 54.53),
    ("wide_resnet50_2", "linf"): (75.82, 74.65, 72.35, 68.41, 60.82),
    ("resnet18", "l2"): (69.79, 69.90, 69.24, 69.15, 68.77, 67.43, 65.49, 62.32, 53.12, 45.59),
    ("resnet50", "l2"): (75.80, 75.68, 75.76, 75.59, 74.78, 74.14, 73.16, 70.43, 62.83, 56.13),
    ("wide_resnet50_2", "l2"): (76.97, 77.25, 77.26, 77.17, 76.74, 76.21, 75.11, 73.41, 66.90, 60.94),
}
_SALMAN_AUTOATTACK = {"resnet18": (52.92, 25.32), "resnet50": (64.02, 34.96), "wide_resnet50_2": (68.46, 38.14)}
_SALMAN_OTHERS = {
    ("densenet161", 28.7, "densenet"): (77.37, 66.98),
    ("mobilenetv2_100", 3.5, "mobilenet"): (65.26, 50.40),
    ("resnext50_32x4d", 25.0, "resnext50_32x4d"): (77.38, 66.25),
}
_PARAMETERS = {"resnet18": 11.7, "resnet50": 25.6, "wide_resnet50_2": 68.9}


def _salman() -> Iterator[Source]:
    for (architecture, norm), accuracies in _SALMAN_ACCURACIES.items():
        for radius, accuracy in zip(_LINF if norm == "linf" else _L2, accuracies, strict=True):
            short = f"{float(radius):g}"
            eps = radius if norm == "l2" else {"0.5": "1/510"}.get(short, f"{short}/255")
            clean, robust, figures = accuracy, None, _README
            if (norm, short) == ("linf", "4"):
                (clean, robust), figures = _SALMAN_AUTOATTACK[architecture], _ROBUSTBENCH
            yield Source(
                name=f"salman2020-{architecture.replace('_', '-')}-{norm}-eps{short}",
                architecture=architecture,
                norm=norm,
                eps=eps,
                clean=clean,
                robust=robust,
                figures=figures,
                parameters=_PARAMETERS[architecture],
                reference=_SALMAN,
                license="mit",
                repo_id="madrylab/robust-imagenet-models",
                files=(f"{architecture}_{norm}_eps{radius}.ckpt",),
                interpolation="bilinear",
            )
    for (architecture, parameters, file), accuracies in _SALMAN_OTHERS.items():
        for radius, accuracy in zip(("0", "3"), accuracies, strict=True):
            yield Source(
                name=f"salman2020-{architecture.replace('_', '-')}-l2-eps{radius}",
                architecture=architecture,
                norm="l2",
                eps=radius,
                clean=accuracy,
                figures=_README,
                parameters=parameters,
                reference=_SALMAN,
                license="mit",
                repo_id="madrylab/robust-imagenet-models",
                files=(f"{file}_l2_eps{radius}.ckpt",),
                interpolation="bilinear",
            )


_ZERO_SHOT = "zero-shot means over data sets, robust at {}/255: RobustVLM README"
# Hub id of chs20 and the model's short name: timm architecture, million parameters, ε, zero-shot accuracies, side.
_QUICK = "vit_large_patch14_clip_quickgelu_224"
_ROBUST_VLM = {
    ("fare2-clip", "clip-vit-l-14-fare2"): (_QUICK, 304.0, 2, 67.0, 43.1, 224),
    ("fare4-clip", "clip-vit-l-14-fare4"): (_QUICK, 304.0, 4, 61.1, 32.4, 224),
    ("tecoa2-clip", "clip-vit-l-14-tecoa2"): (_QUICK, 304.0, 2, 60.0, 43.6, 224),
    ("tecoa4-clip", "clip-vit-l-14-tecoa4"): (_QUICK, 304.0, 4, 54.2, 31.9, 224),
}
_LAION = {
    ("ViT-B-32-laion2B-s34B-b79K", "clip-vit-b-32"): (
        ("vit_base_patch32_clip_224", 87.8, 224),
        {"fare4": (53.8, 21.2), "tecoa4": (46.8, 23.3)},
    ),
    ("ViT-B-16-laion2B-s34B-b88K", "clip-vit-b-16"): (
        ("vit_base_patch16_clip_224", 86.2, 224),
        {"fare4": (56.6, 23.5), "tecoa4": (51.5, 26.4)},
    ),
    ("convnext_base_w-laion2B-s13B-b82K-augreg", "clip-convnext-b"): (
        ("convnext_base", 88.2, 256),
        {"fare4": (60.2, 28.4), "tecoa4": (56.2, 31.8)},
    ),
}
_METHODS = {
    "fare": "FARE: Schlarmann et al., ICML 2024, arXiv 2402.12336",
    "tecoa": "TeCoA: Mao et al., ICLR 2023, arXiv 2212.07016; trained by Schlarmann et al., arXiv 2402.12336",
}
_HUB_NAMES = {"fare4": "FARE4", "tecoa4": "TeCoA4"}


def _robust_clip() -> Iterator[Source]:
    rows = [(f"chs20/{hub}", name, *facts) for (hub, name), facts in _ROBUST_VLM.items()]
    for (suffix, name), ((architecture, parameters, side), methods) in _LAION.items():
        for method, (clean, robust) in methods.items():
            hub = f"chs20/{_HUB_NAMES[method]}-{suffix}"
            rows.append((hub, f"{name}-{method}", architecture, parameters, 4, clean, robust, side))
    for repo_id, name, architecture, parameters, radius, clean, robust, side in rows:
        yield Source(
            name=f"schlarmann2024-{name}",
            architecture=architecture,
            norm="linf",
            eps=f"{radius}/255",
            clean=clean,
            robust=robust,
            figures=_ZERO_SHOT.format(radius),
            parameters=parameters,
            reference=_METHODS[name.rpartition("-")[2].rstrip("24")],
            license="mit",
            repo_id=repo_id,
            files=("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
            layout="open_clip",
            input_size=side,
            mean=CLIP_NORMALISATION[0],
            std=CLIP_NORMALISATION[1],
            crop_pct=1.0,
        )
    for hub, name, architecture, parameters in (
        ("CLIP-ViT-L-FARE2", "clip-vit-l-14-fare2", _QUICK, 304.0),
        ("OpenCLIP-ViT-H-FARE2", "clip-vit-h-14-fare2", "vit_huge_patch14_clip_224", 632.0),
        ("OpenCLIP-ViT-g-FARE2", "clip-vit-g-14-fare2", "vit_giant_patch14_clip_224", 1012.6),
    ):
        yield Source(
            name=f"leaf2025-{name}",
            architecture=architecture,
            norm="linf",
            eps="2/255",
            figures="none found",
            parameters=parameters,
            reference="FARE, as of Abad Rocamora et al. (LEAF), NeurIPS 2025, arXiv 2506.03355",
            repo_id=f"LEAF-CLIP/{hub}",
            files=("model*.safetensors", "pytorch_model*.bin"),
            layout="transformers",
            mean=CLIP_NORMALISATION[0],
            std=CLIP_NORMALISATION[1],
            crop_pct=1.0,
        )


_ARES = "https://ml.cs.tsinghua.edu.cn/~xiaoyang/aresbench/ckpt-imagenet/ARES_{}_AT.pth"
_SAMPLE = "clean, AutoAttack: ARES README, 1 000 images"
_SWIN = "swin_{}_patch4_window7_224"
# Name: architecture, million parameters, file, clean and robust accuracies, how measured.
_LIU = {
    "resnet50": ("resnet50", 25.6, "ResNet50", 67.0, 34.1, _SAMPLE),
    "resnet101": ("resnet101", 44.5, "ResNet101", 71.0, 42.2, _SAMPLE),
    "resnet152": ("resnet152", 60.2, "ResNet152", 72.4, 46.7, _SAMPLE),
    "wide-resnet50-2": ("wide_resnet50_2", 68.9, "Wide_ResNet50_2", 70.5, 39.3, _SAMPLE),
    "convnext-s": ("convnext_small", 50.2, "ConvNext_Small", 77.3, 54.3, _SAMPLE),
    "convnext-b": ("convnext_base", 88.6, "ConvNext_Base", 76.02, 55.82, _ROBUSTBENCH),
    "convnext-l": ("convnext_large", 197.8, "ConvNext_Large", 78.02, 58.48, _ROBUSTBENCH),
    "vit-s": ("vit_small_patch16_224", 22.1, "ViT_small_patch16_224", 70.7, 43.7, _SAMPLE),
    "vit-b": ("vit_base_patch16_224", 86.6, "ViT_base_patch16_224", 74.7, 49.7, _SAMPLE),
    "swin-s": (_SWIN.format("small"), 49.6, "Swin_small_patch4_window7_224", 76.6, 55.6, _SAMPLE),
    "swin-b": (_SWIN.format("base"), 87.8, "Swin_base_patch4_window7_224", 76.16, 56.16, _ROBUSTBENCH),
    "swin-l": (_SWIN.format("large"), 196.5, "Swin_large_patch4_window7_224", 78.92, 59.56, _ROBUSTBENCH),
}
_SINGH = {
    "convnext-t": ("convnext_tiny", 28.6, 72.4, 48.6),
    "convnext-b": ("convnext_base", 88.6, 75.6, 54.3),
    "vit-s": ("vit_small_patch16_224", 22.1, 69.2, 44.0),
    "vit-b": ("vit_base_patch16_224", 86.6, 73.3, 50.0),
}
_ZOO = "https://drive.google.com/uc?id="
_RODRIGUEZ = "Rodríguez-Muñoz et al., arXiv 2409.20139"
# As RobustBench's zoo keeps them, name: architecture, million parameters, file, accuracies, reference.
_OF_ROBUSTBENCH = {
    "engstrom2019-resnet50": ("resnet50", 25.6, "1T2Fvi1eCJTeAOEzrH_4TAIwO8HTOYVyn", 62.56, 29.22, "MadryLab/robustness"),
    "chen2024-wide-resnet50-2": (
        *("wide_resnet50_2", 68.9, "1-PBlZVILAKFQ7mF8srKjdkTKJZAr61Uf", 68.76, 41.92),
        "Chen and Lee, Pattern Recognition 2024",
    ),
    "mo2022-vit-b": (
        *("vit_base_patch16_224", 86.6, "1-dUFdvDBflqMsMLjZv3wlPJTm-Jm7net", 68.38, 34.40),
        "Mo et al., NeurIPS 2022, arXiv 2210.07540",
    ),
    "mo2022-swin-b": (
        *(_SWIN.format("base"), 87.8, "1-SXi4Z2X6Zo_j8EO4slJcBMXNej8fKUd", 74.66, 38.30),
        "Mo et al., NeurIPS 2022, arXiv 2210.07540",
    ),
    "rodriguez2024-swin-b": (
        *(_SWIN.format("base"), 87.8, "1-BSUjoFXx3PP-TfeE5fjbofO2lLyUf56", 77.76, 51.56),
        _RODRIGUEZ,
    ),
    "rodriguez2024-swin-l": (
        *(_SWIN.format("large"), 196.5, "1-Dc9WhPU2wv4OMskLo1U57n5O8VbpNXv", 79.36, 53.82),
        _RODRIGUEZ,
    ),
}


def _by_file() -> Iterator[Source]:
    """Those on no Hub, all of ImageNet at 4/255."""
    common: dict[str, Any] = {"norm": "linf", "eps": "4/255"}
    for name, (architecture, parameters, file, clean, robust, figures) in _LIU.items():
        yield Source(
            name=f"liu2023-{name}-linf-eps4",
            architecture=architecture,
            clean=clean,
            robust=robust,
            figures=figures,
            parameters=parameters,
            reference="ARES: Liu et al., arXiv 2302.14301",
            license="mit",
            url=_ARES.format(file),
            **common,
        )
    for name, (architecture, parameters, clean, robust) in _SINGH.items():
        yield Source(
            name=f"singh2023-{name}-linf-eps4",
            architecture=architecture,
            clean=clean,
            robust=robust,
            figures="clean, AutoAttack: the paper",
            parameters=parameters,
            reference="Singh et al., NeurIPS 2023, arXiv 2303.01870",
            url="https://github.com/nmndeep/revisiting-at",
            **common,
        )
    for name, (architecture, parameters, file, clean, robust, reference) in _OF_ROBUSTBENCH.items():
        yield Source(
            name=f"{name}-linf-eps4",
            architecture=architecture,
            clean=clean,
            robust=robust,
            figures=_ROBUSTBENCH,
            parameters=parameters,
            reference=reference,
            license="mit",
            url=_ZOO + file,
            crop_pct=1.0 if name.startswith("mo2022") else 0.875,
            **common,
        )


SOURCES: dict[str, Source] = {source.name: source for source in (*_salman(), *_robust_clip(), *_by_file())}
"""The robust sources that have a name."""


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
