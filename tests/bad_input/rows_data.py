"""Data: names, folders, labels, images."""

from PIL import Image
from row import Row

from hf_robust_transfer.data import DataArguments, PixelDataset, choose_splits, load_image_splits
from hf_robust_transfer.evaluation.evaluator import RobustnessEvaluator
from hf_robust_transfer.modeling import load_model
from hf_robust_transfer.threat_model import ThreatModel

TRAIN = "pretrain <pretrain> --dataset_name"
EVALUATE = "evaluate <evaluate>"
FOLDER = "pretrain <tiny> --output_dir run --use_cpu --train_dir"


def digits_in(folder, classes=("0", "1"), count=4):
    for shade, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (8, 8), 9 * shade + number).save(folder / name / f"{number}.png")


def in_splits(here, places):
    for name in ("Train", "val", "test"):
        digits_in(here / "mine" / name)


def within(change):
    """Fill a folder ``mine`` with two classes, then change it."""

    def make(here, places):
        digits_in(here / "mine")
        change(here / "mine")

    return make


def of_other_classes(here, places):
    digits_in(here / "mine" / "test", ("Zero", "one"))


def damaged(content):
    return within(lambda folder: (folder / "1" / "2.png").write_bytes(content))


def bomb(folder):
    Image.new("1", (20000, 20000)).save(folder / "1" / "2.png")


def floating(folder):
    Image.new("F", (8, 8), 200.0).save(folder / "1" / "2.tiff")


def images_with(label_type, labels):
    def act(here, places):
        import datasets

        features = datasets.Features({"image": datasets.Image(), "label": label_type(datasets)})
        images = [[[[0, 0, 0]]]] * len(labels)
        split = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        choose_splits(datasets.DatasetDict(train=split, test=split), DataArguments())
        PixelDataset(split, load_model(str(places["model"]))[1])

    return act


def pixels_of(labels, **columns):
    def act(here, places):
        import datasets

        split = datasets.Dataset.from_dict({"image": [[[[0, 0, 0]]]] * len(labels), **columns})
        PixelDataset(split.cast_column("image", datasets.Image()), load_model(str(places["model"]))[1])

    return act


def evaluator_of(**options):
    def act(here, places):
        RobustnessEvaluator(ThreatModel(), "fgsm").compute(str(places["model"]), **options)

    return act


ROWS = [
    *(
        Row(f"the format {name}", f"{TRAIN} {name}", (f"--dataset_name {name} is a format", "name the folder"))
        for name in ("imagefolder", "csv", "json", "parquet", "webdataset", "audiofolder")
    ),
    Row("a format to evaluate on", "evaluate <evaluate> --dataset_name csv", "--dataset_name csv is a format"),
    Row("a format to publish with", "publish <publish> --dataset_name parquet", "--dataset_name parquet is a format"),
    Row("a format to import with", "import-checkpoint <import-checkpoint> --dataset_name csv", "csv is a format"),
    Row("a format for the evaluator", evaluator_of(data="imagefolder"), "data= imagefolder is a format"),
    Row("an empty name", f"{TRAIN} ''", "--dataset_name is empty"),
    Row("an empty folder name", f"{FOLDER} ''", "--train_dir is empty"),
    Row("a file as data set", f"{TRAIN} a.parquet", "is a file", make=lambda here, _: (here / "a.parquet").touch()),
    Row("no such folder", f"{FOLDER} nowhere", "--train_dir nowhere is not a folder"),
    Row("folder and data set", f"{TRAIN} <images> --train_dir <images>", "either --dataset_name or --train_dir"),
    Row("splits pooled", f"{FOLDER} mine", ("would be pooled", "--dataset_name mine"), make=in_splits),
    Row("same images twice", f"{FOLDER} mine --test_dir mine", "of the train images", make=within(lambda _: None)),
    Row("an empty class", f"{FOLDER} mine", "no training image of 2", make=within(lambda folder: (folder / "2").mkdir())),
    Row("one class", f"{FOLDER} mine", "one class only, 0", make=lambda here, _: digits_in(here / "mine", ("0",))),
    Row("nested", f"{FOLDER} mine", "folder within", make=within(lambda folder: (folder / "0" / "small").mkdir())),
    Row("a dead link", f"{FOLDER} mine", "leads nowhere", make=within(lambda folder: (folder / "2").symlink_to("gone"))),
    Row("an image beside", f"{FOLDER} mine", "a.png lies beside", make=within(lambda folder: (folder / "a.png").touch())),
    Row("no image", f"{FOLDER} mine", "it holds no image", make=lambda here, _: (here / "mine" / "0").mkdir(parents=True)),
    Row("a truncated image", f"{FOLDER} mine", ("1/2.png", "row"), make=damaged(b"\x89PNG\r\n\x1a\n\0\0")),
    Row("an empty image", f"{FOLDER} mine", ("1/2.png", "row"), make=damaged(b"")),
    Row("a text as image", f"{FOLDER} mine", ("1/2.png", "cannot identify"), make=damaged(b"hello")),
    Row("a bomb", f"{FOLDER} mine", ("1/2.png", "decompression bomb"), make=within(bomb)),
    Row("floating pixels above 1", f"{FOLDER} mine", ("1/2.tiff", "convert it to 8 or 16 bits"), make=within(floating)),
    Row(
        "other names",
        "evaluate <evaluate> --dataset_name mine",
        ("Zero, one", "--label_map", "0, 1, 2"),
        make=of_other_classes,
    ),
    Row("unknown classes", f"{EVALUATE} --classes 0 zzz", ("--classes 0 zzz", "0, 1, 2")),
    Row("unknown classes to train on", f"{TRAIN} <images> --classes 0 zzz", ("--classes 0 zzz", "0, 1, 2")),
    Row("one class chosen", "evaluate <evaluate> --classes 3", "two or more"),
    Row("a class twice", f"{TRAIN} <images> --classes 3 3", "--classes 3 3"),
    Row("a map of nothing", "evaluate <evaluate> --label_map zero=0", ("--label_map zero=0", "0, 1, 2")),
    Row("a map without a sign", f"{TRAIN} <images> --label_map 0", "--label_map 0"),
    Row("a negative split seed", f"{TRAIN} <images> --split_seed -1", "--split_seed -1"),
    Row("all to validate on", f"{TRAIN} <images> --train_val_split 0.9999", "--train_val_split 0.9999"),
    Row("no split of that name", "evaluate <evaluate> --split dev", "--split dev"),
    Row("no label in training", images_with(lambda d: d.Value("int64"), [0, -1, 1]), "1 of 3 images of the train split"),
    Row("labels with fractions", images_with(lambda d: d.Value("float64"), [0.5, 1.0]), "float64, not classes"),
    Row("several labels", images_with(lambda d: d.List(d.Value("int64")), [[0], [1]]), "not one label per image"),
    Row("one class of Python", images_with(lambda d: d.Value("string"), ["a", "a"]), "one class only, a"),
    Row("pixels without labels", pixels_of([0]), "no column 'label'"),
    Row("pixels with names", pixels_of([0], label=["cat"]), "not numbers of classes"),
    Row("pixels with no label", pixels_of([0], label=[-1]), "have no label"),
    Row("nothing to load", lambda here, places: load_image_splits(DataArguments()), "--dataset_name or --train_dir"),
]
