import json
from dataclasses import fields

import datasets
import numpy as np
import pytest
import timm
import torch
import transformers
from data_folders import write_splits
from PIL import Image
from transformers import (
    ConvNextImageProcessor,
    EfficientNetImageProcessor,
    MobileViTImageProcessor,
    PPLCNetImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessor,
    ViTImageProcessorPil,
    pipeline,
)
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hf_robust_transfer.attacks import pgd
from hf_robust_transfer.cli.main import run_command
from hf_robust_transfer.cli.options import ModelArguments
from hf_robust_transfer.data import PixelDataset, to_pixels
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.hub import stand_alone
from hf_robust_transfer.modeling import PixelClassifier, create_model, load_model, pixel_statistics
from hf_robust_transfer.modeling.input_size import check_input_size
from hf_robust_transfer.modeling.processors import image_sizes, normalisation, of_size
from hf_robust_transfer.run_folder import EXAMPLES_NAME, REPORT_NAME
from hf_robust_transfer.threat_model import ThreatModel

ANIMALS = {0: "cat", 1: "dog", 2: "eel"}
# Of images of text as large as a page, or of no images at all.
LARGE = {
    "DonutImageProcessor": {"size": {"height": 64, "width": 48}},
    "SegformerImageProcessor": {"size": {"height": 96, "width": 96}},
    "TextNetImageProcessor": {"size": {"shortest_edge": 64}},
}
NO_IMAGES = {"ImageGPTImageProcessor", "Siglip2ImageProcessor", "Gemma3ImageProcessor", "TimmWrapperImageProcessor"}
KINDS = sorted(
    {
        name
        for model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
        for name in IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type, {}).values()
        if name and name.removesuffix("Pil") not in NO_IMAGES
    }
)
TWICE = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
VARIANTS = {
    "a mean for all channels": ViTImageProcessor(image_mean=0.4, image_std=0.3),
    "another mean of each": ViTImageProcessor(**TWICE),
    "a mean for all channels, by Pillow": ViTImageProcessorPil(image_mean=0.4, image_std=0.3),
    "normalised twice": EfficientNetImageProcessor(**TWICE),
    "shifted": EfficientNetImageProcessor(rescale_offset=True, rescale_factor=1 / 127.5, include_top=False, **TWICE),
    "shifted and normalised twice": EfficientNetImageProcessor(rescale_offset=True, rescale_factor=1 / 127.5, **TWICE),
    "in [-1, 1]": EfficientNetImageProcessor(
        rescale_offset=True, rescale_factor=1 / 127.5, include_top=False, do_normalize=False
    ),
    "divided by a std alone": EfficientNetImageProcessor(do_normalize=False, **TWICE),
    "blue first": MobileViTImageProcessor(),
    "blue first, always": PPLCNetImageProcessor(),
    "neither flipped nor normalised": MobileViTImageProcessor(do_flip_channel_order=False),
    "told to normalise, which its class never does": MobileViTImageProcessor(do_normalize=True, **TWICE),
    "in 0 … 255": ViTImageProcessor(do_rescale=False, image_mean=[100, 110, 120], image_std=[50, 60, 70]),
    "rescaled otherwise": ViTImageProcessor(rescale_factor=1 / 127.5, do_normalize=False),
    "not normalised": ViTImageProcessor(do_normalize=False),
    "cropped without resizing": ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.8),
}


@pytest.fixture(scope="session")
def network():
    """A network that takes images of any size, in which no channel is like another."""
    torch.manual_seed(0)
    labels = {"id2label": ANIMALS, "label2id": {name: index for index, name in ANIMALS.items()}}
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **labels)
    return ResNetForImageClassification(config).eval()


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def logits_of(model, processor, image):
    with torch.no_grad():
        return PixelClassifier(model, processor)(to_pixels(processor)(image)[None])[0]


def logits_of_pipeline(model, processor, image):
    classify = pipeline("image-classification", model=model, image_processor=processor, device="cpu")
    scores = {answer["label"]: answer["score"] for answer in classify(image, function_to_apply="none", top_k=99)}
    return torch.tensor([scores[label] for label in model.config.id2label.values()])


def saved(model, processor, folder):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


