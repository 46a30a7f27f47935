"""A model as one file gives the model's logits, says what it is, and is there only when that was checked."""

import json
import re
import shutil
import sys

import onnxruntime
import pytest
import torch
from tiny_models import DIGITS, TIMM, TRANSFORMERS
from torch import nn

from hf_robust_transfer.cli.main import run_command
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.hub import export_classifier, files_to_publish, model_card, read_facts
from hf_robust_transfer.hub.exporting import FORMATS
from hf_robust_transfer.modeling import PixelClassifier, create_model, load_model
from hf_robust_transfer.modeling.classifier import weights_sha256
from hf_robust_transfer.modeling.fingerprint import fingerprint
from hf_robust_transfer.run_folder import clear


def run_exported(file, pixels):
    """The logits of an exported file, by its runtime alone."""
    if file.suffix == ".onnx":
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])
    return torch.export.load(file).module()(pixels)


def facts_in(file):
    """What the file says of itself, as the documentation has it read."""
    if file.suffix == ".onnx":
        return onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    extra = {"facts.json": ""}
    torch.export.load(file, extra_files=extra)
    return json.loads(extra["facts.json"])


def check_logits(file, model, processor, mean, std):
    """The file's logits are the model's, of pixels that are normalised by hand, at batch sizes that were not tried."""
    side = json.loads(facts_in(file)["input_size"])[1]
    for count in (1, 2, 5, 33):
        pixels = torch.rand(count, 3, side, side)
        normalised = (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
        with torch.no_grad():
            expected = model(pixel_values=normalised).logits
        found = run_exported(file, pixels)
        assert found.dtype == torch.float32 and found.shape == expected.shape
        assert torch.allclose(found, expected, atol=2e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """A folder with a checkpoint, exported in each format by the command."""
    folder = tmp_path_factory.mktemp("exported") / "mine"
    model, processor = tiny("timm-convnext")
    model.config.robust_training = {"norm": "l2", "eps": "0.5", "data": {"train_dir": str(folder)}}
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for format in FORMATS:
        run_command("export", ["--model_name_or_path", str(folder), "--output", str(folder), "--format", format])
    return folder


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_an_exported_file_gives_the_logits_and_says_what_it_is(exported, name):
    model, processor = load_model(str(exported))
    check_logits(exported / name, model, processor, processor.data_config["mean"], processor.data_config["std"])
    facts = facts_in(exported / name)
    assert json.loads(facts["labels"]) == list(DIGITS.values()) and json.loads(facts["input_size"]) == [3, 8, 8]
    assert (facts["norm"], facts["eps"], facts["architecture"]) == ("l2", "0.5", "convnext_tiny")
    assert facts["fingerprint"] == fingerprint(model, processor)
    assert "in [0, 1]" in facts["input"] and "logits" in facts["output"]
    assert str(exported.parent).encode() not in (exported / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", [*TIMM, *TRANSFORMERS, "cifar_resnet18", "test_vit2", "test_efficientnet", "resnetv2_50"])
def test_every_kind_of_model_is_exported(tiny, tmp_path, kind, format):
    is_tiny = kind in TIMM or kind in TRANSFORMERS
    model, processor = tiny(kind) if is_tiny else create_model(kind, id2label=DIGITS, image_size=64)
    exported = export_classifier(PixelClassifier(model, processor), tmp_path / "new", format)
    config = getattr(processor, "data_config", None)
    mean, std = (config["mean"], config["std"]) if config else (processor.image_mean, processor.image_std)
    check_logits(exported.file, model, processor, mean, std)
    assert exported.difference <= 1e-5 and "norm" not in facts_in(exported.file)


def test_exporting_leaves_the_classifier_as_it_is(tiny, tmp_path):
    model, processor = tiny("hf-vit")
    classifier = PixelClassifier(model.bfloat16().train(), processor)
    before = weights_sha256(model)
    file = export_classifier(classifier, tmp_path, "torch").file
    assert model.training and weights_sha256(model) == before and model.dtype == torch.bfloat16
    check_logits(file, model.float().eval(), processor, processor.image_mean, processor.image_std)
    assert "norm" not in facts_in(file)  # nobody said what it was trained for


class Noise(nn.Module):
    def forward(self, features):
        return features + torch.rand_like(features)


class ByValue(nn.Module):
    def forward(self, features):
        return features if float(features.sum()) > 0 else 2 * features


class OfTwo(nn.Module):
    def forward(self, features):
        return features.view(2, -1)


@pytest.mark.parametrize("fault", [Noise, ByValue, OfTwo])
def test_what_cannot_be_exported_leaves_nothing_behind(tiny, tmp_path, fault):
    model, processor = tiny("timm-convnext")
    model.timm_model.head.drop = fault()
    with pytest.raises(UsageError, match=r"^convnext_tiny cannot be exported with --format torch: ") as refused:
        export_classifier(PixelClassifier(model, processor), tmp_path / "a" / "b", "torch")
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())
    if fault is Noise:
        assert "gives other logits than the model" in str(refused.value)


def test_without_the_extra_an_error_says_how_to_install_it(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"need onnxscript: pip install 'hf-robust-transfer\[export\]'"):
        export_classifier(PixelClassifier(*tiny("timm-convnext")), tmp_path)


def test_publishing_takes_exported_files_of_this_very_model_and_the_card_runs_them(exported, tmp_path, monkeypatch):
    folder = shutil.copytree(exported, tmp_path / "mine")
    files = files_to_publish(folder, "me/mine")
    assert files["model.onnx"] == folder / "model.onnx" and "model.pt2" in files
    text = str(model_card(read_facts(folder), "me/mine"))
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "pixels" in block]
    pixels = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        expected = PixelClassifier(*load_model(str(folder)))(pixels)
    for block, given in zip(blocks, (pixels.numpy(), pixels), strict=True):
        names = {"pixels": given}
        exec(block.replace('hf_hub_download("me/mine", ', f'(lambda name: f"{folder}/{{name}}")('), names)
        assert torch.allclose(torch.as_tensor(names["logits"]), expected, atol=1e-5)


def test_an_export_of_other_weights_or_a_damaged_one_is_not_published(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "mine")
    model, _ = load_model(str(folder))
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    model.save_pretrained(folder)
    (folder / "damaged.onnx").write_bytes(b"\x08\x0a" * 100)
    (folder / "damaged.pt2").write_bytes(b"PK")
    assert not any(name.endswith((".onnx", ".pt2")) for name in files_to_publish(folder, "me/mine"))
    assert "onnx" not in str(model_card(read_facts(folder), "me/mine"))
    clear(folder)
    assert {path.name for path in folder.iterdir()} == {"damaged.onnx", "damaged.pt2"}
