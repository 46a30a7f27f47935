"""Whatever a user has as a data set gives the same pixels and labels; what cannot is refused in one line."""

from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, StackDataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import PILToTensor, ToTensor
from transformers import ViTImageProcessor

from hf_robust_transfer.data import DataArguments, PixelDataset, as_pixel_dataset, as_pixels, choose_splits
from hf_robust_transfer.errors import UsageError

NAMES = ["ant", "bee", "cow"]
MODEL = ["cow", "ant", "bee"]  # in another order
LABELS = [0, 1, 2, 1, 0, 2]
PROCESSOR = ViTImageProcessor(size={"height": 8, "width": 8})
SHADES = [40 * row for row in range(6)]
IMAGES = [Image.new("RGB", (8, 8), (shade, 0, 9)) for shade in SHADES]
PIXELS = [torch.tensor([shade, 0, 9]).view(3, 1, 1).expand(3, 8, 8) / 255 for shade in SHADES]


def table(labels=LABELS, feature=None, image="image", label="label"):
    features = {image: datasets.Image(), label: feature or datasets.ClassLabel(names=NAMES)}
    return datasets.Dataset.from_dict({image: IMAGES[: len(labels)], label: labels}, features=datasets.Features(features))


def names(labels=LABELS):
    return [NAMES[label] for label in labels]


def rows(*labels):
    return [{"image": image, "label": label} for image, label in zip(IMAGES, labels, strict=False)]


def image_folder(folder, **options):
    for row, (image, name) in enumerate(zip(IMAGES, names(), strict=True)):
        (folder / name).mkdir(exist_ok=True, parents=True)
        image.save(folder / name / f"{row}.png")
    return ImageFolder(folder, **options)


class Samples(torch.utils.data.Dataset):
    """A data set of one's own."""

    def __init__(self, samples, **attributes):
        self.samples = samples
        vars(self).update(attributes)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, row):
        return self.samples[row]


def of_array(image):
    return {"pixel_values": np.asarray(image).transpose(2, 0, 1) / np.float32(255)}


def transformed(rows):
    return {"pixel_values": [ToTensor()(image) for image in rows["image"]], "labels": rows["label"]}


def written(folder):
    folder.mkdir()
    for row, image in enumerate(IMAGES):
        image.save(folder / f"{row}.png")
    return [folder / f"{row}.png" for row in range(len(IMAGES))]


