"""What is made sure of before training and after saving."""

import pytest
import torch
from backbones import NEW, SEVEN, save_source, stock
from torch import nn
from transformers import ViTForImageClassification

from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.modeling import PixelClassifier, create_model, load_model
from hf_robust_transfer.training.gate import check_saved, check_that_it_will_load, head_takes_features

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def classifier(tiny):
    return PixelClassifier(*tiny("hf-vit"))


class Shifted(ViTForImageClassification):
    """A classifier that keeps something that is not saved."""

    shift = 0.0

    def forward(self, pixel_values=None, **options):
        outputs = super().forward(pixel_values, **options)
        outputs.logits = outputs.logits + self.shift
        return outputs


def test_logits_that_are_not_finite_are_refused(classifier, tmp_path):
    nn.init.constant_(classifier.model.classifier.bias, torch.nan)
    with pytest.raises(UsageError, match="gives logits that are not finite"):
        check_that_it_will_load(classifier, IMAGES, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_that_makes_no_logits_is_refused_in_one_line(tmp_path):
    model, processor = stock("PPLCNetForImageClassification", "pp_lcnet")
    with pytest.raises(UsageError, match="PPLCNetForImageClassification makes no logits") as refused:
        check_that_it_will_load(PixelClassifier(model, processor), torch.rand(2, 3, 64, 64), tmp_path)
    assert "\n" not in str(refused.value)


def test_what_would_be_lost_in_saving_is_told_before_training(classifier, tmp_path):
    model = Shifted(classifier.model.config).eval()
    shifted = PixelClassifier(model, classifier.processor)
    check_that_it_will_load(shifted, IMAGES, tmp_path)
    model.shift = 0.1
    with pytest.raises(UsageError, match="would not be the same once it is saved and loaded: its logits are others"):
        check_that_it_will_load(shifted, IMAGES, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_saved_model_that_was_changed_is_told(classifier, tmp_path):
    for each in (classifier.model, classifier.processor):
        each.save_pretrained(tmp_path)
    check_saved(tmp_path, classifier, IMAGES)
    with torch.no_grad():
        classifier.model.classifier.weight.mul_(1.1)
    with pytest.raises(UsageError, match="is not the one that was trained: its logits are others when transformers loads"):
        check_saved(tmp_path, classifier, IMAGES)


def test_features_stand_for_the_image_only_where_the_head_needs_no_more(classifier):
    assert head_takes_features(classifier, IMAGES)
    model, processor = create_model("volo_d1_224", id2label=SEVEN, model_args={"img_size": 32})
    assert not head_takes_features(PixelClassifier(model, processor), torch.rand(2, 3, 32, 32))


@pytest.mark.parametrize(
    ("architecture", "model_args"),
    [
        ("repvit_m0_9", {"embed_dim": [8, 16], "depth": [1, 1]}),  # two heads, of which transformers once drew one anew
        ("coat_lite_tiny", {"img_size": 32}),  # its layers share tensors
        ("vit_tiny_patch16_384", {"depth": 1, "embed_dim": 16, "num_heads": 2}),  # an input size that its name fixes
        ("test_vit", None),
    ],
)
def test_what_is_saved_is_the_same_each_time_that_it_is_loaded(architecture, model_args, tmp_path):
    save_source(*create_model(architecture, id2label=SEVEN, model_args=model_args), tmp_path)
    classifiers = [PixelClassifier(*load_model(str(tmp_path))) for _ in range(2)]
    size = classifiers[0].model.config.pretrained_cfg["input_size"]
    images = torch.rand(2, *size)
    with torch.no_grad():
        first, second = (each(images) for each in classifiers)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    check_saved(tmp_path, classifiers[0], images)  # in timm too
    again, processor = load_model(str(tmp_path), id2label=NEW)
    check_that_it_will_load(PixelClassifier(again, processor), images, tmp_path / "trial")
