"""PyTorch files that are hostile, damaged, or of networks that cannot be imported."""

import torch
from hostile_files import BAD, alone, named, zipped
from row import Row
from torch import nn

RESNET = "import-checkpoint a.pt --architecture test_resnet --output_dir imported"
SILU = "import-checkpoint a.pt --architecture cifar_wrn_silu --output_dir imported"


def bytes_of(name):
    """A function that puts the hostile file of this name there."""
    return lambda here, places: (here / "a.pt").write_bytes(BAD[name])


def content(make):
    """A function that puts a file with this content there, as `torch.save` writes it."""
    return lambda here, places: torch.save(make(), here / "a.pt")


def unlike_utf_8(here, places):
    (here / "a.pt").write_bytes(b"\x80\x02X\x02\x00\x00\x00\xff\xfe.")


ROWS = [
    *(Row(f"import {name}", RESNET, words, make=bytes_of(name)) for name, words in (
        ("zip: reduce, alone", ("a.pt holds no weights by name, but", "system", "run code", "state_dict()")),
        ("zip: nested checkpoint, alone", ("torch.storage._load_from_bytes", "run code")),
        ("pickle: numpy objects, alone", "numpy.core.multiarray._reconstruct"),
        ("zip: outside of its storage", ("not a PyTorch checkpoint, or a damaged one", "outside of its storage")),
        ("legacy: repeated to terabytes", "outside of its storage"),
        ("legacy: of negative sizes", "layout is none"),
        ("zip: in a storage that is not there", "a damaged one"),
        ("zip: unpacks to gigabytes", ("unpacks to more than its own", "bytes")),
        ("legacy: an exponential key of a storage", "a storage has no name"),
        ("pickle: a text of exabytes", "a damaged one"),
        ("zip: no end", "exhausted"),
    )),
    Row("import text that is none", RESNET, "a.pt is not a PyTorch checkpoint, or a damaged one", make=unlike_utf_8),
    Row("import a module", RESNET, ("torch.nn.modules.linear.Linear", "state_dict()"),
        make=content(lambda: nn.Linear(2, 2))),
    Row("import a script", RESNET, ("no weights by name, but __torch__.Network", "state_dict()"),
        make=lambda here, places: (here / "a.pt").write_bytes(zipped(alone(named("__torch__", "Network") + b")\x81")))),
    Row("import a number", RESNET, "holds no state dict", make=content(lambda: 3)),
    Row("import a network with a stem that timm lacks", RESNET, "the convolutional stem of Singh et al. 2023",
        make=content(lambda: {"base_model.stem.stem.0.weight": torch.zeros(4, 3, 3, 3)})),
    Row("import without names of seven classes", SILU, "the names of the classes are missing",
        make=content(lambda: {"logits.bias": torch.zeros(7)})),
    Row("import with a normalisation that is not known", f"{SILU} --labels a b", "give mean and std",
        make=content(lambda: {"logits.bias": torch.zeros(2)})),
    Row("import with an attack on fewer than no images", f"{RESNET} --attack_samples -1", "--attack_samples -1"),
    Row("import with an ε of 8", f"{RESNET} --eps 8", "--eps"),
    Row("import with a norm that there is not", f"{RESNET} --norm l7", "--norm"),
    Row("import from nowhere", f"{RESNET} --source 'my drive'", "--source my drive is neither a Hub id"),
    Row("import for l2 without a radius", f"{RESNET} --norm l2", "--norm l2 needs --eps"),
]  # fmt: skip