TEXT, WHOLE = datasets.Value("string"), datasets.Value("int64")
WAYS = {
    "columns": lambda _: table(),
    "columns of other names": lambda _: table(image="img", label="fine").rename_column("fine", "kind"),
    "a column labels": lambda _: table(label="labels"),
    "text": lambda _: table(names(), TEXT),
    "a torch format": lambda _: table().with_format("torch"),
    "a NumPy format of one column": lambda _: table().with_format("numpy", columns=["label"]),
    "files by name": lambda folder: datasets.Dataset.from_dict(
        {"image": [str(path) for path in written(folder)], "label": names()}
    ),
    "arrays in a column": lambda _: datasets.Dataset.from_dict(
        {"image": [np.asarray(image) for image in IMAGES], "label": names()}
    ),
    "a folder of torchvision": image_folder,
    "a folder with a transform": lambda folder: image_folder(folder, transform=PILToTensor()),
    "a part of a folder": lambda folder: Subset(image_folder(folder), range(6)),
    "rows": lambda _: rows(*names()),
    "rows of other keys": lambda _: [{"photo": image, "labels": name} for image, name in zip(IMAGES, names(), strict=True)],
    "rows of files": lambda folder: [
        {"image": path, "label": name} for path, name in zip(written(folder), names(), strict=True)
    ],
    "rows of arrays": lambda _: [
        {"image": np.asarray(image), "label": name} for image, name in zip(IMAGES, names(), strict=True)
    ],
    "rows of tensors": lambda _: [{"image": image, "label": name} for image, name in zip(PIXELS, names(), strict=True)],
    "pairs": lambda _: tuple(zip(IMAGES, names(), strict=True)),
    "a class of pairs": lambda _: Samples(list(zip(IMAGES, LABELS, strict=True)), classes=NAMES),
    "a class of rows": lambda _: Samples(
        [{"image": image, "label": name} for image, name in zip(IMAGES, names(), strict=True)]
    ),
    "a class of tensors": lambda _: Samples(list(zip(PIXELS, LABELS, strict=True)), classes=NAMES),
    "a transform": lambda _: table().with_transform(transformed),
    "a transform of images": lambda _: table().with_transform(lambda rows: rows),
    "pixels in a column": lambda _: table().map(lambda row: of_array(row["image"])),
    "pixels as tensors": lambda _: table(names(), TEXT).map(lambda row: of_array(row["image"])).with_format("torch"),
    "images of three dimensions": lambda _: datasets.Dataset.from_dict(
        {"image": [np.asarray(image) for image in IMAGES], "label": LABELS},
        features=datasets.Features({"image": datasets.Array3D((8, 8, 3), "uint8"), "label": table().features["label"]}),
    ),
    "encoded images": lambda _: table().cast_column("image", datasets.Image(decode=False)),
    "names of NumPy": lambda _: [(image, np.str_(name)) for image, name in zip(IMAGES, names(), strict=True)],
    "stacked lists": lambda _: StackDataset(image=IMAGES, label=names()),
    "a pandas format": lambda _: table(names(), TEXT).with_format("pandas"),
    "pixels of uint8": lambda _: datasets.Dataset.from_dict(
        {"pixel_values": [np.asarray(image).transpose(2, 0, 1) for image in IMAGES], "label": names()}
    ),
    "pixels with names": lambda _: [
        {"pixel_values": image, "label": name} for image, name in zip(PIXELS, names(), strict=True)
    ],
    "pixels and numbers": lambda _: [
        {"pixel_values": image, "labels": MODEL.index(name)} for image, name in zip(PIXELS, names(), strict=True)
    ],
    "parts put together": lambda _: ConcatDataset([table().select(range(2)), Subset(table(), [2, 3, 4, 5])]),
    "a split": lambda _: datasets.DatasetDict(Train=table(), test=table().select([0])),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_gives_the_same_pixels_and_the_models_labels(way, tmp_path):
    dataset = as_pixel_dataset(WAYS[way](tmp_path / "images"), PROCESSOR, labels=MODEL)
    assert len(dataset) == 6
    sorted_by_class = sorted(range(6), key=lambda row: (LABELS[row], row))
    order = sorted_by_class if "folder" in way else range(6)
    for place, row in enumerate(order):
        item = dataset[place]
        torch.testing.assert_close(as_pixels(item["pixel_values"]), PIXELS[row])
        assert int(item["labels"]) == MODEL.index(NAMES[LABELS[row]])


def test_images_are_read_as_a_viewer_shows_them_and_resized(tmp_path):
    photo = Image.new("RGB", (30, 20), "red")
    photo.paste("blue", (0, 0, 15, 20))
    exif = photo.getexif()
    exif[0x0112] = 6  # to be turned by 90°
    photo.save(tmp_path / "photo.png", exif=exif)
    image = Image.open(tmp_path / "photo.png")
    ways = [[(tmp_path / "photo.png", 0)], [(image, 0)], Samples([(image, 0)])]
    for dataset in (as_pixel_dataset(way, PROCESSOR) for way in ways):
        pixels = dataset[0]["pixel_values"]
        assert pixels.shape == (3, 8, 8) and pixels[2, 0].min() == 255 and pixels[0, -1].min() == 255  # blue above red


def test_what_was_drawn_into_an_opened_image_is_seen(tmp_path):
    IMAGES[0].save(tmp_path / "dark.png")
    image = Image.open(tmp_path / "dark.png")
    image.paste("white", (0, 0, 8, 8))
    assert as_pixel_dataset([{"image": image, "label": 0}], PROCESSOR)[0]["pixel_values"].min() == 255


def test_grey_arrays_and_those_of_one_channel_are_images():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for array in (grey, grey[:, :, None], grey.astype(np.int64), grey / np.float64(255)):
        pixels = as_pixel_dataset([(array, 0)], PROCESSOR)[0]["pixel_values"]
        assert np.array_equal(pixels[1].numpy(), grey)


def test_numbers_without_names_count_the_models_labels_unless_they_name_them():
    def labels(model, values):
        pairs = list(zip(IMAGES, values, strict=False))
        found = [as_pixel_dataset(data, PROCESSOR, labels=model) for data in (pairs, Samples(pairs))]
        assert [item["labels"] for item in found[0]] == [item["labels"] for item in found[1]]
        return [item["labels"] for item in found[0]]

    assert labels(MODEL, [2, 0]) == [2, 0] == labels(None, [2, 0]) == labels(["LABEL_0", "LABEL_1", "LABEL_2"], [2, 0])
    assert labels(["7", "2"], [2, np.int8(7)]) == [1, 0]


def test_a_transform_that_numbers_classes_anew_is_believed():
    def odd(rows):
        return {**transformed(rows), "labels": [int(label == 0) for label in rows["label"]]}

    dataset = as_pixel_dataset(table().with_transform(odd), PROCESSOR, labels=["other", "ant"])
    assert [dataset[row]["labels"] for row in range(6)] == [int(label == 0) for label in LABELS]


def test_without_an_image_processor_pixels_are_taken():
    for data in (
        pixels(0),
        list(zip(PIXELS, LABELS, strict=True)),
        TensorDataset(torch.stack(PIXELS), torch.tensor(LABELS)),
    ):
        assert torch.equal(as_pixel_dataset(data, None)[0]["pixel_values"], PIXELS[0])
    for data in (rows(0), Samples(rows(0)), table()):
        with pytest.raises(UsageError, match=r"need.* image processor"):
            as_pixel_dataset(data, None)


def test_a_data_set_of_pixels_is_what_it_was():
    dataset = PixelDataset(table(), PROCESSOR)
    assert as_pixel_dataset(dataset, PROCESSOR, labels=NAMES) is dataset
    given = pixels(1)
    assert as_pixel_dataset(given, PROCESSOR, labels=["5", "6"]) is given
    read = as_pixel_dataset(Samples(list(zip(IMAGES, LABELS, strict=True))), PROCESSOR)
    assert as_pixel_dataset(read, PROCESSOR) is read


def pixels(*labels, value=PIXELS[0]):
    return [{"pixel_values": value, "labels": label} for label in labels]


REFUSED = {
    "a name": ("cifar10", "load_dataset"),
    "a file": (Path("cats.csv"), "load_dataset"),
    "a stream": (table().to_iterable_dataset(), "without streaming=True"),
    "streamed splits": (datasets.IterableDatasetDict(train=table().to_iterable_dataset()), "without streaming=True"),
    "a generator": ((row for row in rows(0)), "map-style"),
    "a loader": (DataLoader(rows(0)), "give its dataset"),
    "a number": (3, "is a int, no data set"),
    "columns": ({"image": IMAGES, "label": LABELS}, "Dataset.from_dict"),
    "a table of pandas": (pandas.DataFrame({"image": ["a.png"], "label": [0]}), "from_pandas"),
    "an array": (np.zeros((4, 8, 8, 3)), "samples of type ndarray"),
    "arrays and labels": ((np.zeros((4, 8, 8, 3)), np.zeros(4)), "samples of type ndarray"),
    "one tensor": (TensorDataset(torch.rand(4, 3, 8, 8)), "samples of type tuple"),
    "another split": (datasets.DatasetDict(test=table()), "chosen from test"),
    "no image": (table().remove_columns("image"), "image_column_name image: the data set has no such column, only label"),
    "no label": (table().remove_columns("label"), "label_column_name label: the data set has no such column, only image"),
    "rows without labels": ([{"image": IMAGES[0]}], "label_column_name label: .*only image"),
    "pixels without labels": ([{"pixel_values": PIXELS[0]}], "label_column_name labels: .*only pixel_values"),
    "two kinds of labels": (
        table().rename_column("label", "fine").add_column("coarse", LABELS, feature=datasets.ClassLabel(names=NAMES)),
        "fine, coarse may be meant",
    ),
    "two images": (
        datasets.concatenate_datasets([table(image="a"), table(image="b").select_columns(["b"])], axis=1),
        "a, b may be meant",
    ),
    "two images in a row": ([{"a": IMAGES[0], "b": IMAGES[1], "label": 0}], "a, b may be meant"),
    "numbers for images": (datasets.Dataset.from_dict({"image": [1], "label": [0]}), "not images"),
    "a transform to nothing": (table().with_transform(lambda rows: {"x": rows["label"]}), "pixel_values in"),
    "a transform without labels": (
        table().with_transform(lambda rows: {"pixel_values": transformed(rows)["pixel_values"]}),
        "label_column_name labels",
    ),
    "a transform that normalises": (
        table().with_transform(
            lambda rows: {"pixel_values": [(p - 0.5) / 0.5 for p in PIXELS[:1]], "labels": rows["label"]}
        ),
        "do not normalise",
    ),
    "other names": (table(feature=datasets.ClassLabel(names=["a", "b", "c"])), "no label is named a, b, c"),
    "another name": (rows("ant", "dog"), "no label is named dog"),
    "another name in a class": (Samples(rows("dog")), "sample 0 .*no label is named dog"),
    "names of a folder": (Samples([(IMAGES[0], 1)], classes=["ant", "dog"]), "no label is named dog"),
    "a label out of range": (table([0, 3], WHOLE), "label numbers 3"),
    "a label out of range in rows": (rows(0, 3), "label numbers 3"),
    "a label out of range in a class": (Samples(rows(3)), "label numbers 3"),
    "a missing label": (table([0, -1]), "1 of 2 images of the train split have no label"),
    "no label at all": (table([None, None], WHOLE), "2 of 2 images"),
    "a missing label in rows": (rows(0, None), "1 of 2 images"),
    "an empty name": (rows("ant", ""), "1 of 2 images"),
    "a missing label in a class": (Samples(rows(None)), "has no label"),
    "fractions": (table([0.5], datasets.Value("float32")), "float32, not classes"),
    "a fraction in rows": (rows(0, 1.0), "row 1 .*not one integer"),
    "a fraction in a class": (Samples(rows(1.0)), "not one integer"),
    "a fraction beside pixels": (pixels(1.0), "one integer per sample"),
    "fractions beside pixels": (datasets.Dataset.from_list(pixels(0.5, value=[[[0.0]]])), "float64, not classes"),
    "several labels": (rows([0, 1]), "not one integer"),
    "truth values": (rows(True, False), "no label is named False, True"),
    "truth in a class": (Samples(rows(True)), "no label is named True"),
    "labels of two types": (rows("ant", 1), "several types: .*int"),
    "a row of another kind": ([*rows(0), {"picture": IMAGES[0]}], "row 1 of the train data set: it has no image and label"),
    "a row that is no row": ([*rows(0), None], "row 1 of the train data set"),
    "no file": ([*rows(0), {"image": "nowhere.png", "label": 0}], "row 1 .*nowhere.png, which does not exist"),
    "an address": ([("https://example.org/a.png", 0)], "row 0 .*which does not exist"),
    "no image in a row": ([*rows(0), {"image": None, "label": 0}], "row 1 .*its image is a NoneType"),
    "a label first": ([(0, IMAGES[0])], "samples of type tuple"),
    "three in a row": ([(IMAGES[0], 0, "a.png")], "samples of type tuple"),
    "one of n": ([(IMAGES[0], torch.tensor([0, 1, 0]))], "not one integer"),
    "not a number": ([(IMAGES[0], float("nan"))], "label is nan"),
    "numbers as texts": (rows("1"), "no label is named 1"),
    "nothing": (None, "the train data set is a NoneType"),
    "images for pixels": ([{"pixel_values": IMAGES[0], "labels": 0}], "pixel_values are a Image"),
    "a batch for pixels": (pixels(0, value=torch.rand(1, 3, 8, 8)), r"shape \(1, 3, 8, 8\)"),
    "channels last": (pixels(0, value=torch.rand(8, 8, 3)), r"shape \(8, 8, 3\), but .* makes \(3, 8, 8\)"),
    "pixels of another size": (pixels(0, value=torch.rand(3, 32, 32)), r"makes \(3, 8, 8\)"),
    "pixels up to 255": (pixels(0, value=torch.full((3, 8, 8), 255.0)), "do not normalise"),
    "a missing label beside pixels": (pixels(0, -1), "sample 1 has label -1"),
    "a label beside pixels that is out of range": (pixels(0, 3), "sample 1 has label 3"),
    "a lacking label beside pixels": ([*pixels(0), {"pixel_values": PIXELS[0]}], "sample 1 .* has no labels, as"),
    "a tensor of another size": (Samples([(torch.rand(3, 9, 8), 0)]), r"shape \(3, 9, 8\), but .* makes \(3, 8, 8\)"),
    "a grey tensor": (TensorDataset(torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)), r"makes \(3, 8, 8\)"),
    "a flat tensor": (Samples([(torch.rand(64), 0)]), "shape"),
    "arrays of fractions": (Samples([(np.zeros((8, 8, 3)), 0)]), "must be of uint8"),
    "an array of fractions in rows": ([{"image": np.zeros((8, 8, 3)), "label": 0}], "row 0 .*must be of uint8"),
    "channels first": ([{"image": np.zeros((3, 8, 8), np.uint8), "label": 0}], "cannot be read"),
    "an image of no kind": (Samples([({1, 2}, 0)]), "its image is a set"),
    "texts for pixels": (datasets.Dataset.from_dict({"pixel_values": ["a"], "label": ["ant"]}), "not arrays of numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(case):
    given, words = REFUSED[case]
    with pytest.raises(UsageError, match=words) as refused:
        as_pixel_dataset(given, PROCESSOR, labels=MODEL)
    assert "\n" not in str(refused.value)


def test_texts_need_a_model_whose_labels_have_names():
    for data in (rows("ant"), Samples(rows("ant"))):
        with pytest.raises(UsageError, match="id2label"):
            as_pixel_dataset(data, PROCESSOR, labels=["LABEL_0", "LABEL_1"])
    with pytest.raises(UsageError, match="row 2 of the train images has label 2, but the model's head has 2 labels"):
        as_pixel_dataset(table(), PROCESSOR, labels=["LABEL_0", "LABEL_1"])


def test_a_sample_that_differs_from_the_first_is_named_when_it_is_read():
    dataset = as_pixel_dataset(Samples([*rows(0), {"image": IMAGES[1]}, {"label": 0, "image": b"?"}]), PROCESSOR, "test")
    for row in (1, 2):
        with pytest.raises(UsageError, match=f"sample {row} of the test data set: "):
            dataset[row]


def test_a_transform_is_not_lost():
    for use in (lambda data: PixelDataset(data, PROCESSOR), lambda data: choose_splits(data, DataArguments())):
        with pytest.raises(UsageError, match="has a transform of its own"):
            use(table().with_transform(transformed))
