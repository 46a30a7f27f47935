"""Our checkpoints and classifiers in other hands: transformers' own example, evaluate, attack libraries."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import evaluate
import numpy as np
import pytest
import torch
from evaluated_digits import EPS, images_of
from torchvision.transforms import CenterCrop, Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, Resize, ToTensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

from hf_robust_transfer.evaluation.evaluator import RobustnessEvaluator
from hf_robust_transfer.hub import stand_alone
from hf_robust_transfer.modeling import PixelClassifier, load_model

REPOSITORY = Path(__file__).resolve().parents[2]


def transforms_of(processor):
    """The transforms of training and validation, as the example has them."""
    if hasattr(processor, "train_transforms"):  # timm's
        return processor.train_transforms, processor.val_transforms
    size = processor.size.get("shortest_edge") or (processor.size["height"], processor.size["width"])
    normalize = Normalize(mean=processor.image_mean, std=processor.image_std)
    return (
        Compose([RandomResizedCrop(size), RandomHorizontalFlip(), ToTensor(), normalize]),
        Compose([Resize(size), CenterCrop(size), ToTensor(), normalize]),
    )


def collate(examples):
    pixels = torch.stack([example["pixel_values"] for example in examples])
    return {"pixel_values": pixels, "labels": torch.tensor([example["label"] for example in examples])}


@pytest.mark.parametrize("labels", [["even", "odd"], [f"digit {digit}" for digit in range(10)]], ids=["two", "as-many"])
@pytest.mark.parametrize("kind", ["timm-convnext", "timm-vit", "hf-convnext", "hf-vit"])
def test_the_image_classification_example_trains_from_our_checkpoint(tiny, digits, tmp_path, kind, labels):
    """What `run_image_classification.py` of transformers does, call by call; its command line is left out."""
    source, output = tmp_path / "source", tmp_path / "trained"
    for part in tiny(kind):
        part.save_pretrained(source)
    stand_alone(source)

    data = digits.select(range(40)).map(lambda row: {"label": row["label"] % len(labels)}, features=digits.features)
    label2id = {label: str(index) for index, label in enumerate(labels)}
    id2label = {str(index): label for index, label in enumerate(labels)}
    config = AutoConfig.from_pretrained(
        source, num_labels=len(labels), label2id=label2id, id2label=id2label, finetuning_task="image-classification"
    )
    model = AutoModelForImageClassification.from_pretrained(source, config=config, ignore_mismatched_sizes=True)
    processor = AutoImageProcessor.from_pretrained(source)
    parts = data.train_test_split(0.25, seed=0)
    for split, transform in zip(("train", "test"), transforms_of(processor), strict=True):
        parts[split].set_transform(
            lambda batch, transform=transform: {
                **batch,
                "pixel_values": [transform(image.convert("RGB")) for image in batch["image"]],
            }
        )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(output), max_steps=2, use_cpu=True, report_to="none", remove_unused_columns=False, disable_tqdm=True
        ),
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        compute_metrics=lambda p: {"accuracy": float(np.mean(np.argmax(p.predictions, axis=1) == p.label_ids))},
        processing_class=processor,
        data_collator=collate,
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer.train()
    trainer.save_model()
    assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    classify = pipeline("image-classification", model=str(output), device=-1)
    again, its_processor = load_model(str(output))
    assert {each["label"] for each in classify(data[0]["image"].convert("RGB"), top_k=20)} == set(labels)
    assert list(again.config.id2label.values()) == labels
    pixels = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        expected = model.eval()(pixel_values=pixels).logits
        assert torch.allclose(again(pixel_values=pixels).logits, expected, atol=1e-6)
    assert PixelClassifier(again, its_processor).labels == labels


class Accuracy(evaluate.Metric):
    """What `evaluate.load("accuracy")` computes, which would have to be downloaded."""

    def _info(self):
        features = datasets.Features({name: datasets.Value("int64") for name in ("predictions", "references")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"accuracy": float(np.mean(np.equal(predictions, references)))}


def test_the_evaluator_of_evaluate_and_ours_agree(trained, data, tmp_path):
    images = images_of(data)
    for part in trained:
        part.save_pretrained(tmp_path)
    stand_alone(tmp_path)
    theirs = evaluate.evaluator("image-classification").compute(
        model_or_pipeline=str(tmp_path),
        data=images,
        metric=Accuracy(),
        label_mapping={str(digit): digit for digit in range(10)},
        device=-1,
    )
    evaluator = RobustnessEvaluator(EPS, "fgsm")
    ours = evaluator.compute(model_or_pipeline=str(tmp_path), data=images, device=-1)
    stock = evaluator.compute(model_or_pipeline=str(tmp_path), data=images, device=-1, metric=Accuracy())
    assert theirs["accuracy"] == ours["clean_accuracy"] == stock["accuracy"] > ours["robust_accuracy"]


ATTACKED = """
import json, sys
import torch
from hf_robust_transfer import PixelClassifier, ThreatModel, load_model, pgd

