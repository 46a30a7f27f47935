import pytest
import timm
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BeitConfig,
    BeitForImageClassification,
    BitImageProcessor,
    CLIPConfig,
    CLIPForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    IJepaConfig,
    IJepaForImageClassification,
    LevitConfig,
    LevitForImageClassification,
    SiglipConfig,
    SiglipForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTMSNConfig,
    ViTMSNForImageClassification,
)

from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.hub import stand_alone
from hf_robust_transfer.modeling import create_model, load_model
from hf_robust_transfer.modeling.input_size import check_input_size, model_size
from hf_robust_transfer.modeling.processors import image_sizes

ANIMALS = {0: "cat", 1: "dog", 2: "eel"}
LABELS = {"id2label": ANIMALS, "label2id": {name: index for index, name in ANIMALS.items()}}
TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SEEN = {**TOWER, "image_size": 32, "patch_size": 8}
TWO_TOWERS = {"vision_config": SEEN, "text_config": {**TOWER, "vocab_size": 64}, "projection_dim": 8}
MODELS = {
    "ViT": lambda: ViTForImageClassification(ViTConfig(**SEEN, **LABELS)),
    "DeiT": lambda: DeiTForImageClassification(DeiTConfig(**SEEN, **LABELS)),
    "DINOv2": lambda: Dinov2ForImageClassification(Dinov2Config(**SEEN, **LABELS)),
    "BEiT": lambda: BeitForImageClassification(BeitConfig(**SEEN, **LABELS, use_absolute_position_embeddings=True)),
    "BEiT, relative": lambda: BeitForImageClassification(BeitConfig(**SEEN, **LABELS, use_relative_position_bias=True)),
    "CLIP": lambda: CLIPForImageClassification(CLIPConfig(**TWO_TOWERS, **LABELS)),
    "SigLIP": lambda: SiglipForImageClassification(SiglipConfig(**TWO_TOWERS, **LABELS)),
    "MSN": lambda: ViTMSNForImageClassification(ViTMSNConfig(**SEEN, **LABELS)),
    "I-JEPA": lambda: IJepaForImageClassification(IJepaConfig(**SEEN, **LABELS)),
}  # fmt: skip


def saved(model, processor, folder):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def logits(model, images, **options):
    with torch.no_grad():
        return model(pixel_values=images, **options).logits


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("side", [48, 24])
def test_a_trained_model_takes_images_of_another_size_as_if_its_library_interpolated(name, side, tmp_path):
    model = MODELS[name]().eval()
    for parameter in model.parameters():  # positions that start at zero, too
        torch.nn.init.normal_(parameter, std=0.3)
    loaded, processor = load_model(saved(model, ViTImageProcessor(), tmp_path / "old"), image_size=side)
    assert image_sizes(processor) == {(side, side)}
    images = torch.randn(2, 3, side, side)
    try:
        expected = logits(model, images, interpolate_pos_encoding=True)
    except TypeError:  # those that always do
        expected = logits(model, images)
    torch.testing.assert_close(logits(loaded, images), expected, rtol=1e-4, atol=1e-4)
    saved(loaded, processor, tmp_path / "new")
    alone = AutoModelForImageClassification.from_pretrained(tmp_path / "new")
    torch.testing.assert_close(logits(alone, images), expected, rtol=1e-4, atol=1e-4)
    assert image_sizes(AutoImageProcessor.from_pretrained(tmp_path / "new")) == {(side, side)}
    assert name == "BEiT, relative" or model_size(alone) == (side, side)


@pytest.mark.parametrize(
    "kind", ["timm-vit", "timm-convnext", "timm-wrn", "timm-resnet", "hf-convnext", "hf-swin", "hf-resnet"]
)
def test_models_of_every_family_are_loaded_for_another_size_and_load_everywhere(tiny, kind, tmp_path):
    model, processor = load_model(saved(*tiny(kind, ANIMALS), tmp_path / "old"), image_size=64)
    assert image_sizes(processor) == {(64, 64)}
    images = torch.rand(2, 3, 64, 64)
    expected = logits(model, images)
    saved(model, processor, tmp_path / "new")
    stand_alone(tmp_path / "new")
    again, reloaded = load_model(str(tmp_path / "new"))
    assert image_sizes(reloaded) == {(64, 64)}
    torch.testing.assert_close(logits(again, images), expected)
    if kind.startswith("timm"):
        in_timm = timm.create_model(f"local-dir:{tmp_path / 'new'}", pretrained=True).eval()
        with torch.no_grad():
            torch.testing.assert_close(in_timm(images), expected)
        assert list(in_timm.pretrained_cfg["input_size"]) == [3, 64, 64]
        mean, std = (timm.data.resolve_model_data_config(in_timm)[name] for name in ("mean", "std"))
        assert (tuple(mean), tuple(std)) == (tuple(processor.data_config["mean"]), tuple(processor.data_config["std"]))