# What becomes of pixels


@pytest.mark.parametrize("name", KINDS)
def test_logits_are_those_of_a_pipeline_for_the_image_processor_of_every_classifier(network, name):
    processor = getattr(transformers, name)(**LARGE.get(name.removesuffix("Pil"), {}))
    for image in (noise(61, 37), noise(50, 90)):
        ours = logits_of(network, processor, image)
        torch.testing.assert_close(ours, logits_of_pipeline(network, processor, image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("processor", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_are_those_of_a_pipeline_for_every_option_that_touches_pixel_values(network, processor):
    image = noise(61, 37)
    pixels = to_pixels(processor)(image)
    assert pixels.shape[0] == 3 and pixels.min() >= 0 and pixels.max() <= 1
    ours = logits_of(network, processor, image)
    torch.testing.assert_close(ours, logits_of_pipeline(network, processor, image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("processor", VARIANTS.values(), ids=VARIANTS.keys())
def test_pixels_are_red_green_and_blue_in_this_order_whatever_the_model_takes(processor):
    pixels = to_pixels(processor)(Image.new("RGB", (40, 30), (255, 102, 0)))
    middle = pixels[:, pixels.shape[1] // 2, pixels.shape[2] // 2]
    torch.testing.assert_close(middle, torch.tensor([1, 0.4, 0]))


def test_statistics_are_the_numbers_that_were_written_where_these_are_what_is_done():
    assert pixel_statistics(VARIANTS["another mean of each"]) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    assert pixel_statistics(VARIANTS["a mean for all channels"]) == ((0.4,) * 3, (0.3,) * 3)
    assert pixel_statistics(VARIANTS["in [-1, 1]"]) == ((0.5,) * 3, (0.5,) * 3)
    mean, std = pixel_statistics(VARIANTS["normalised twice"])
    assert mean == (0.4, 0.5, 0.6) and std == pytest.approx((0.04, 0.0625, 0.09), rel=1e-6)
    assert normalisation(PPLCNetImageProcessor()) == ((0.406, 0.456, 0.485), (0.225, 0.224, 0.229), True)


class Gamma(ViTImageProcessor):
    def normalize(self, *args, **options):
        return super().normalize(*args, **options) ** 3


class Mixing(ViTImageProcessor):
    def normalize(self, *args, **options):
        seen = super().normalize(*args, **options)
        return seen + 0.1 * seen.mean(1, keepdim=True)


@pytest.mark.parametrize(
    ("processor", "reason"),
    [
        (Gamma(), "does something else to pixels than"),
        (Mixing(), "does something else to pixels than"),
        (transformers.Siglip2ImageProcessor(), "beside pixel_values it makes pixel_attention_mask"),
        (transformers.VivitImageProcessor(), r"shape \(1, 1, 3, 224, 224\)"),
        (ViTImageProcessor(image_mean=[0.5, 0.5], image_std=[0.5, 0.5]), "must have 3 values each"),
        (ViTImageProcessor(image_std=[0.5, 0.0, 0.5]), "each std must be above 0"),
        (ViTImageProcessor(image_std=-0.5), "each std must be above 0"),
        (ViTImageProcessor(image_mean=float("nan")), "each std must be above 0"),
        (EfficientNetImageProcessor(do_normalize=False, image_std=[0.5, 0.0, 0.5]), "division by zero"),
    ],
)
def test_an_image_processor_that_is_no_normalisation_of_images_is_refused(processor, reason):
    with pytest.raises(UsageError, match=reason) as error:
        pixel_statistics(processor)
    assert "\n" not in str(error.value)


def test_gradients_reach_red_where_the_model_takes_blue_first(network):
    processor = MobileViTImageProcessor()
    images = torch.rand(1, 3, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(PixelClassifier(network, processor)(images)[0, 0], images)
    flipped = images.detach().flip(1).requires_grad_()
    (expected,) = torch.autograd.grad(network(pixel_values=flipped).logits[0, 0], flipped)
    torch.testing.assert_close(gradient, expected.flip(1))


# Sizes


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_every_image_processor_can_be_made_to_make_images_of_a_size(name, size):
    processor = getattr(transformers, name)(**LARGE.get(name.removesuffix("Pil"), {}))
    before = processor.to_json_string()
    if size == (32, 32) or "ConvNext" not in name:  # which makes squares alone
        assert image_sizes(of_size(processor, *size)) == {size}
    assert processor.to_json_string() == before


def test_a_processor_of_another_size_still_cuts_off_the_same_share():
    smaller = of_size(transformers.DeiTImageProcessor(), 112, 112)
    assert dict(smaller.size)["height"] == 128 and dict(smaller.crop_size)["height"] == 112


@pytest.mark.parametrize("image_size", [None, 48])
def test_images_that_a_processor_leaves_at_several_sizes_become_their_centre_for_everybody(
    network, image_size, tmp_path, caplog
):
    processor = transformers.BitImageProcessor(size={"shortest_edge": 32}, do_center_crop=False)
    model, loaded = load_model(saved(network, processor, tmp_path / "old"), image_size=image_size)
    side = image_size or 32
    assert image_sizes(loaded) == {(side, side)}
    assert ("images of different sizes" in caplog.text) == (image_size is None)
    saved(model, loaded, tmp_path / "new")
    classify = pipeline("image-classification", model=str(tmp_path / "new"), device="cpu")
    for image in (noise(61, 37), noise(50, 90)):
        ours = logits_of(model, loaded, image)
        torch.testing.assert_close(ours, logits_of_pipeline(classify.model, classify.image_processor, image))


def test_images_that_are_not_resized_at_all_need_a_size(network, tmp_path):
    folder = saved(network, ViTImageProcessor(do_resize=False, size={"height": 8, "width": 8}), tmp_path)
    with pytest.raises(UsageError, match="--image_size"):
        load_model(folder)
    assert image_sizes(load_model(folder, image_size=24)[1]) == {(24, 24)}


# Grey images


def grey_network(**options):
    labels = {"id2label": ANIMALS, "label2id": {name: index for index, name in ANIMALS.items()}}
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **labels, **options
    )
    return ResNetForImageClassification(config).eval()


@pytest.mark.parametrize(
    ("processor", "statistics"),
    [
        (ViTImageProcessor(size={"height": 16, "width": 16}), (0.5, 0.5)),
        (ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.13], image_std=[0.31]), (0.13, 0.31)),
        (ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=0.13, image_std=0.31), (0.13, 0.31)),
        (ViTImageProcessor(size={"height": 16, "width": 16}, do_normalize=False), (0, 1)),
        (ViTImageProcessor(size={"height": 16, "width": 16}, do_convert_rgb=True, **TWICE), (0.5, 0.25)),
        (ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.13], image_std=[0.31]), (0.13, 0.31)),
        (MobileViTImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}), (0, 1)),
        (ConvNextImageProcessor(size={"shortest_edge": 16}, image_mean=[0.2], image_std=[0.3]), (0.2, 0.3)),
    ],
)
def test_a_model_of_one_channel_sees_grey_images_as_a_pipeline_does(processor, statistics, tmp_path):
    model, loaded = load_model(saved(grey_network(), processor, tmp_path / "old"))
    assert pixel_statistics(loaded) == tuple((pytest.approx(value),) for value in statistics)
    grey = noise(40, 30).convert("L")
    assert to_pixels(loaded)(grey).shape == (1, 16, 16)
    again, reloaded = load_model(saved(model, loaded, tmp_path / "new"))
    assert reloaded.to_dict() == loaded.to_dict()
    classify = pipeline("image-classification", model=str(tmp_path / "new"), device="cpu")
    expected = logits_of_pipeline(
        classify.model, classify.image_processor, np.asarray(grey)[None]
    )  # a picture would become RGB
    torch.testing.assert_close(logits_of(again, reloaded, grey), expected)


