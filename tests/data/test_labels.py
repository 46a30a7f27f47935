"""Labels: by name, whatever column they are in."""

import datasets
import pytest
from hypothesis import given, settings, strategies

from hf_robust_transfer.data import DataArguments, as_labels_of, choose_splits, load_evaluation_split, match_labels
from hf_robust_transfer.errors import UsageError

ANIMALS = ["ant", "bee", "cow", "dog"]
names = strategies.text(min_size=1, max_size=12)
lists_of_names = strategies.lists(names, min_size=2, max_size=8, unique=True)


def letters(name):
    return [character for character in name.casefold() if character.isalnum()]


def pictures(labels, feature):
    """A data set whose images are so many black dots."""
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    dot = [[[0, 0, 0]]]
    return datasets.Dataset.from_dict({"image": [dot] * len(labels), "label": labels}, features=features)


def parquet(folder, **splits):
    for name, split in splits.items():
        split.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    return str(folder / "data")


# By name


@settings(max_examples=200)
@given(strategies.lists(names, min_size=2, max_size=12, unique=True), strategies.data())
def test_every_class_is_the_label_of_its_name_whatever_the_order(labels, data):
    classes = data.draw(strategies.permutations(labels))[: data.draw(strategies.integers(1, len(labels)))]
    found = match_labels(classes, labels)
    assert [labels[found[index]] for index in range(len(classes))] == classes


@settings(max_examples=200)
@given(
    lists_of_names,
    lists_of_names,
)
def test_names_are_never_matched_by_anything_else(labels, classes):
    unknown = [name for name in classes if name not in labels]
    if not unknown:
        assert {classes[old]: labels[new] for old, new in match_labels(classes, labels).items()} == {n: n for n in classes}
        return
    with pytest.raises(UsageError, match="--label_map") as refused:
        match_labels(classes, labels)
    message = str(refused.value)
    assert "\n" not in message and all((name if name.isprintable() else repr(name)) in message for name in unknown)


@settings(max_examples=100)
@given(
    strategies.lists(names, min_size=2, max_size=8, unique=True), strategies.integers(0, 7), strategies.sampled_from("_- ")
)
def test_another_way_of_writing_is_proposed_and_not_taken(labels, row, separator):
    row %= len(labels)
    other = separator + labels[row].upper()
    if other in labels or other.casefold() != separator + labels[row].casefold():
        return
    with pytest.raises(UsageError) as refused:
        match_labels([other], labels)
    alike = [label for label in labels if letters(label) == letters(labels[row])]
    assert ("if they are the same" in str(refused.value)) == (len(alike) > 1 or not labels[row].isprintable())


def test_the_error_shows_both_lists_and_what_to_write():
    message = (
        "the model has the 3 labels golden retriever, tabby, ox, but the data the 3 classes Golden_Retriever, Tabby, cow:"
        " no label is named Golden_Retriever, Tabby, cow; say which they are with --label_map, as in --label_map"
        " 'Golden_Retriever=golden retriever' Tabby=tabby, or leave"
    )
    with pytest.raises(UsageError) as refused:
        match_labels(["Golden_Retriever", "Tabby", "cow"], ["golden retriever", "tabby", "ox"])
    assert message in str(refused.value)


def test_long_lists_are_shortened():
    with pytest.raises(UsageError, match=r"the 1000 labels 0, 1, .* 19, … \(1000 in all\)") as refused:
        match_labels(["cat"], list(map(str, range(1000))))
    assert len(str(refused.value)) < 500


def test_a_name_of_two_labels_is_refused_where_it_is_needed():
    labels = ["crane", "heron", "crane"]
    assert match_labels(["heron"], labels) == {0: 1}
    assert match_labels(["2"], labels, numbered=True) == {0: 2}
    with pytest.raises(UsageError, match="more than one label is named crane"):
        match_labels(["crane", "heron"], labels)


# Kinds of columns


def labels_of(*splits, **options):
    named = dict(zip(("train", "validation", "test"), splits, strict=False))
    chosen = choose_splits(datasets.DatasetDict(named), DataArguments(**options))
    return chosen, chosen.labels


def test_integers_keep_their_numbers():
    numbers = [*range(12), *range(12)]
    chosen, labels = labels_of(*[pictures(numbers, datasets.Value("int64"))] * 3)
    assert labels == [str(number) for number in range(12)]
    assert chosen.train["label"][:] == chosen.test["label"][:] == numbers


@pytest.mark.parametrize("kind", ["int8", "uint16", "int32", "uint64"])
def test_integers_with_gaps_are_named_after_themselves(kind):
    chosen, labels = labels_of(*[pictures([100, 7, 20, 7], datasets.Value(kind))] * 2)
    assert labels == ["7", "20", "100"] and chosen.train["label"][:] == [2, 0, 1, 0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 11, 10, 2], [0, 11, 10, 2]), ([3, 3], [3, 3]), ([0, 11], [0, 11])],
)
def test_integers_count_the_labels_of_a_model_that_has_names(values, expected):
    model = [f"name {letter}" for letter in "abcdefghijkl"]
    assert as_labels_of(pictures(values, datasets.Value("int64")), model)["label"][:] == expected