def test_learned_positions_of_timm_are_resampled_as_timm_does(tiny, tmp_path):
    model, processor = tiny("timm-vit", ANIMALS)
    folder = saved(model, processor, tmp_path)
    stand_alone(folder)
    larger, _ = load_model(folder, image_size=16)
    in_timm = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=16).eval()
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(logits(larger, images), in_timm(images))


@pytest.mark.parametrize(
    ("architecture", "model_args", "side"),
    [
        ("vit_tiny_patch16_224", {"depth": 1}, 32),
        ("test_vit", {}, 64),
        ("swin_tiny_patch4_window7_224", {"depths": [1, 1, 1, 1], "embed_dim": 24}, 64),
        ("deit_tiny_patch16_224", {"depth": 1}, 48),
        ("eva02_tiny_patch14_224", {"depth": 1}, 56),
        pytest.param("mixer_s32_224", {}, 64, marks=pytest.mark.slow),
        ("cait_xxs24_224", {"depth": 1}, 32),
        ("resnet18", {"channels": [8, 8, 8, 8]}, 40),
    ],
)
def test_architectures_of_one_size_are_built_for_another(architecture, model_args, side, tmp_path):
    model, processor = create_model(architecture, id2label=ANIMALS, model_args=model_args, image_size=side)
    assert image_sizes(processor) == {(side, side)}
    saved(model, processor, tmp_path)
    stand_alone(tmp_path)
    images = torch.rand(2, 3, side, side)
    in_timm = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(in_timm(images), logits(model, images))
    torch.testing.assert_close(logits(load_model(str(tmp_path))[0], images), logits(model, images))


def test_the_size_that_an_architecture_was_told_is_that_of_its_image_processor():
    _, processor = create_model("vit_tiny_patch16_224", id2label=ANIMALS, model_args={"img_size": [32, 48], "depth": 1})
    assert image_sizes(processor) == {(32, 48)}
    with pytest.raises(UsageError, match="image_size 64 and model_args img_size=32 disagree"):
        create_model("vit_tiny_patch16_224", id2label=ANIMALS, model_args={"img_size": 32, "depth": 1}, image_size=64)


def test_sizes_that_a_library_cannot_give_a_trained_model_are_refused_in_one_line(tmp_path):
    levit = LevitForImageClassification(
        LevitConfig(
            image_size=64, hidden_sizes=[16] * 3, num_attention_heads=[2] * 3, depths=[1] * 3, key_dim=[8] * 3, **LABELS
        )
    )
    cait = create_model("cait_xxs24_224", id2label=ANIMALS, model_args={"depth": 1}, image_size=64)
    for number, (model, processor) in enumerate(((levit, ViTImageProcessor()), cait)):
        folder = saved(model, processor, tmp_path / str(number))
        for side in (96, 0, -1, 9000):
            with pytest.raises(UsageError, match=f"image_size {side} ") as error:
                load_model(folder, image_size=side)
            assert "\n" not in str(error.value)


# The processor's size is the model's


@pytest.mark.parametrize("name", ["ViT", "CLIP", "SigLIP"])
def test_a_processor_of_another_size_than_the_models_follows_it_with_a_word(name, tmp_path, caplog):
    model = MODELS[name]().eval()
    given = BitImageProcessor()
    processor = check_input_size(model, given)
    assert image_sizes(processor) == {(32, 32)} and image_sizes(given) == {(224, 224)}
    assert "224×224 pixels: from now on the model's own 32×32" in caplog.text
    caplog.clear()
    assert check_input_size(model, processor) is processor and not caplog.text


def test_a_model_that_interpolates_by_itself_keeps_the_size_of_its_processor():
    model = MODELS["DINOv2"]().eval()  # as published: made for 518 pixels, and used with 224
    given = BitImageProcessor()
    assert check_input_size(model, given) is given


def test_images_too_small_for_a_model_are_refused(tiny, tmp_path):
    model, _ = tiny("timm-convnext", ANIMALS)
    model.config.pretrained_cfg = {**model.config.pretrained_cfg, "input_size": (3, 2, 2)}
    model.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="images of 2×2 pixels, which are not for it"):
        load_model(str(tmp_path))