@pytest.mark.parametrize(
    ("architecture", "model_args"),
    [("cifar_wrn", {"depth": 10, "width": 1}), ("vit_tiny_patch16_224", {"patch_size": 4, "embed_dim": 24, "depth": 1})],
)
def test_a_timm_model_of_one_channel_loads_everywhere_and_has_the_average_statistics(architecture, model_args, tmp_path):
    _, coloured = create_model(architecture, id2label=ANIMALS, model_args=model_args, image_size=8)
    model_args = {**model_args, "in_chans": 1}
    model, processor = create_model(architecture, id2label=ANIMALS, model_args=model_args, image_size=8)
    assert pixel_statistics(processor) == tuple(
        (pytest.approx(sum(each) / 3, abs=1e-6),) for each in pixel_statistics(coloured)
    )
    saved(model, processor, tmp_path)
    stand_alone(tmp_path)
    images = torch.rand(2, 1, 8, 8)
    classifier = PixelClassifier(model, processor)
    normalised = (images - classifier.mean) / classifier.std
    with torch.no_grad():
        expected = model(pixel_values=normalised).logits
        torch.testing.assert_close(PixelClassifier(*load_model(str(tmp_path)))(images), expected)
        in_timm = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
        torch.testing.assert_close(in_timm.eval()(normalised), expected)
    assert list(in_timm.pretrained_cfg["input_size"]) == [1, 8, 8]
    adversarial = pgd(classifier, images, torch.tensor([0, 1]), ThreatModel("linf", 0.1), steps=2)
    assert adversarial.shape == images.shape and (adversarial - images).abs().max() <= 0.1 + 1e-6