folder, library = sys.argv[1:]
classifier = PixelClassifier(*load_model(folder)).eval()
images, labels = torch.load(f"{folder}/data.pt")
eps, steps, size = 0.12, 20, 0.03
before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
if library == "torchattacks":
    import torchattacks

    theirs = torchattacks.PGD(classifier, eps=eps, alpha=size, steps=steps, random_start=True)(images, labels)
else:
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    estimator = PyTorchClassifier(
        classifier, torch.nn.CrossEntropyLoss(), tuple(images.shape[1:]), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    attack = ProjectedGradientDescent(
        estimator, norm="inf", eps=eps, eps_step=size, max_iter=steps, num_random_init=1, verbose=False
    )
    theirs = torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))
ours = pgd(classifier, images, labels, ThreatModel("linf", eps), steps=steps, step_size=size)
with torch.no_grad():
    right = {name: float((classifier(each).argmax(1) == labels).float().mean())
             for name, each in (("clean", images), ("ours", ours), ("theirs", theirs))}
print(json.dumps({
    **right,
    "dtype": str(theirs.dtype),
    "shape": list(theirs.shape),
    "farthest": float((theirs - images).abs().max()),
    "least": float(theirs.min()),
    "most": float(theirs.max()),
    "unchanged": all(torch.equal(before[name], tensor) for name, tensor in classifier.state_dict().items()),
}))
"""


@pytest.fixture(scope="module")
def attack_libraries(tmp_path_factory):
    """torchattacks and ART in a folder of their own, without the old versions of others that they ask for."""
    site = tmp_path_factory.mktemp("site")
    packages = ["torchattacks", "adversarial-robustness-toolbox", "six"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), *packages]
    if subprocess.run(pip, capture_output=True, check=False).returncode:
        pytest.skip("torchattacks and ART cannot be installed here")
    return site


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torchattacks", "art"])
def test_other_attack_libraries_take_the_classifier_as_it_is(trained, data, attack_libraries, tmp_path, library):
    for part in trained:
        part.save_pretrained(tmp_path)
    images, labels = (torch.stack([torch.as_tensor(item[key]) for item in data]) for key in ("pixel_values", "labels"))
    torch.save((images, labels), tmp_path / "data.pt")
    done = subprocess.run(
        [sys.executable, "-c", ATTACKED, str(tmp_path), library],
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": f"{REPOSITORY}:{attack_libraries}",
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["clean"] > 0.8 and found["ours"] < found["clean"] - 0.1
    assert abs(found["theirs"] - found["ours"]) <= 0.05
    assert (found["dtype"], found["shape"], found["unchanged"]) == ("torch.float32", list(images.shape), True)
    assert found["farthest"] <= 0.12 + 1e-6 and found["least"] >= 0 and found["most"] <= 1
