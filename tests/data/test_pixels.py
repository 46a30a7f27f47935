import io
import os
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers.image_utils import load_image

from hf_robust_transfer.data import (
    Indexed,
    PixelDataset,
    as_pixels,
    collate,
    to_pixels,
)
from hf_robust_transfer.errors import UsageError

# Pixels


def pictures():
    """One image in every mode that people's folders hold, of different sizes."""
    generator = np.random.default_rng(0)
    colour = Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    transparent = Image.fromarray(generator.integers(0, 256, (9, 40, 4), dtype=np.uint8))
    grey = Image.fromarray(generator.integers(0, 256, (50, 11), dtype=np.uint8))
    palette = colour.quantize(16)
    see_through = colour.quantize(16)
    see_through.info["transparency"] = 3
    return [colour, grey, palette, see_through, transparent, grey.convert("LA"), grey.convert("1"), colour.convert("CMYK")]


@pytest.fixture
def mixed_split(tmp_path):
    """The `pictures` as files, in formats that keep their modes."""
    files = []
    for number, picture in enumerate(pictures()):
        files.append(str(tmp_path / f"{number}.{'tiff' if picture.mode == 'CMYK' else 'png'}"))
        picture.save(files[-1])
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    return datasets.Dataset.from_dict({"image": files, "label": [0, 1] * 4}, features=features), files


def test_images_of_every_mode_and_size_become_rgb_pixels_at_the_models_resolution(tiny, kind, mixed_split):
    split, _ = mixed_split
    dataset = PixelDataset(split, tiny(kind)[1])
    side = 32 if "resnet" in kind else 8
    assert len(dataset) == len(split)
    for row in range(len(dataset)):
        item = dataset[row]
        assert item["pixel_values"].dtype == torch.uint8
        pixels = as_pixels(item["pixel_values"])
        assert pixels.shape == (3, side, side) and pixels.dtype == torch.float32
        assert pixels.min() >= 0 and pixels.max() <= 1 and pixels.std() > 0.01
        assert item["labels"] == split["label"][row]


def test_images_without_transparency_are_decoded_as_a_pipeline_decodes_them(tiny, mixed_split):
    split, files = mixed_split
    _, processor = tiny("hf-vit")
    dataset = PixelDataset(split, processor)
    opaque = [row for row, picture in enumerate(pictures()) if not picture.has_transparency_data]
    for row, file in ((row, files[row]) for row in opaque):
        expected = processor(load_image(file), do_normalize=False, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(as_pixels(dataset[row]["pixel_values"]), expected)


def test_a_photograph_taken_sideways_is_turned_upright_as_a_pipeline_does(tiny, tmp_path):
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(tmp_path / "sideways.png", exif=exif)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    split = datasets.Dataset.from_dict({"image": [str(tmp_path / "sideways.png")], "label": [0]}, features=features)
    _, processor = tiny("hf-vit")
    expected = processor(load_image(str(tmp_path / "sideways.png")), do_normalize=False, return_tensors="pt")
    torch.testing.assert_close(as_pixels(PixelDataset(split, processor)[0]["pixel_values"]), expected["pixel_values"][0])


def test_pixels_are_what_the_processor_gives_with_its_normalisation_undone(tiny, kind):
    _, processor = tiny(kind)
    config = getattr(processor, "data_config", None)
    mean, std = (config["mean"], config["std"]) if config else (processor.image_mean, processor.image_std)
    for picture in pictures():
        picture = picture.convert("RGB")
        normalised = processor(picture, return_tensors="pt")["pixel_values"][0]
        expected = normalised * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        torch.testing.assert_close(to_pixels(processor)(picture), expected, rtol=0, atol=1e-6)


def test_an_image_of_the_models_own_size_keeps_its_pixels(tiny, kind):
    side = 32 if "resnet" in kind else 8
    array = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    pixels = to_pixels(tiny(kind)[1])(Image.fromarray(array))
    torch.testing.assert_close(pixels, torch.tensor(array).permute(2, 0, 1) / 255)


def png():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "damaged",
    [png()[:2000], b"this is no image", b"", png()[:40] + b"\0" * 200],
    ids=["truncated", "text", "empty", "overwritten"],
)
def test_a_damaged_file_is_named_with_its_row_on_checking_and_on_reading(folder, tiny, damaged, tmp_path):
    source = folder("train", {"0": 3, "1": 3})
    victim = sorted((tmp_path / "train" / "1").iterdir())[1]
    victim.write_bytes(damaged)
    train = datasets.load_dataset("imagefolder", data_dir=source, split="train")
    dataset = PixelDataset(train, tiny("hf-vit")[1], "training")
    files = [image["path"] for image in train.cast_column("image", datasets.Image(decode=False))["image"]]
    row = files.index(str(victim))
    message = rf"row {row} of the training split.*{victim.name}.*cannot be read"
    with pytest.raises(ValueError, match=message):
        dataset.check()
    with pytest.raises(ValueError, match=message):
        dataset[row]
    assert dataset[(row + 1) % 6]["pixel_values"].shape == (3, 8, 8)