@pytest.mark.parametrize(("channels", "means"), [(1, 3), (3, 3), (3, 1)])
def test_a_timm_folder_that_states_other_channels_than_its_model_has_is_put_right(channels, means, tmp_path):
    model, processor = create_model(
        "cifar_wrn", id2label=ANIMALS, model_args={"depth": 10, "width": 1, "in_chans": 1}, image_size=8
    )
    model.config.pretrained_cfg |= {"input_size": [channels, 8, 8], "mean": [0.3] * means, "std": [0.2] * means}
    loaded, repaired = load_model(saved(model, processor, tmp_path))
    assert pixel_statistics(repaired) == ((0.3,), (0.2,)) and image_sizes(repaired) == {(8, 8)}
    assert loaded.config.pretrained_cfg["input_size"] == (1, 8, 8)


def test_an_average_of_three_means_is_told(tmp_path, caplog):
    folder = saved(grey_network(), ViTImageProcessor(**TWICE), tmp_path)
    assert pixel_statistics(load_model(folder)[1]) == ((0.5,), (0.25,))
    assert "their average [0.5, 0.25]" in caplog.text


def test_colour_images_become_grey_for_a_model_of_one_channel_and_it_is_said_once(tmp_path, caplog):
    pictures = [noise(9, 9).convert("L"), noise(9, 9), noise(9, 9, seed=1), noise(9, 9).convert("L").convert("RGB")]
    files = [str(tmp_path / f"{number}.png") for number in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        picture.save(file)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    split = datasets.Dataset.from_dict({"image": files, "label": [0] * len(files)}, features=features)
    processor = ViTImageProcessor(size={"height": 9, "width": 9}, image_mean=[0.5], image_std=[0.5])
    data = PixelDataset(split, processor)
    for row, picture in enumerate(pictures):
        assert np.array_equal(data[row]["pixel_values"][0], np.asarray(picture.convert("L")))
    told = [record.message for record in caplog.records if "grey" in record.message]
    assert len(told) == 1


def test_a_grey_data_set_trains_and_evaluates_a_model_of_one_channel(digits, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    write_splits(tmp_path / "images", digits, train=range(48), test=range(48, 64))
    monkeypatch.chdir(tmp_path)
    model_args = json.dumps({"depth": 10, "width": 1, "in_chans": 1})
    common = "--dataset_name images --use_cpu --eps 0.1"
    training = "--output_dir run --max_steps 1 --eval_attack_steps 1 --report_to none --disable_tqdm true"
    run_command(
        "pretrain",
        [*f"--model_name_or_path cifar_wrn --image_size 8 {common} {training}".split(), "--model_args", model_args],
    )
    attacks = "--attacks pgd-2 noise --self_check_samples 4 --curve_samples 4"
    run_command("evaluate", f"--model_name_or_path run --output_dir report {common} {attacks}".split())
    report = json.loads((tmp_path / "report" / REPORT_NAME).read_text())
    assert report["model"]["input_shape"] == [1, 8, 8]
    assert (tmp_path / "report" / EXAMPLES_NAME).is_file()


@pytest.mark.parametrize("channels", [2, 4, 12])
def test_models_of_other_channels_are_refused(channels, tmp_path):
    with pytest.raises(UsageError, match=f"in_chans={channels}: only RGB images"):
        create_model("resnet18", id2label=ANIMALS, model_args={"in_chans": channels})
    model = grey_network()
    model.config.num_channels = channels
    with pytest.raises(UsageError, match=f"images of {channels} channels"):
        check_input_size(model, ViTImageProcessor())
    with pytest.raises(UsageError, match=f"images of {channels} channels"):
        PixelClassifier(model, ViTImageProcessor())


def test_a_grey_model_with_a_processor_for_colours_is_refused_and_loading_both_is_the_way_out():
    with pytest.raises(UsageError, match="load both with load_model, or give its image_mean and image_std 1 value"):
        PixelClassifier(grey_network(), ViTImageProcessor())


def test_one_mean_in_a_list_goes_for_all_channels_of_a_model_of_three(network, tmp_path):
    processor = ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.13], image_std=[0.31])
    model, loaded = load_model(saved(network, processor, tmp_path))
    assert pixel_statistics(loaded) == ((0.13,) * 3, (0.31,) * 3)
    image = noise(40, 30)
    torch.testing.assert_close(logits_of(model, loaded, image), logits_of_pipeline(network, processor, image))


