"""What is known of published robust checkpoints: the data behind `hf_robust_transfer.modeling.sources`.

Every figure is the one that its authors, or RobustBench, published; this project measured its own two networks alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .cifar import statistics_of

IMAGENET_NORMALISATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NO_NORMALISATION = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
CLIP_NORMALISATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


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
        layout: ``"checkpoint"``, a PyTorch file of a classifier; ``"open_clip"`` or ``"transformers"``, a CLIP in
            the format of that library, of which the image tower is taken; ``"embedded"``, a checkpoint folder in this
            package.
        classes: names of what a classifier tells apart, by default ImageNet's 1000.
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
    classes: tuple[str, ...] | None = None
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
        if self.layout == "embedded":
            return "in this package"
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
    ("wide_resnet50_4", "l2"): (77.91, 78.02, 77.87, 77.77, 77.64, 77.10, 76.52, 75.51, 69.67, 65.20),
}
_SALMAN_AUTOATTACK = {"resnet18": (52.92, 25.32), "resnet50": (64.02, 34.96), "wide_resnet50_2": (68.46, 38.14)}
_SALMAN_OTHERS = {
    ("densenet161", 28.7, "densenet"): (77.37, 66.98),
    ("mobilenetv2_100", 3.5, "mobilenet"): (65.26, 50.40),
    ("resnext50_32x4d", 25.0, "resnext50_32x4d"): (77.38, 66.25),
}
_PARAMETERS = {"resnet18": 11.7, "resnet50": 25.6, "wide_resnet50_2": 68.9, "wide_resnet50_4": 223.4}
# Those of timm with other arguments.
_AS_IN_TIMM: dict[str, tuple[str, dict[str, Any]]] = {"wide_resnet50_4": ("wide_resnet50_2", {"base_width": 256})}


def _salman() -> Iterator[Source]:
    for (architecture, norm), accuracies in _SALMAN_ACCURACIES.items():
        for radius, accuracy in zip(_LINF if norm == "linf" else _L2, accuracies, strict=True):
            short = f"{float(radius):g}"
            eps = radius if norm == "l2" else {"0.5": "1/510"}.get(short, f"{short}/255")
            clean, robust, figures = accuracy, None, _README
            if (norm, short) == ("linf", "4"):
                (clean, robust), figures = _SALMAN_AUTOATTACK[architecture], _ROBUSTBENCH
            in_timm, model_args = _AS_IN_TIMM.get(architecture, (architecture, {}))
            yield Source(
                name=f"salman2020-{architecture.replace('_', '-')}-{norm}-eps{short}",
                architecture=in_timm,
                model_args=model_args,
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
_GELU = {"act_layer": "gelu"}  # of some ResNets of ARES, which their weights do not show
# Name: architecture, million parameters, file, clean and robust accuracies, how measured, arguments of the architecture.
_LIU: dict[str, tuple[str, float, str, float, float, str, dict[str, Any]]] = {
    "resnet50": ("resnet50", 25.6, "ResNet50", 67.0, 34.1, _SAMPLE, {}),
    "resnet101": ("resnet101", 44.5, "ResNet101", 71.0, 42.2, _SAMPLE, {}),
    "resnet152": ("resnet152", 60.2, "ResNet152", 72.4, 46.7, _SAMPLE, _GELU),
    "wide-resnet50-2": ("wide_resnet50_2", 68.9, "Wide_ResNet50_2", 70.5, 39.3, _SAMPLE, _GELU),
    "convnext-s": ("convnext_small", 50.2, "ConvNext_Small", 77.3, 54.3, _SAMPLE, {}),
    "convnext-b": ("convnext_base", 88.6, "ConvNext_Base", 76.02, 55.82, _ROBUSTBENCH, {}),
    "convnext-l": ("convnext_large", 197.8, "ConvNext_Large", 78.02, 58.48, _ROBUSTBENCH, {}),
    "vit-s": ("vit_small_patch16_224", 22.1, "ViT_small_patch16_224", 70.7, 43.7, _SAMPLE, {}),
    "vit-b": ("vit_base_patch16_224", 86.6, "ViT_base_patch16_224", 74.7, 49.7, _SAMPLE, {}),
    "swin-s": (_SWIN.format("small"), 49.6, "Swin_small_patch4_window7_224", 76.6, 55.6, _SAMPLE, {}),
    "swin-b": (_SWIN.format("base"), 87.8, "Swin_base_patch4_window7_224", 76.16, 56.16, _ROBUSTBENCH, {}),
    "swin-l": (_SWIN.format("large"), 196.5, "Swin_large_patch4_window7_224", 78.92, 59.56, _ROBUSTBENCH, {}),
}
_PAPER = "clean, AutoAttack: the paper"
_SINGH = ("Singh et al., NeurIPS 2023, arXiv 2303.01870", "https://github.com/nmndeep/revisiting-at", _PAPER)
_XCIT = ("Debenedetti et al., arXiv 2209.07399", "https://github.com/dedeswim/vits-robustness-torch", _ROBUSTBENCH)
# Those without a normalisation, name: architecture, million parameters, accuracies, arguments, where from.
_PLAIN: dict[str, tuple[str, float, float, float, dict[str, Any], tuple[str, str, str]]] = {
    "singh2023-convnext-t": ("convnext_tiny", 28.6, 72.4, 48.6, {}, _SINGH),
    "singh2023-convnext-b": ("convnext_base", 88.6, 75.6, 54.3, {}, _SINGH),
    "singh2023-vit-s": ("vit_small_patch16_224", 22.1, 69.2, 44.0, {}, _SINGH),
    "singh2023-vit-b": ("vit_base_patch16_224", 86.6, 73.3, 50.0, {}, _SINGH),
    "debenedetti2022-xcit-s12": ("xcit_small_12_p16_224", 26.3, 72.34, 41.78, {}, _XCIT),
    "debenedetti2022-xcit-m12": ("xcit_medium_24_p16_224", 46.4, 74.04, 45.24, {"depth": 12}, _XCIT),
    "debenedetti2022-xcit-l12": ("xcit_large_24_p16_224", 103.8, 73.76, 47.60, {"depth": 12}, _XCIT),
}
_ZOO = "https://drive.google.com/uc?id={}"
_MO, _RODRIGUEZ = "Mo et al., NeurIPS 2022, arXiv 2210.07540", "Rodríguez-Muñoz et al., arXiv 2409.20139"
_CHEN = "Chen and Lee, Pattern Recognition 2024"
# As RobustBench's zoo keeps them, name: architecture, million parameters, file, accuracies, reference.
_OF_ROBUSTBENCH = {
    "engstrom2019-resnet50": ("resnet50", 25.6, "1T2Fvi1eCJTeAOEzrH_4TAIwO8HTOYVyn", 62.56, 29.22, "MadryLab/robustness"),
    "chen2024-wide-resnet50-2": ("wide_resnet50_2", 68.9, "1-PBlZVILAKFQ7mF8srKjdkTKJZAr61Uf", 68.76, 41.92, _CHEN),
    "mo2022-vit-b": ("vit_base_patch16_224", 86.6, "1-dUFdvDBflqMsMLjZv3wlPJTm-Jm7net", 68.38, 34.40, _MO),
    "mo2022-swin-b": (_SWIN.format("base"), 87.8, "1-SXi4Z2X6Zo_j8EO4slJcBMXNej8fKUd", 74.66, 38.30, _MO),
    "rodriguez2024-swin-b": (_SWIN.format("base"), 87.8, "1-BSUjoFXx3PP-TfeE5fjbofO2lLyUf56", 77.76, 51.56, _RODRIGUEZ),
    "rodriguez2024-swin-l": (_SWIN.format("large"), 196.5, "1-Dc9WhPU2wv4OMskLo1U57n5O8VbpNXv", 79.36, 53.82, _RODRIGUEZ),
}


def _by_file() -> Iterator[Source]:
    """Those on no Hub, all of ImageNet at 4/255."""
    common: dict[str, Any] = {"norm": "linf", "eps": "4/255"}
    for name, (architecture, parameters, file, clean, robust, figures, model_args) in _LIU.items():
        yield Source(
            name=f"liu2023-{name}-linf-eps4",
            architecture=architecture,
            model_args=model_args,
            clean=clean,
            robust=robust,
            figures=figures,
            parameters=parameters,
            reference="ARES: Liu et al., arXiv 2302.14301",
            license="mit",
            url=_ARES.format(file),
            **common,
        )
    for name, (architecture, parameters, clean, robust, model_args, (reference, url, figures)) in _PLAIN.items():
        yield Source(
            name=f"{name}-linf-eps4",
            architecture=architecture,
            model_args=model_args,
            clean=clean,
            robust=robust,
            figures=figures,
            parameters=parameters,
            reference=reference,
            url=url,
            mean=NO_NORMALISATION[0],
            std=NO_NORMALISATION[1],
            **common,
        )
    for name, (architecture, parameters, file, clean, robust, reference) in _OF_ROBUSTBENCH.items():
        mean, std = NO_NORMALISATION if name.startswith("chen2024") else IMAGENET_NORMALISATION
        yield Source(
            name=f"{name}-linf-eps4",
            architecture=architecture,
            clean=clean,
            robust=robust,
            figures=_ROBUSTBENCH,
            parameters=parameters,
            reference=reference,
            license="mit",
            url=_ZOO.format(file),
            mean=mean,
            std=std,
            crop_pct=1.0 if name.startswith("mo2022") else 0.875,
            **common,
        )


_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_ALL = "clean, AutoAttack: RobustBench, all 10 000 test images of CIFAR-10"
_GOWAL, _REBUFFI = "Gowal et al., NeurIPS 2021, arXiv 2110.09468", "Rebuffi et al., arXiv 2103.01946"
_BARTOLDSON, _LTD = "Bartoldson et al., ICML 2024, arXiv 2404.09349", "Chen and Lee (LTD), arXiv 2111.02331"
_IN_ITS_ZOO = "https://github.com/RobustBench/robustbench"  # where its code knows the file
# WideResNets of RobustBench: whose, depth, width, million parameters, accuracies, reference, licence, where.
_WIDE_RESNETS = (
    ("chen2021", 34, 10, 46.2, 85.21, 56.94, _LTD, "mit", _ZOO.format("1-0RoQKYvHLNh7hZ71wJjSit1XtrJQo9D")),
    ("chen2021", 34, 20, 184.5, 86.03, 57.71, _LTD, "mit", _ZOO.format("1-5JmY9rapuGwCUc2nPvy7Rb_sn_dHhFm")),
    ("rebuffi2021", 28, 10, 36.5, 87.33, 60.75, _REBUFFI, "apache-2.0", _ZOO.format("1-0EChXbc6pOvx26O17av263bCeqIAz6s")),
    ("rebuffi2021", 70, 16, 266.8, 88.54, 64.25, _REBUFFI, "apache-2.0", _ZOO.format("1-8CWRT-OFWyrz4T4s0I2mbFjPg8K_MUi")),
    ("gowal2021", 28, 10, 36.5, 87.50, 63.38, _GOWAL, "mit", _ZOO.format("12L8YE6VBgUDKyW6GMSNefSYj2gg4LEKx")),
    ("gowal2021", 70, 16, 266.8, 88.74, 66.11, _GOWAL, "mit", _ZOO.format("10qBoDG_NomJBrRFeTsSwEcJF1GA-sjC4")),
    ("bartoldson2024", 82, 8, 79.1, 93.11, 71.59, _BARTOLDSON, "mit", _IN_ITS_ZOO),
    ("bartoldson2024", 94, 16, 365.9, 93.68, 73.71, _BARTOLDSON, "mit", _IN_ITS_ZOO),
)
# Those of Wang et al.: norm, ε, depth, width, million parameters, accuracies.
_WANG = (
    ("linf", "8/255", 28, 10, 36.5, 92.44, 67.31),
    ("linf", "8/255", 70, 16, 266.8, 93.25, 70.69),
    ("l2", "128/255", 28, 10, 36.5, 95.16, 83.63),
    ("l2", "128/255", 70, 16, 266.8, 95.54, 84.86),
)


def _for_cifar10() -> Iterator[Source]:
    """WideResNets for images of 32 pixels: teachers, and sources for images that small."""
    common: dict[str, Any] = {"classes": _CIFAR10, "input_size": 32, "crop_pct": 1.0}
    for whose, depth, width, parameters, clean, robust, reference, license, url in _WIDE_RESNETS:
        silu = whose != "chen2021"
        mean, std = (statistics_of(10) if silu else None) or NO_NORMALISATION
        yield Source(
            name=f"{whose}-cifar10-wrn-{depth}-{width}-linf-eps8",
            architecture="cifar_wrn_silu" if silu else "cifar_wrn",
            model_args={"depth": depth, "width": width},
            norm="linf",
            eps="8/255",
            clean=clean,
            robust=robust,
            figures=_ALL,
            parameters=parameters,
            reference=reference,
            license=license,
            url=url,
            mean=mean,
            std=std,
            **common,
        )
    for norm, eps, depth, width, parameters, clean, robust in _WANG:
        mean, std = statistics_of(10) or NO_NORMALISATION
        yield Source(
            name=f"wang2023-cifar10-wrn-{depth}-{width}-{norm}-eps{'8' if norm == 'linf' else '0.5'}",
            architecture="cifar_wrn_silu",
            model_args={"depth": depth, "width": width},
            norm=norm,
            eps=eps,
            clean=clean,
            robust=robust,
            figures="clean, AutoAttack: the authors' README, all 10 000 test images of CIFAR-10",
            parameters=parameters,
            reference="Wang et al., ICML 2023, arXiv 2302.04638",
            repo_id="wzekai99/DM-Improves-AT",
            files=(f"checkpoint/cifar10_{norm}_wrn{depth}-{width}.pt",),
            mean=mean,
            std=std,
            **common,
        )


def _embedded() -> Iterator[Source]:
    """Two small networks for images of 32 pixels that are part of this package: a robust one and its natural twin."""
    for name, eps, clean, robust in (("robust-tiny", "8/255", 63.1, None), ("natural-tiny", "0", 81.4, None)):
        yield Source(
            name=name,
            architecture="resnetv2_18",
            model_args={"layers": [1, 1, 1], "channels": [64, 128, 256], "stem_chs": 32},
            norm="linf",
            eps=eps,
            clean=clean,
            robust=robust,
            figures="clean: all 10 000 test images of CIFAR-10; measured here",
            parameters=1.2,
            reference="the card in its folder",
            license="apache-2.0",
            layout="embedded",
            classes=_CIFAR10,
            input_size=32,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            crop_pct=1.0,
        )


_ALL_SOURCES = (*_embedded(), *_salman(), *_robust_clip(), *_by_file(), *_for_cifar10())
SOURCES: dict[str, Source] = {source.name: source for source in _ALL_SOURCES}
"""The robust sources that have a name."""