def test_integers_are_matched_by_name_where_the_labels_are_numbers():
    model = [str(number) for number in range(1, 11)]
    assert as_labels_of(pictures([1, 10, 2], datasets.Value("int64")), model)["label"][:] == [0, 9, 1]
    with pytest.raises(UsageError, match="no label is named 0"):
        as_labels_of(pictures([0, 1], datasets.Value("int64")), model)


def test_a_number_beyond_the_models_labels_is_refused():
    with pytest.raises(UsageError, match=r"label numbers 4 are none of the model's 4 labels, numbered from 0: ant, bee"):
        as_labels_of(pictures([0, 4], datasets.Value("int64")), ANIMALS)


def test_named_numbers_are_names():
    with pytest.raises(UsageError, match="no label is named 0, 1"):
        as_labels_of(pictures([0, 1], datasets.ClassLabel(names=["0", "1"])), ANIMALS)


@pytest.mark.parametrize(
    ("feature", "none"),
    [
        (datasets.Value("int64"), -1),
        (datasets.Value("int64"), None),
        (datasets.Value("int32"), -7),
        (datasets.Value("string"), ""),
        (datasets.Value("string"), None),
        (datasets.ClassLabel(names=["0", "1"]), -1),
    ],
)
def test_no_label_is_no_class(feature, none):
    some, other = (0, 1) if not (isinstance(feature, datasets.Value) and feature.dtype == "string") else ("0", "1")
    whole, part, empty = (pictures(each, feature) for each in ([some, other], [some, none], [none, none]))
    with pytest.raises(UsageError, match="1 of 2 images of the train split have no label"):
        labels_of(part, whole)
    with pytest.raises(UsageError, match="2 of 2 images of the train split have no label"):
        labels_of(empty, whole)
    with pytest.raises(UsageError, match="1 of 2 images of the test split have no label"):
        labels_of(whole, whole, part)
    chosen, labels = labels_of(whole, whole, empty)
    assert labels == ["0", "1"] and chosen.test is None


def test_an_unlabelled_split_is_left_out_with_a_warning(tmp_path, caplog):
    feature = datasets.ClassLabel(names=ANIMALS)
    labelled, unlabelled = pictures([0, 1, 2, 3] * 5, feature), pictures([-1] * 4, feature)
    data = parquet(tmp_path, train=labelled, validation=labelled, test=unlabelled)
    images, split = load_evaluation_split(DataArguments(data), labels=ANIMALS)
    assert (split, len(images)) == ("validation", 20)
    assert "the test split is left out: none of its 4 images has a label" in caplog.text
    with pytest.raises(UsageError, match="4 of 4 images of the test split have no label"):
        load_evaluation_split(DataArguments(data), labels=ANIMALS, split="test")


def test_a_split_without_a_column_of_labels_is_left_out(caplog):
    labelled = pictures([0, 1] * 10, datasets.Value("int64"))
    unlabelled = labelled.remove_columns("label")
    assert labels_of(labelled, labelled, unlabelled)[0].test is None
    assert "the test split is left out" in caplog.text
    assert labels_of(labelled, labelled, pictures([None, None], datasets.Value("null")))[0].test is None
    with pytest.raises(UsageError, match="--label_column_name label: the data set has no such column"):
        labels_of(unlabelled, labelled)


def test_a_split_without_an_image_of_the_chosen_classes_is_left_out(caplog):
    three, two = pictures([0, 1, 2] * 10, datasets.Value("int64")), pictures([2, 2], datasets.Value("int64"))
    chosen, _ = labels_of(three, two, two, classes=["0", "1"])
    assert chosen.test is None and len(chosen.validation) == 3 and "images has one of these classes" in caplog.text
    with pytest.raises(UsageError, match="no training image"):
        labels_of(three.select([]), two)


def test_what_training_sets_aside_for_an_unlabelled_validation_split_is_found_again(tmp_path):
    feature = datasets.Value("int64")
    numbered = [number % 4 for number in range(40)]
    splits = {"train": pictures(numbered, feature), "validation": pictures([-1] * 4, feature)}
    trained = choose_splits(datasets.DatasetDict(splits), DataArguments(), seed=3)
    found, split = load_evaluation_split(DataArguments(parquet(tmp_path, **splits)), labels=ANIMALS, seed=3)
    assert split == "validation" and len(found) == 6 and found["label"][:] == trained.validation["label"][:]