# An image processor from elsewhere


def without_processor(tiny, folder, kind="hf-vit"):
    model, processor = tiny(kind, ANIMALS)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "processor")
    return str(folder / "model"), str(folder / "processor")


def test_a_checkpoint_without_an_image_processor_says_which_option_names_one(tiny, tmp_path):
    folder, elsewhere = without_processor(tiny, tmp_path)
    with pytest.raises(UsageError, match="--processor_name_or_path") as error:
        load_model(folder)
    assert "\n" not in str(error.value) and folder in str(error.value)
    _, processor = load_model(folder, processor=elsewhere)
    assert pixel_statistics(processor) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def test_an_image_processor_from_elsewhere_makes_images_of_the_models_size(tiny, tmp_path, caplog):
    folder, _ = without_processor(tiny, tmp_path)
    given = ViTImageProcessor(image_mean=0.3)
    model, processor = load_model(folder, processor=given)
    assert image_sizes(processor) == {(8, 8)} and "the model's own 8×8" in caplog.text
    assert image_sizes(given) == {(224, 224)}
    assert PixelClassifier(model, processor)(torch.rand(1, 3, 8, 8)).shape == (1, 3)


def test_a_timm_model_takes_the_image_processor_of_another_timm_model_and_saves_it(tiny, tmp_path):
    model, processor = tiny("timm-convnext", ANIMALS)
    _, other = create_model("cifar_resnet18", id2label=ANIMALS, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), image_size=16)
    changed, adopted = load_model(saved(model, processor, tmp_path / "old"), processor=other)
    assert pixel_statistics(adopted) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert load_model(saved(changed, adopted, tmp_path / "new"))[1].data_config == adopted.data_config
    assert image_sizes(adopted) == {(16, 16)}


@pytest.mark.parametrize(("kind", "other"), [("timm-convnext", "hf-vit"), ("hf-vit", "timm-convnext")])
def test_an_image_processor_that_could_not_be_saved_with_the_model_is_refused(tiny, tmp_path, kind, other):
    with pytest.raises(UsageError, match="cannot be saved with"):
        load_model(saved(*tiny(kind, ANIMALS), tmp_path), processor=tiny(other, ANIMALS)[1])


def test_whatever_chooses_the_model_tells_one_run_from_another():
    of_no_effect = {"cache_dir", "token", "overwrite_output_dir"}
    assert set(ModelArguments().defining_options) == {option.name for option in fields(ModelArguments)} - of_no_effect


def test_an_untrained_architecture_takes_no_other_image_processor():
    with pytest.raises(UsageError, match="leave out the image processor"):
        load_model("resnet18", id2label=ANIMALS, processor=ViTImageProcessor())
