"""The way between two models: what lies on it, what is measured and chosen, and what is left."""

import copy
import json

import datasets
import numpy as np
import pytest
import torch
from evaluated_digits import images_of

from hf_robust_transfer import PixelClassifier, ThreatModel, evaluate_robustness
from hf_robust_transfer.cli.main import run_command
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.evaluation.accuracy import Accuracy
from hf_robust_transfer.evaluation.tradeoff import TradeoffPoint, choose_point
from hf_robust_transfer.hub.card import model_card, read_facts
from hf_robust_transfer.modeling import load_model
from hf_robust_transfer.transfer import interpolated
from hf_robust_transfer.transfer.interpolation import check_that_they_match

EPS = 0.06


def noisy(model, scale, seed=0):
    """A copy of a model some way off, as a fine-tuning of it is."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for parameter in other.parameters():
        parameter.data += scale * parameter.data.std().nan_to_num() * torch.randn(parameter.shape, generator=generator)
    return other


@pytest.fixture(scope="module")
def ends(tmp_path_factory, trained, pixels):
    """Folders of a model trained on digits and of another near it, and one with images to validate on."""
    folder = tmp_path_factory.mktemp("ends")
    model, processor = trained
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("0123456789"))})
    for name, rows in (("train", range(1200, 1264)), ("validation", range(1400, 1440))):
        items = [{"pixel_values": pixels[0][row], "labels": int(pixels[1][row])} for row in rows]
        images_of(items).cast(features).to_parquet(folder / "images" / f"{name}-00000-of-00001.parquet")
    data = {"dataset_name": str(folder / "images")}
    for name, each in (("one", model), ("other", noisy(model, 0.4))):
        each = copy.deepcopy(each)
        each.config.robust_training = {"norm": "linf", "eps": str(EPS), "seed": 3, "data": data}
        each.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return folder


def command(ends, output, *more, names=("one", "other")):
    words = [*(str(ends / name) for name in names), "--output_dir", str(output), "--use_cpu", "--precision", "float32"]
    run_command("interpolate", [*words, "--attacks", "pgd-3", *more])


def test_weights_and_buffers_lie_on_the_straight_line(tiny):
    one, _ = tiny("timm-resnet")
    other = noisy(one, 0.5)
    for name, buffer in other.named_buffers():
        if "running" in name:
            buffer.add_(1)
    before = [{name: tensor.clone() for name, tensor in each.state_dict().items()} for each in (one, other)]
    for alpha in (0, 0.3, 1):
        middle = interpolated(one, other, alpha).state_dict()
        for name, tensor in middle.items():
            ends = [state[name].double().numpy() for state in before]
            if alpha in (0, 1):
                assert torch.equal(tensor, before[alpha][name])
            elif tensor.is_floating_point():
                assert tensor.numpy() == pytest.approx((1 - alpha) * ends[0] + alpha * ends[1], rel=1e-6, abs=1e-7), name
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in one.state_dict().items())


def test_the_points_are_what_an_evaluation_measures_and_the_chosen_model_is_left(ends, tmp_path, pixels, capsys):
    command(ends, tmp_path / "between", "--alphas", "0", "0.5", "1", "--choose", "0.25")
    assert capsys.readouterr().out.count(" images, 8 × 8 px, as they are") == 1  # of all evaluations
    found = json.loads((tmp_path / "between/interpolation.json").read_text())
    assert [point["alpha"] for point in found["points"]] == [0, 0.25, 0.5, 1]
    one, processor = load_model(str(ends / "one"))
    other, _ = load_model(str(ends / "other"))
    shown = pixels[0].mul(255).round() / 255  # as they are in the files
    data = [{"pixel_values": shown[row], "labels": int(pixels[1][row])} for row in range(1400, 1440)]
    for point in found["points"]:
        classifier = PixelClassifier(interpolated(one, other, point["alpha"]), processor)
        options = {"self_check_samples": 0, "curve_samples": 0, "progress": False, "seed": 3, "precision": "float32"}
        report = evaluate_robustness(classifier, data, ThreatModel("linf", EPS), ["pgd-3"], **options)
        assert (point["clean"]["value"], point["robust"]["value"]) == (report.clean.value, report.worst_case.value)
    left, _ = load_model(str(tmp_path / "between"))
    expected = interpolated(one, other, 0.25).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in left.state_dict().items())
    record = json.loads((tmp_path / "between/training.json").read_text())
    assert record["interpolated"]["alpha"] == 0.25
    assert [model["name"] for model in record["interpolated"]["models"]] == ["one", "other"]
    assert str(ends) not in json.dumps(record)
    card = str(model_card(read_facts(str(tmp_path / "between")), "me/between"))
    assert "its weights are 0.75 of those of one and 0.25 of those of other" in card
    assert (tmp_path / "between/interpolation.png").stat().st_size > 5000
    assert "| **0.25** |" in (tmp_path / "between/interpolation.md").read_text()
    assert not (tmp_path / "between/evaluation_progress").exists()


def test_a_command_that_was_stopped_goes_on(ends, tmp_path, monkeypatch, capsys):
    command(ends, tmp_path / "whole", "--alphas", "0", "1")
    with monkeypatch.context() as patch:
        patch.setattr("hf_robust_transfer.runs.interpolate.choose_point", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command(ends, tmp_path / "stopped", "--alphas", "0", "1")
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["evaluation_progress"]
    command(ends, tmp_path / "stopped", "--alphas", "0", "1")
    found = [json.loads((tmp_path / name / "interpolation.json").read_text()) for name in ("whole", "stopped")]
    assert found[0] == found[1]
    with pytest.raises(SystemExit, match="holds a model"):
        command(ends, tmp_path / "whole", "--alphas", "0", "1")
    command(ends, tmp_path / "whole", "--alphas", "0", "--choose", "0", "--overwrite_output_dir")
    assert len(json.loads((tmp_path / "whole/interpolation.json").read_text())["points"]) == 1


def test_batch_norm_statistics_that_differ_are_measured_on_training_images(tiny, tmp_path, digit_batch):
    model, processor = tiny("timm-resnet")
    images, labels = digit_batch(32, 40)
    items = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]
    names = [model.config.id2label[index] for index in range(len(model.config.id2label))]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    for name, rows in (("train", items[:24]), ("validation", items[24:])):
        images_of(rows).cast(features).to_parquet(tmp_path / "images" / f"{name}-00000-of-00001.parquet")
    other = noisy(model, 0.1)
    other.timm_model.bn1.running_mean.add_(1)
    for name, each in (("one", model), ("other", other)):
        each.config.robust_training = {"norm": "linf", "eps": "0.06", "data": {"dataset_name": str(tmp_path / "images")}}
        each.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    command(tmp_path, tmp_path / "between", "--alphas", "0.5", "--choose", "0.5")
    left, _ = load_model(str(tmp_path / "between"))
    bn = left.timm_model.bn1
    mean, std = (torch.tensor(processor.data_config[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    shown = torch.stack([item["pixel_values"] for item in items[:24]]).mul(255).round() / 255
    with torch.no_grad():
        inputs = left.timm_model.conv1((shown - mean) / std).transpose(0, 1).flatten(1)
    assert torch.allclose(bn.running_mean, inputs.mean(1), atol=1e-5)
    assert torch.allclose(bn.running_var, inputs.var(1), rtol=1e-4)
    others = interpolated(model, other, 0.5).timm_model.layer1[0].bn1
    assert torch.equal(left.timm_model.layer1[0].bn1.running_mean, others.running_mean)  # the same in both: kept


def test_the_choices_are_the_highest_and_the_farthest_from_the_diagonal():
    values = [(0.6, 0.24), (0.7, 0.274), (0.737, 0.261), (0.769, 0.239), (0.798, 0.199)]  # of a natural fine-tuning
    points = [
        TradeoffPoint(alpha, *(Accuracy(value, 0.0, 1.0) for value in pair))
        for alpha, pair in zip(np.linspace(0, 1, 5).tolist(), values, strict=True)
    ]
    assert [choose_point(points, choice).alpha for choice in ("robust", "clean", "knee", 0.75)] == [0.25, 1.0, 0.5, 0.75]
    scaled = [((clean - 0.6) / 0.198, (robust - 0.199) / 0.075) for clean, robust in values]
    distances = [abs(x + y - 1) / 2**0.5 * (1 if x + y > 1 else -1) for x, y in scaled]  # from the falling diagonal
    assert int(np.argmax(distances)) == 2
    assert choose_point([points[0]], "knee") == points[0]


def test_models_that_do_not_come_from_the_same_weights_are_told_of(ends, tmp_path, caplog):
    model, processor = load_model(str(ends / "one"))
    for name, parameter in model.named_parameters():  # the same function, but its features and head are the other way round
        if name.endswith(("head.norm.weight", "head.norm.bias", "head.fc.weight")):
            parameter.data = -parameter.data
    model.save_pretrained(tmp_path / "elsewhere")
    processor.save_pretrained(tmp_path / "elsewhere")
    for second, told in ((ends / "one", False), (tmp_path / "elsewhere", True)):
        output = tmp_path / f"out {told}"
        command(ends, output, "--alphas", "0", "0.5", "1", names=("one", second))
        assert ("far below both ends" in caplog.text) == told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model, processor: setattr(model.config, "id2label", dict(enumerate("abcdefghij"))), "the same labels"),
        (lambda model, processor: processor.data_config.update(mean=(0.1, 0.1, 0.1)), "normalise pixels differently"),
        (lambda model, processor: processor.data_config.update(input_size=(3, 16, 16)), "take two of one size"),
        (lambda model, processor: setattr(model.config, "architecture", "resnet18"), "take two of one architecture"),
    ],
)
def test_models_of_two_kinds_are_refused(tiny, change, message):
    one, other = tiny("timm-convnext"), tiny("timm-convnext")
    check_that_they_match(PixelClassifier(*one), PixelClassifier(*other))
    change(*other)
    with pytest.raises(UsageError, match=message):
        check_that_they_match(PixelClassifier(*one), PixelClassifier(*other))


def test_models_of_two_architectures_are_refused(tiny):
    with pytest.raises(UsageError, match=r"other weights .*: take two of one architecture"):
        interpolated(tiny("timm-convnext")[0], tiny("timm-vit")[0], 0.5)