def test_a_row_without_an_image_is_named(digits, tiny):
    rows = digits.select(range(3)).map(lambda row, index: {"image": None} if index == 2 else row, with_indices=True)
    dataset = PixelDataset(rows, tiny("hf-vit")[1], "validation")
    with pytest.raises(ValueError, match="row 2 of the validation split"):
        dataset[2]
    with pytest.raises(ValueError, match="row 2 of the validation split"):
        dataset.check()


def test_checking_sound_images_finds_nothing(digits, tiny):
    assert PixelDataset(digits.select(range(5)), tiny("hf-vit")[1]).check() is None


def as_files(folder, *pictures):
    """A data set of image files."""
    files = [str(folder / f"{number}.{kind}") for number, (kind, _) in enumerate(pictures)]
    for file, (_, picture) in zip(files, pictures, strict=True):
        picture.save(file) if isinstance(picture, Image.Image) else Path(file).write_bytes(picture)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    return datasets.Dataset.from_dict({"image": files, "label": [0] * len(files)}, features=features)


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (("png", Image.new("1", (20000, 20000))), "decompression bomb"),
        (("png", Image.new("1", (60000, 1))), "60000×1 pixels are too long and thin"),
        (("tiff", Image.new("F", (8, 8), 255)), "not between 0 and 1: convert it to 8 or 16 bits"),
        (("tiff", Image.new("I", (8, 8), 70000)), "not between 0 and 255"),
        (("jpg", b"\xff\xd8\xff\xe0" + b"\0" * 50), "cannot"),
        (("gif", b"GIF89a" + b"\xff" * 8), "cannot|truncated|NoneType|index"),
    ],
)
def test_what_cannot_be_read_as_a_viewer_does_is_refused_with_file_and_row(tiny, tmp_path, picture, reason):
    dataset = PixelDataset(as_files(tmp_path, ("png", Image.new("L", (8, 8))), picture), tiny("hf-vit")[1], "test")
    with pytest.raises(
        UsageError, match=rf"row 1 of the test split \(.*/1.{picture[0]}\) cannot be read: .*({reason})"
    ) as error:
        dataset.check()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["jpg", "png", "gif", "tiff", "bmp", "webp"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_truncated_file_of_any_format_is_named(tiny, tmp_path, kind, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    split = as_files(tmp_path, (kind, noise))
    file = tmp_path / f"0.{kind}"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(UsageError, match=rf"row 0 of the train split \(.*/0.{kind}\) cannot be read"):
        PixelDataset(split, tiny("hf-vit")[1]).check()


def test_the_first_frame_of_an_animation_is_used_with_a_word(tiny, tmp_path, caplog):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    dataset = PixelDataset(as_files(tmp_path, ("gif", (tmp_path / "a.gif").read_bytes())), tiny("hf-vit")[1])
    assert dataset[0]["pixel_values"][:, 0, 0].tolist() == [255, 0, 0]
    assert "as in row 0 of the train split (" in caplog.text and "0.gif): the first is used" in caplog.text


def test_a_photograph_of_16_bits_taken_sideways_is_scaled_and_turned(tiny, tmp_path):
    shades = np.arange(64, dtype=np.uint16).reshape(8, 8) * 4
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind, options in (("png", {"exif": exif}), ("tiff", {"tiffinfo": {0x0112: 6}})):
        (tmp_path / kind).mkdir()
        Image.fromarray(shades * 257).save(tmp_path / kind / f"sideways.{kind}", **options)
        split = as_files(tmp_path / kind, (kind, (tmp_path / kind / f"sideways.{kind}").read_bytes()))
        assert np.array_equal(PixelDataset(split, tiny("hf-vit")[1])[0]["pixel_values"][0], np.rot90(shades, -1))


def test_a_replaced_image_is_another_data_set_whatever_its_time(tiny, tmp_path):
    split = as_files(tmp_path, ("png", Image.new("L", (8, 8), 1)), ("png", Image.new("L", (8, 8), 2)))
    processor, file = tiny("hf-vit")[1], tmp_path / "1.png"
    before, times = PixelDataset(split, processor).fingerprint, file.stat()
    Image.new("L", (8, 8), 3).save(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert PixelDataset(split, processor).fingerprint != before


# What is read once


@pytest.fixture
def reads(monkeypatch):
    """The rows that were decoded, in order."""
    rows = []
    original = PixelDataset._decode
    monkeypatch.setattr(PixelDataset, "_decode", lambda self, row: rows.append(row) or original(self, row))
    return rows


def test_an_image_is_decoded_once(digits, tiny, reads):
    dataset = PixelDataset(digits.select(range(6)), tiny("hf-vit")[1])
    first = [dataset[row]["pixel_values"].clone() for row in (3, 1)]
    dataset.check()
    again = [dataset[row]["pixel_values"] for row in (3, 1, 0, 5)]
    assert sorted(reads) == list(range(6))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=False))


def test_images_that_take_too_much_memory_are_decoded_each_time(digits, tiny, reads, monkeypatch):
    monkeypatch.setattr(PixelDataset, "KEEP_BYTES", 6 * 3 * 8 * 8 - 1)
    dataset = PixelDataset(digits.select(range(6)), tiny("hf-vit")[1])
    assert torch.equal(dataset[2]["pixel_values"], dataset[2]["pixel_values"]) and reads == [2, 2]


def test_worker_processes_share_what_they_decode(digits, tiny, reads):
    dataset = PixelDataset(digits.select(range(40)), tiny("hf-vit")[1])
    expected = torch.stack([dataset[row]["pixel_values"] for row in range(40)])
    fresh = PixelDataset(digits.select(range(40)), tiny("hf-vit")[1])
    fresh[0]  # makes the room for all
    reads.clear()
    loader = DataLoader(fresh, 8, num_workers=2, collate_fn=collate, multiprocessing_context="fork")
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in loader]), expected)
    assert torch.equal(torch.stack([fresh[row]["pixel_values"] for row in range(40)]), expected) and reads == []
    pickled = pickle.loads(pickle.dumps(fresh))
    assert torch.equal(pickled[7]["pixel_values"], expected[7]) and reads == [7]


