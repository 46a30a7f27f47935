"""The two networks that are part of the package."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_robust_transfer import PixelClassifier, ThreatModel
from hf_robust_transfer.cli.main import run_command
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.hub.card import model_card, read_facts
from hf_robust_transfer.modeling import load_model
from hf_robust_transfer.modeling.fetching import fetch_source
from hf_robust_transfer.modeling.source_list import SOURCES
from hf_robust_transfer.transfer.source import accuracy_kept

CIFAR = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10"
NAMES = ("robust-tiny", "natural-tiny")
OUTSIDE = """
import json, sys
sys.modules["hf_robust_transfer"] = None
import timm, torch
from transformers import AutoModelForImageClassification
images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
with torch.no_grad():
    one = AutoModelForImageClassification.from_pretrained(sys.argv[1]).eval().float()(images).logits
    other = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval().float()(images)
print(json.dumps([one.tolist(), other.tolist()]))
"""


@pytest.mark.parametrize("name", NAMES)
def test_its_folder_is_small_and_whole(name):
    folder = fetch_source(SOURCES[name])
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert (folder / "model.safetensors").stat().st_size <= 3_000_000
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} <= {torch.float16, torch.int64}
    card = (folder / "README.md").read_text()
    source = SOURCES[name]
    assert f"{source.clean:.1f} %" in card
    assert source.robust is None or f"{source.robust:.1f} %" in card
    assert re.search(r"hf-robust-transfer pretrain .*resnetv2_18", card)


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_by_name_and_without_this_package(name):
    model, processor = load_model(name)
    done = subprocess.run(
        [sys.executable, "-c", OUTSIDE, str(fetch_source(SOURCES[name]))], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    with torch.no_grad():
        expected = PixelClassifier(model, processor)(images / 2 + 0.5)
    for logits in json.loads(done.stdout.splitlines()[-1]):
        assert torch.allclose(torch.tensor(logits), expected, atol=1e-3)


def test_a_file_for_it_is_refused(tmp_path):
    with pytest.raises(UsageError, match="source robust-tiny is part of this package: leave --file out"):
        fetch_source(SOURCES["robust-tiny"], file=tmp_path / "weights.pt")


@pytest.mark.skipif(not CIFAR.exists(), reason="needs the test images of CIFAR-10 beside the checkout")
@pytest.mark.parametrize("name", NAMES)
def test_it_is_as_accurate_and_robust_as_its_card_says(name):
    from datasets import load_dataset

    images = load_dataset(str(CIFAR), split="test").select(range(256))
    model, processor = load_model(name)
    image, label = (
        next(key for key, kind in images.features.items() if word in str(kind)) for word in ("Image", "ClassLabel")
    )
    pixels = torch.stack(
        [
            torch.tensor(list(picture.convert("RGB").tobytes())).reshape(32, 32, 3).permute(2, 0, 1)
            for picture in images[image]
        ]
    )
    clean, robust = accuracy_kept(
        PixelClassifier(model, processor), pixels / 255, torch.tensor(images[label]), ThreatModel("linf", "8/255")
    )
    source = SOURCES[name]
    assert 100 * clean == pytest.approx(source.clean, abs=7)  # 256 images tell it to about 6 points
    measured = {"robust-tiny": 34.6, "natural-tiny": 0.2}[name]  # under PGD-10, as their cards say
    assert 100 * robust == pytest.approx(measured, abs=7)


def test_what_comes_of_it_names_it(tmp_path, digits):
    for row, sample in enumerate(digits.select(range(60))):
        file = tmp_path / "images" / str(sample["label"]) / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        sample["image"].save(file)
    words = ["--model_name_or_path", "robust-tiny", "--train_dir", str(tmp_path / "images"), "--max_steps", "2"]
    words += ["--transfer", "frozen", "--eval_attack_steps", "0", "--use_cpu", "--output_dir", str(tmp_path / "out")]
    run_command("finetune", words)
    card = str(model_card(read_facts(tmp_path / "out"), "you/mine"))
    assert "Its weights come from robust-tiny, trained for linf, ε = 8/255" in card
    assert "license: apache-2.0" in card
