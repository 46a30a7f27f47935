"""Data as users of Python have them, and folders that `datasets` saved."""

from row import Row

from hf_robust_transfer import (
    PixelClassifier,
    PixelDataset,
    RobustnessEvaluator,
    RobustTrainer,
    RobustTrainingArguments,
    ThreatModel,
    evaluate_robustness,
)
from hf_robust_transfer.data import DataArguments, as_labels_of, choose_splits
from hf_robust_transfer.modeling import load_model


def digits_of(places):
    import datasets

    return datasets.load_dataset(
        "parquet", data_dir=str(places["images"]), cache_dir=str(places["images"].parent / "given")
    )


def trained_on(change, **options):
    """Train the model on the digits after a change; ``processor`` among the options takes the place of the model's own."""

    def act(here, places):
        model, processor = load_model(str(places["model"]))
        args = RobustTrainingArguments(str(here / "run"), use_cpu=True, report_to="none", max_steps=1, save_strategy="no")
        given = {"processing_class": processor, "train_dataset": change(digits_of(places)), **options}
        RobustTrainer(model, args, **given).train()

    return act


def evaluated_on(change, **options):
    def act(here, places):
        data = change(digits_of(places))
        evaluate_robustness(PixelClassifier(*load_model(str(places["model"]))), data, ThreatModel(), ["fgsm"], **options)

    return act


def saved(change, name="mine"):
    """Fill a folder with what `save_to_disk` writes of the digits after a change."""

    def make(here, places):
        change(digits_of(places)).save_to_disk(here / name)

    return make


def damaged(here, places):
    saved(lambda data: data)(here, places)
    (here / "mine" / "train" / "state.json").unlink()


def without_training(data):
    return type(data)(test=data["test"])


def renamed(data):
    feature = data["train"].features["label"]
    coarse = data["train"].add_column("coarse", data["train"]["label"][:], feature=feature)
    return coarse.rename_column("label", "fine")


def called(act):
    """Call a function of the digits, of the model and of its image processor."""
    return lambda here, places: act(digits_of(places), *load_model(str(places["model"])))


def evaluator_on(change):
    def act(data, model, processor):
        RobustnessEvaluator(ThreatModel(), "fgsm").compute(model, change(data), feature_extractor=processor)

    return called(act)


TRAIN, EVALUATE = "pretrain <pretrain> --dataset_name mine", "evaluate <evaluate> --dataset_name mine"
FOLDER = "pretrain <tiny> --output_dir run --use_cpu --train_dir mine"
ROWS = [
    Row("a saved set without training images", TRAIN, "no training split", make=saved(without_training)),
    Row("a saved set that is damaged", TRAIN, "mine cannot be loaded", make=damaged),
    Row("two kinds of labels", TRAIN, ("--label_column_name", "fine, coarse"), make=saved(renamed)),
    Row("no images saved", EVALUATE, "--image_column_name image", make=saved(lambda d: d["test"].remove_columns("image"))),
    Row("no labels saved", EVALUATE, "--label_column_name label", make=saved(lambda d: d["test"].remove_columns("label"))),
    Row("a saved set as a folder of classes", FOLDER, "--dataset_name", make=saved(lambda d: d)),
    Row("a stream to train on", trained_on(lambda d: d["train"].to_iterable_dataset()), "without streaming=True"),
    Row("a stream to evaluate on", evaluated_on(lambda d: d["test"].to_iterable_dataset()), "without streaming=True"),
    Row("streamed splits", evaluated_on(lambda d: {"test": d["test"].to_iterable_dataset()}), "without streaming=True"),
    Row("no data", evaluated_on(lambda d: None), "the test data set is a NoneType"),
    Row("an empty list", evaluated_on(lambda d: []), "there is no sample"),
    Row("an empty list to train on", trained_on(lambda d: []), "there is no training image"),
    Row("a name for data", trained_on(lambda d: "cifar10"), "load_dataset"),
    Row("test images alone", trained_on(lambda d: {"test": d["test"]}), "chosen from test"),
    Row("training images alone", evaluated_on(lambda d: {"train": d["train"]}), "chosen from train"),
    Row("another column", evaluated_on(lambda d: d["test"], image_column_name="img"), "image_column_name img"),
    Row("a label that the model lacks", trained_on(lambda d: [(d["train"][0]["image"], "ten")]), "no label is named ten"),
    Row("a fraction as label", trained_on(lambda d: [(d["train"][0]["image"], 0.5)]), "row 0"),
    Row("no image processor", trained_on(lambda d: d, processing_class=None), "image processor is needed"),
    Row("a name for the image processor", trained_on(lambda d: d, processing_class="vit"), "there is a str"),
    Row("no image to validate on", trained_on(lambda d: d, eval_dataset=[]), "the validation data set has no image"),
    Row("nothing among data sets", trained_on(lambda d: d, eval_dataset={"a": None}), "the a data set is a NoneType"),
    Row("a stream among data sets", trained_on(lambda d: d, eval_dataset={"a": iter([])}), "without streaming=True"),
    Row("splits as one", called(lambda data, _, processor: PixelDataset(data, processor)), "not a DatasetDict"),
    Row("rows as a data set", called(lambda data, _, processor: PixelDataset([], processor)), "not a list"),
    Row("pixels without a processor", called(lambda data, *_: PixelDataset(data["test"], None)), "processor is needed"),
    Row("splits of rows", called(lambda *_: choose_splits({"train": []}, DataArguments())), "not a list"),
    Row("labels of rows", called(lambda *_: as_labels_of([], ["cat", "dog"])), "not a list"),
    Row("an evaluator's stream", evaluator_on(lambda d: d["test"].to_iterable_dataset()), "without streaming=True"),
    Row("an evaluator's rows", evaluator_on(lambda d: [{"image": "a.png", "label": 0}]), "not a list"),
    Row("an evaluator's transform", evaluator_on(lambda d: d["test"].with_transform(dict)), "a transform of its own"),
    Row("an evaluator's training images", evaluator_on(lambda d: {"train": d["train"]}), "chosen from train"),
]  # fmt: skip