def test_pixels_that_are_no_multiples_of_1_255_stay_floating(digits, tiny):
    dataset = PixelDataset(digits.select(range(3)), tiny("hf-vit")[1])
    whole = as_pixels(dataset[0]["pixel_values"])
    fine = PixelDataset(digits.select(range(3)), tiny("hf-vit")[1])
    to_whole_pixels = fine._to_pixels
    fine._to_pixels = lambda image: to_whole_pixels(image) * 0.7
    item = fine[0]["pixel_values"]
    assert item.dtype == torch.float32 and torch.equal(as_pixels(item), item)
    torch.testing.assert_close(item, whole * 0.7)
    mixed = collate([{"pixel_values": pixels, "indices": 0} for pixels in (item, dataset[1]["pixel_values"])])
    assert mixed["pixel_values"].dtype == torch.float32 and mixed["pixel_values"].max() <= 1


def test_the_fingerprint_tells_data_and_processors_apart(digits, tiny):
    one, same = (PixelDataset(digits.select(range(6)), tiny("hf-vit")[1]).fingerprint for _ in range(2))
    other_rows = PixelDataset(digits.select(range(5)), tiny("hf-vit")[1]).fingerprint
    other_processor = PixelDataset(digits.select(range(6)), tiny("hf-convnext")[1]).fingerprint
    assert one == same and len({one, other_rows, other_processor}) == 3