@pytest.mark.parametrize("feature", [datasets.Value("float32"), datasets.List(datasets.Value("int64"))])
def test_columns_that_hold_no_classes_are_refused(feature):
    values = [0.0, 1.5] if isinstance(feature, datasets.Value) else [[0], [1]]
    with pytest.raises(UsageError, match="--label_column_name label: the column holds"):
        labels_of(pictures(values, feature))


def test_truth_values_are_names():
    assert labels_of(*[pictures([True, False], datasets.Value("bool"))] * 2)[1] == ["False", "True"]


# --label_map and --classes


def test_classes_are_renamed_and_put_together():
    train = pictures(["hund", "katze", "kater", "=x"], datasets.Value("string"))
    chosen, labels = labels_of(train, train, label_map=["hund=dog", "katze=cat", "kater=cat", "=x=a=b"])
    assert labels == ["a=b", "dog", "cat"]
    assert [labels[label] for label in chosen.train["label"]] == ["dog", "cat", "cat", "a=b"]


def test_numbers_can_be_named():
    chosen, labels = labels_of(*[pictures([1, 0], datasets.Value("int64"))] * 2, label_map=["0=ant", "1=bee"])
    assert labels == ["ant", "bee"] and chosen.train["label"][:] == [1, 0]


def test_a_split_that_lacks_a_renamed_class_is_evaluated(tmp_path):
    text = datasets.Value("string")
    data = parquet(tmp_path, train=pictures(["Hund", "Biene"], text), test=pictures(["Biene"], text))
    images, _ = load_evaluation_split(DataArguments(data, label_map=["Hund=dog", "Biene=bee"]), labels=ANIMALS)
    assert images["label"][:] == [1]


@pytest.mark.parametrize("pairs", [["ox=cow"], ["ant"], ["ant="], ["=ant"], ["ant=a", "ant=b"], [""]])
def test_a_map_that_says_nothing_is_refused_with_the_classes(pairs):
    data = pictures(ANIMALS, datasets.Value("string"))
    with pytest.raises(UsageError, match=r"--label_map .*one of ant, bee, cow, dog"):
        labels_of(data, data, label_map=pairs)


def test_chosen_classes_have_the_models_numbers(tmp_path):
    feature = datasets.ClassLabel(names=ANIMALS)
    data = parquet(tmp_path, test=pictures([0, 1, 2, 3, 2], feature))
    images, _ = load_evaluation_split(DataArguments(data, classes=["cow", "bee"]), labels=ANIMALS)
    assert images["label"][:] == [1, 2, 2] and images.features["label"].names == ANIMALS
    with pytest.raises(UsageError, match="--classes ant zzz: use two or more different ones of ant, bee, cow, dog"):
        load_evaluation_split(DataArguments(data, classes=["ant", "zzz"]), labels=ANIMALS)
    with pytest.raises(UsageError, match="--classes ant dog: the model has no label named dog, only ant, bee"):
        load_evaluation_split(DataArguments(data, classes=["ant", "dog"]), labels=["ant", "bee"])


def test_images_of_a_class_that_the_model_lacks_are_not_passed_over(tmp_path):
    data = parquet(tmp_path, test=pictures(ANIMALS, datasets.Value("string")))
    with pytest.raises(UsageError, match="no label is named ant, dog"):
        load_evaluation_split(DataArguments(data), labels=["bee", "cow"])
    data = parquet(tmp_path / "train", train=pictures(ANIMALS * 10, datasets.Value("string")))
    with pytest.raises(UsageError, match="no label is named ant, dog"):
        load_evaluation_split(DataArguments(data), labels=["bee", "cow"])
    # a class without an image is none
    named = pictures([1, 2], datasets.ClassLabel(names=ANIMALS))
    assert as_labels_of(named, ["cow", "bee"])["label"][:] == [1, 0]


def test_images_to_validate_on_are_none_of_training_also_where_other_classes_are_evaluated(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=ANIMALS)})
    shades = [[[[shade, 0, 0]]] for shade in range(80)]
    train = datasets.Dataset.from_dict({"image": shades, "label": [0, 1, 2, 3] * 20}, features=features)
    trained = choose_splits(datasets.DatasetDict(train=train), DataArguments(), seed=5)

    def shades_of(split):
        return {image.getpixel((0, 0)) for image in split["image"]}

    data = parquet(tmp_path, train=train)
    images, _ = load_evaluation_split(DataArguments(data, classes=["dog", "bee"]), labels=ANIMALS, seed=5)
    assert shades_of(images) < shades_of(trained.validation) and len(images) == 6
    again, _ = load_evaluation_split(DataArguments(data, split_seed=5), labels=ANIMALS, split="validation", seed=1)
    assert shades_of(again) == shades_of(trained.validation)


def test_one_class_is_refused():
    with pytest.raises(UsageError, match="one class only, ant"):
        labels_of(*[pictures(["ant", "ant"], datasets.Value("string"))] * 2)
