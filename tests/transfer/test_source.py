"""A source that is not robust is refused by its name, or told of when it is looked at; looking changes nothing."""

import copy
import re

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from hf_robust_transfer import RobustTrainer, RobustTrainingArguments
from hf_robust_transfer.attacks import pgd
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.threat_model import ThreatModel
from hf_robust_transfer.transfer.source import accuracy_kept, check_source

NOT = "timm/tf_efficientnet_b0.ap_in1k"


class Drawn(Dataset):
    """Images with noise of every global random state."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        noise = torch.rand(3, 8, 8) * float(np.random.rand())
        return {"pixel_values": (self.images[row] + 0.01 * noise).clamp(0, 1), "labels": int(self.labels[row])}


@pytest.fixture
def train(trained, pixels, tmp_path):
    """A function (**arguments) -> the model that a transfer of the robust digits network leaves."""

    def run(**arguments):
        model, processor = copy.deepcopy(trained)
        images, labels = (each[:200] for each in pixels)
        options = {"transfer": "fine_tuned", "max_steps": 4, "per_device_train_batch_size": 20, **arguments}
        if options["transfer"] != "frozen":
            options |= {"warm_start_steps": 2}
        options |= {"report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
        args = RobustTrainingArguments(str(tmp_path / "run"), use_cpu=True, **options)
        RobustTrainer(model, args, processing_class=processor, train_dataset=Drawn(images, labels)).train()
        return model

    return run


def warnings(caplog):
    return [each.getMessage() for each in caplog.records if "does not look robust" in each.getMessage()]


def check_told(told):
    clean, images, robust = re.search(
        r"classifies (\d+)% of (\d+) training images.* and (\d+)% under PGD-10", told
    ).groups()
    assert int(clean) > 50 and int(images) == 64 and int(robust) < int(clean) / 3
    assert "ε = 200/255" in told and "salman2020-resnet50-linf-eps4" in told


def test_a_source_that_withstands_nothing_at_this_eps_is_told_of_once_and_training_learns_the_same(train, caplog):
    not_looked = train(eps="0")
    assert not warnings(caplog)
    looked = train(eps="200/255")
    (told,) = warnings(caplog)
    check_told(told)
    for name, tensor in looked.state_dict().items():
        assert torch.equal(tensor, not_looked.state_dict()[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("transfer", ["lwf", "frozen"])
def test_so_it_is_with_each_preset(train, caplog, transfer):
    train(transfer=transfer, eps="200/255")
    check_told(*warnings(caplog))


@pytest.mark.slow
def test_a_source_that_withstands_is_not_told_of(train, caplog):
    train(eps="2/255")
    assert not warnings(caplog)


def test_the_accuracy_kept_is_that_of_pgd(classifier, data):
    images, labels = (torch.stack([torch.as_tensor(item[key]) for item in data[:40]]) for key in ("pixel_values", "labels"))
    threat_model = ThreatModel("linf", 0.1)
    before = copy.deepcopy(classifier.model.state_dict())
    clean, robust = accuracy_kept(classifier, images, labels, threat_model)
    attacked = pgd(classifier, images, labels, threat_model, steps=10)
    with torch.no_grad():
        right = classifier(images).argmax(1) == labels
        assert clean == pytest.approx(right.float().mean().item()) and clean > 0.5
        assert robust == pytest.approx((right & (classifier(attacked).argmax(1) == labels)).float().mean().item())
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.model.state_dict().items())


@pytest.mark.parametrize("transfer", ["frozen", "lwf"])
def test_what_is_adversarial_by_name_only_is_refused_where_all_robustness_is_the_sources(transfer):
    words = rf"{NOT} is no robust source for --transfer {transfer}: AdvProp .* such as salman2020.*--transfer fine_tuned"
    with pytest.raises(UsageError, match=words):
        check_source(NOT, transfer)
    for allowed in ("fine_tuned", None):
        check_source(NOT, allowed)


def test_it_is_refused_from_python_and_on_the_command_line_before_anything_is_loaded(tiny, data, tmp_path, error_of):
    model, processor = tiny("timm-convnext")
    model.config.pretrained_cfg = {**model.config.pretrained_cfg, "tag": "ap_in1k"}
    args = RobustTrainingArguments(str(tmp_path / "run"), transfer="frozen", use_cpu=True, report_to="none")
    with pytest.raises(UsageError, match="no robust source for --transfer frozen"):
        RobustTrainer(model, args, processing_class=processor, train_dataset=data)
    for flag in ("--model_name_or_path", "--teacher_name_or_path"):
        given = ["--model_name_or_path", "none/such", flag, NOT, "--dataset_name", "none", "--output_dir", tmp_path / "run"]
        assert "no robust source for --transfer lwf" in error_of("finetune", *given)
    model.save_pretrained(tmp_path / "downloaded")
    given = ["--model_name_or_path", tmp_path / "downloaded", "--output_dir", tmp_path / "run"]
    assert "no robust source for --transfer frozen" in error_of("finetune", *given, "--transfer", "frozen")
    assert not (tmp_path / "run").exists()