def test_an_image_that_is_replaced_with_its_old_time_is_noticed(tiny, tmp_path):
    files = [tmp_path / kind / f"{kind}.bmp" for kind in ("cat", "dog")]  # of the same size in bytes, whatever they show
    for file, colour in zip(files, ("red", "blue"), strict=True):
        file.parent.mkdir()
        Image.new("RGB", (8, 8), colour).save(file)

    def fingerprint():
        return PixelDataset(
            datasets.load_dataset("imagefolder", data_dir=str(tmp_path))["train"], tiny("hf-vit")[1]
        ).fingerprint

    before, status = fingerprint(), files[0].stat()
    assert fingerprint() == before
    Image.new("RGB", (8, 8), "green").save(files[0])
    os.utime(files[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files[0].stat().st_size == status.st_size and fingerprint() != before


# Batches


def test_uint8_pixels_stay_so_until_they_are_asked_for_as_pixels():
    values = torch.arange(48, dtype=torch.uint8).view(3, 4, 4) * 5
    batch = collate([{"pixel_values": values, "labels": 1, "indices": 0}] * 2)
    assert batch["pixel_values"].dtype == torch.uint8
    torch.testing.assert_close(as_pixels(batch["pixel_values"])[0], values.float() / 255)


def test_a_batch_knows_the_index_of_each_sample_however_it_is_shuffled(digits, tiny):
    dataset = PixelDataset(digits, tiny("hf-vit")[1])
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(Indexed(dataset, 10), batch_size=8, shuffle=True, collate_fn=collate, generator=generator)
    batch = next(iter(loader))
    assert batch["pixel_values"].shape == (8, 3, 8, 8) and batch["indices"].dtype == batch["labels"].dtype == torch.int64
    assert batch["indices"].tolist() != list(range(8))
    for pixels, label, index in zip(batch["pixel_values"], batch["labels"], batch["indices"].tolist(), strict=True):
        assert torch.equal(pixels, dataset[index]["pixel_values"]) and label == digits["label"][index]


def test_a_batch_without_labels_is_one_to_predict(digits):
    batch = collate([{"pixel_values": torch.rand(3, 4, 4), "indices": index} for index in range(3)])
    assert batch.keys() == {"pixel_values", "indices"}


@pytest.mark.parametrize(
    "pixels",
    [
        (torch.rand(3, 4, 4) - 0.5) / 0.25,
        torch.rand(3, 4, 4) * 255,
        torch.ones(3, 4, 4, dtype=torch.int64),
        torch.full((3, 4, 4), 1.01),
        torch.full((3, 4, 4), float("nan")),
    ],
    ids=["normalised", "0…255", "int64", "a little too bright", "not a number"],
)
def test_pixels_outside_0_to_1_are_refused(pixels):
    sound = {"pixel_values": torch.rand(3, 4, 4).to(torch.as_tensor(pixels).dtype), "labels": 0, "indices": 0}
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        collate([sound, {"pixel_values": pixels, "labels": 1, "indices": 1}])


def test_labels_that_are_no_integers_or_images_of_several_shapes_are_refused():
    sound = {"pixel_values": torch.rand(3, 4, 4), "labels": torch.tensor(1), "indices": 0}
    assert collate([sound, {**sound, "labels": np.int64(2)}])["labels"].tolist() == [1, 2]
    for wrong in (0.9, torch.tensor(1.0), "1", None, [0, 1]):
        with pytest.raises(UsageError, match="labels must be one integer per sample"):
            collate([sound, {**sound, "labels": wrong}])
        with pytest.raises(UsageError, match="labels must be one integer per sample"):
            Indexed([{**sound, "labels": wrong}], 3)[0]
    with pytest.raises(UsageError, match=r"have the shapes \(3, 4, 4\), \(3, 5, 4\)"):
        collate([sound, {**sound, "pixel_values": torch.rand(3, 5, 4)}])


def test_images_are_used_with_the_model_whose_labels_they_have(digits, tiny):
    dataset = PixelDataset(digits.select(range(4)), tiny("hf-vit")[1], "test")
    names = [str(digit) for digit in range(10)]
    assert Indexed(dataset, 10, names)[0]["labels"] == digits["label"][0]
    assert Indexed(dataset, 10, [f"LABEL_{index}" for index in range(10)])[0]["labels"] == digits["label"][0]
    for other in (names[::-1], names[:9], [*names[:9], "nine"]):
        with pytest.raises(UsageError, match=r"the model has the labels .*, the test images 0, 1, 2"):
            Indexed(dataset, len(other), other)
    unnamed = digits.select(range(4)).cast_column("label", datasets.Value("int64"))
    assert Indexed(PixelDataset(unnamed, tiny("hf-vit")[1]), 10, names[::-1])[0]["labels"] == digits["label"][0]
