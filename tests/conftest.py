"""What several test files share: tiny real data, tiny models of every family, and the folder of larger ones."""

import atexit
import json
import os
import shutil
import tempfile

# Before anything reads them: no test may wait for a network, leave features in the user's cache, or start more threads
# in its processes than there are cores, since several tests run side by side.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf-home-")

import runpy
import sys
from pathlib import Path

import datasets
import hypothesis
import numpy as np
import pytest
import torch
from evaluated_digits import EPS
from sklearn.datasets import load_digits
from tiny_models import DIGITS, TIMM, TRANSFORMERS
from torch import nn

from hf_robust_transfer.attacks import pgd
from hf_robust_transfer.cli.main import COMMANDS, run_command
from hf_robust_transfer.evaluation import evaluate_robustness
from hf_robust_transfer.modeling import PixelClassifier, create_model, load_model
from hf_robust_transfer.modeling.fingerprint import fingerprint
from hf_robust_transfer.threat_model import ThreatModel

atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
torch.set_num_threads(1)  # on models this tiny several threads only wait for each other
hypothesis.settings.register_profile("tests", deadline=None, database=None, derandomize=True)
hypothesis.settings.load_profile("tests")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def digits():
    """The first 200 handwritten digits of scikit-learn: grey 8×8 images and their labels."""
    loaded = load_digits()
    images = (loaded.images[:200] * 255 / 16).astype(np.uint8)
    return datasets.Dataset.from_dict(
        {"image": list(images), "label": loaded.target[:200].tolist()},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(DIGITS.values()))}),
    )


@pytest.fixture
def digit_batch():
    """A function (size) -> eight digits as RGB pixels in [0, 1] of that size, and their labels."""

    def batch(size=8, count=8, dtype=torch.float32):
        loaded = load_digits()
        images = torch.tensor(loaded.images[:count] / 16, dtype=dtype)[:, None].repeat(1, 3, 1, 1)
        return torch.nn.functional.interpolate(images, size=(size, size)), torch.tensor(loaded.target[:count])

    return batch


@pytest.fixture(scope="session")
def tiny():
    """A function (kind, id2label) -> a tiny randomly initialised model in eval mode and its image processor.

    Its kinds are the keys of `TIMM` and `TRANSFORMERS`; hf-resnet and timm-resnet see 32×32 images, the others 8×8.
    """

    def make(kind, id2label=None, seed=0):
        id2label = dict(DIGITS if id2label is None else id2label)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if kind in TIMM:
                architecture, model_args, size = TIMM[kind]
                return create_model(architecture, id2label=id2label, model_args=model_args, image_size=size)
            model_class, config, processor = TRANSFORMERS[kind]
            labels = {"id2label": id2label, "label2id": {label: index for index, label in id2label.items()}}
            return model_class(config(labels)).eval(), processor()

    return make


@pytest.fixture(scope="session", params=[*TIMM, *TRANSFORMERS])
def kind(request):
    """Each kind of tiny model in turn."""
    return request.param


@pytest.fixture(scope="session")
def shared():
    """The folder with larger data and models beside the repository; tests that need it are skipped where it is absent."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"the larger data and models are not at {folder}")
    return folder


@pytest.fixture
def error_of(monkeypatch):
    """A function (recipe, *arguments) -> the one-line error that it ends with, run in this process."""

    def run_here(recipe, *arguments):
        command = Path(recipe).stem.replace("_", "-")
        with pytest.raises(SystemExit) as stopped:
            if command in COMMANDS:
                run_command(command, list(map(str, arguments)))
            else:
                script = REPOSITORY / "recipes" / recipe
                monkeypatch.syspath_prepend(str(script.parent))
                monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
                runpy.run_path(str(script), run_name="__main__")
        error = str(stopped.value)  # what Python prints before it exits with status 1
        assert error.startswith("error: ") and "\n" not in error
        return error

    return run_here


@pytest.fixture
def published(tiny, digit_batch, tmp_path):
    """A folder as training and evaluation leave it: checkpoint, record, report and pictures."""
    model, processor = tiny("timm-convnext")
    folder = tmp_path / "mine"
    model.config.robust_training = {"norm": "linf", "eps": "8/255", "data": {"dataset_name": str(tmp_path / "pets")}}
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    images, labels = digit_batch(count=30)
    data = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]
    classifier = PixelClassifier(*load_model(str(folder)))
    options = {"self_check_samples": 30, "curve_samples": 0, "progress": False, "data_name": "me/pets"}
    evaluate_robustness(classifier, data, ThreatModel(), ["fgsm", "pgd-5"], **options).save(folder)
    record = {
        "fingerprint": fingerprint(classifier.model, classifier.processor),
        "command": "accelerate launch -m hf_robust_transfer.cli.finetune --transfer lwf",
        "base_model": "you/source",
        "data": {"dataset_name": "me/pets"},
        "images": {"train": 30, "validation": 10},
        "options": {"objective": "natural", "freeze": "none", "lwf_weight": 0.5, "learning_rate": 0.01},
        "processes": 1,
        "seconds": 3.2,
        "hardware": "CPU",
        "versions": {"torch": "2.15.0"},
    }
    (folder / "training.json").write_text(json.dumps(record))
    (folder / "training_args.bin").write_bytes(b"token")
    return folder


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _own_datasets_cache(tmp_path_factory):
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="session")
def pixels():
    """All digits as RGB pixels (N, 3, 8, 8) in [0, 1], and their labels."""
    loaded = load_digits()
    return torch.tensor(loaded.images / 16, dtype=torch.float32)[:, None].repeat(1, 3, 1, 1), torch.tensor(loaded.target)


@pytest.fixture(scope="session")
def trained(tiny, pixels):
    """A tiny ConvNeXt that has learned the digits with adversarial training, and its image processor."""
    model, processor = tiny("timm-convnext")
    classifier = PixelClassifier(model, processor)
    images, labels = (each[:1400] for each in pixels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for step in range(300):
        rows = torch.randint(len(images), (64,), generator=generator)
        attacked = pgd(classifier, images[rows], labels[rows], EPS, steps=2, step_size=0.04, seed=step)
        model.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier(attacked), labels[rows]).backward()
        optimizer.step()
    model.eval()
    return model, processor


@pytest.fixture
def classifier(trained):
    return PixelClassifier(*trained)


@pytest.fixture(scope="session")
def data(pixels):
    """The 100 digits after those of training, as items of a data set."""
    images, labels = (each[1400:1500] for each in pixels)
    return [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]
