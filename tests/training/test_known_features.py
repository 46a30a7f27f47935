"""Features that are computed once: training with them against training without, and when they are computed again."""

import threading

import pytest
import torch
from tiny_models import PLAIN
from torch.utils.data import DataLoader

from hf_robust_transfer import PixelClassifier, PixelDataset, RobustTrainer, RobustTrainingArguments, replace_head
from hf_robust_transfer.data import as_pixels, collate
from hf_robust_transfer.training.known_features import cache_features


@pytest.fixture
def train(tiny, digits, tmp_path):
    """A function (kind, **arguments) -> the trainer after training, and how many images its backbone was shown."""

    def run(kind="timm-convnext", dtype=torch.float64, teacher_seed=0, head_args=None, **arguments):
        model, processor = tiny(kind)
        if head_args is not None:
            torch.manual_seed(0)
            replace_head(model, model.config.id2label, head_args)
        shown = []

        def look(_, inputs):
            if len(inputs[0]) > 2:  # two are what a fast copy is compared on
                shown.append(len(inputs[0]))

        model.timm_model.register_forward_pre_hook(look)
        args = RobustTrainingArguments(
            str(tmp_path / "run"),
            feature_cache_dir=str(tmp_path / "features"),
            use_cpu=True,
            seed=1,
            **{
                **PLAIN,
                "report_to": "none",
                "disable_tqdm": True,
                "logging_steps": 1,
                "save_strategy": "no",
                **arguments,
            },
        )
        teacher = PixelClassifier(tiny(kind, seed=teacher_seed)[0].to(dtype), processor) if args.lwf_weight else None
        dataset = PixelDataset(digits.select(range(40)), processor)
        trainer = RobustTrainer(
            model.to(dtype), args, processing_class=processor, teacher=teacher, train_dataset=dataset, eval_dataset=dataset
        )
        trainer.train()
        return trainer, shown

    return run


FROZEN = {"freeze": "backbone", "num_train_epochs": 3, "per_device_train_batch_size": 16, "learning_rate": 0.5}
WARM_LWF = {
    "eps": "0",  # without which the source would be looked at, after the warm start
    "warm_start_steps": 4,
    "warm_start_learning_rate": 0.01,
    "lwf_weight": 0.5,
    "max_steps": 8,
    "per_device_train_batch_size": 16,
}


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("kind", ["timm-convnext", "timm-resnet", pytest.param("timm-vit", marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", [FROZEN, WARM_LWF], ids=["frozen", "warm start and LwF"])
def test_training_on_known_features_ends_with_the_same_weights(train, kind, options, flip):
    plain, shown_plain = train(kind, cache_features=False, random_flip=flip, teacher_seed=3, **options)
    cached, shown = train(kind, random_flip=flip, teacher_seed=3, **options)
    for name, expected in plain.model.state_dict().items():
        torch.testing.assert_close(
            cached.model.state_dict()[name].float(), expected.float(), rtol=1e-5, atol=1e-6, msg=name
        )
    losses = [[entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (plain, cached)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    once = 40 * (1 + flip)
    if options is FROZEN:
        assert (sum(shown_plain), sum(shown)) == (3 * 40, once)
    else:
        after_warm_start = sum(shown_plain) - (16 + 16 + 8 + 16)  # what the first four steps see
        assert sum(shown) == once + after_warm_start


@pytest.mark.parametrize("options", [FROZEN, {**WARM_LWF, "batch_norm_eval": True}], ids=["frozen", "warm start and LwF"])
def test_a_deep_head_learns_the_same_from_known_features(train, options):
    options = {**options, "learning_rate": 0.05, "head_args": {"layers": 2, "norm": True}}
    plain, _ = train("timm-wrn", cache_features=False, teacher_seed=3, **options)
    cached, shown = train("timm-wrn", teacher_seed=3, **options)
    assert len(shown) < 10
    for name, expected in plain.model.state_dict().items():
        torch.testing.assert_close(
            cached.model.state_dict()[name].float(), expected.float(), rtol=1e-5, atol=1e-6, msg=name
        )
    measured = plain.model.timm_model.head.fc[1]
    assert measured.num_batches_tracked == (9 if "freeze" in options else 8)
    assert measured.running_mean.abs().min() > 0


def test_frozen_training_reads_each_image_once(train, monkeypatch):
    read = []
    original = PixelDataset._read
    monkeypatch.setattr(PixelDataset, "_read", lambda self, row: read.append(row) or original(self, row))
    train(**FROZEN)
    assert sorted(read) == list(range(40))


def test_the_heads_own_epochs_read_no_image(train, monkeypatch):
    shown = []
    original = PixelDataset.__getitem__
    monkeypatch.setattr(PixelDataset, "__getitem__", lambda self, row: shown.append(row) or original(self, row))
    options = {"lwf_weight": 0.5, "max_steps": 3, "per_device_train_batch_size": 16, "warm_start_learning_rate": 0.5}
    counts = []
    for epochs in (1, 1, 4):  # the first run computes the features
        trainer, _ = train(warm_start_epochs=epochs, teacher_seed=3, **options)
        counts.append(len(shown))
        shown.clear()
    assert trainer.state.global_step == 15 and counts[1] == counts[2]
    plain, _ = train(warm_start_epochs=4, teacher_seed=3, cache_features=False, **options)
    for name, expected in plain.model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], expected, rtol=1e-5, atol=1e-6, msg=name)


def test_a_random_crop_or_the_option_makes_every_step_compute_its_features(train):
    for options in ({"random_crop": 1}, {"cache_features": False}):
        _, shown = train(**FROZEN, **options)
        assert sum(shown) == 3 * 40


@pytest.mark.parametrize("distance", ["l1", "l2", "squared_l2", "cosine"])
def test_a_teacher_that_runs_in_every_step_has_no_graph(train, distance):
    trainer, _ = train(random_crop=1, lwf_weight=0.5, lwf_distance=distance, max_steps=2, teacher_seed=3)
    assert all(parameter.grad is None for parameter in trainer.source.parameters())
    assert all(entry["loss_lwf"] > 0 for entry in trainer.state.log_history if "loss_lwf" in entry)


def test_in_bf16_known_features_are_those_of_bf16(train):
    plain, _ = train(dtype=torch.float32, bf16=True, cache_features=False, **FROZEN)
    cached, _ = train(dtype=torch.float32, bf16=True, **FROZEN)
    losses = [[entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (plain, cached)]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


def test_another_run_finds_the_features_of_the_same_weights_and_data(train, tmp_path):
    _, first = train(**FROZEN)
    (file,) = (tmp_path / "features").glob("*.npy")
    _, second = train(**FROZEN)
    assert sum(first) == 40 and sum(second) == 0
    _, flipped = train(**FROZEN, random_flip=True)
    assert sum(flipped) == 80
    # The teacher of a student's own weights shares its features.
    _, shown = train(**WARM_LWF)
    assert sum(shown) == 16 + 16 + 8 + 16 and file.exists()
    assert len(list((tmp_path / "features").glob("*.npy"))) == 2


@pytest.fixture
def cached(tiny, digits, tmp_path):
    """A function (classifier, …) -> the features of ten digits, and how many images had to be looked at."""
    dataset = PixelDataset(digits.select(range(10)), tiny("timm-convnext")[1])

    def find(classifier, fingerprint="ten digits", **options):
        looked = []

        def counting(items):
            looked.append(len(items))
            return collate(items)

        loader = DataLoader(dataset, 4, collate_fn=counting)
        cache = cache_features(
            classifier, loader, tmp_path / "deep" / "features", fingerprint=fingerprint, progress=False, **options
        )
        return cache, sum(looked)

    find.dataset = dataset
    return find


def test_features_are_found_again_by_weights_and_normalisation_but_whatever_the_head(tiny, cached):
    model, processor = tiny("timm-convnext")
    assert cached(PixelClassifier(model, processor))[1] == 10
    assert cached(PixelClassifier(model, processor))[1] == 0
    assert cached(PixelClassifier(model, processor), fingerprint="ten other digits")[1] == 10
    assert cached(PixelClassifier(model, processor), mirrored=True)[1] == 10
    with torch.no_grad():
        model.timm_model.get_classifier().weight.add_(1)
    assert cached(PixelClassifier(model, processor))[1] == 0
    classifier = PixelClassifier(model, processor)
    classifier.mean += 0.1
    assert cached(classifier)[1] == 10
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert cached(PixelClassifier(model, processor))[1] == 10


def test_what_is_kept_is_each_samples_own(tiny, cached):
    classifier = PixelClassifier(*tiny("timm-convnext"))
    cache, _ = cached(classifier, mirrored=True)
    rows, mirrored = torch.tensor([7, 2, 2]), torch.tensor([False, True, False])
    images = torch.stack([as_pixels(cached.dataset[row]["pixel_values"]) for row in rows])
    images[1] = images[1].flip(-1)
    with torch.no_grad():
        torch.testing.assert_close(cache.of(rows, mirrored), classifier.outputs(images).features)


def test_interrupted_computing_leaves_nothing_behind(tiny, cached, tmp_path):
    classifier = PixelClassifier(*tiny("timm-convnext"))
    calls = []

    def breaking(*_):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    handle = classifier.model.register_forward_hook(breaking)
    with pytest.raises(KeyboardInterrupt):
        cached(classifier)
    assert {path.suffix for path in (tmp_path / "deep" / "features").iterdir()} <= {".lock"}
    handle.remove()
    assert cached(classifier)[1] == 10


def test_of_several_that_want_the_same_one_computes(tiny, cached):
    classifier = PixelClassifier(*tiny("timm-convnext"))
    looked = []
    threads = [threading.Thread(target=lambda: looked.append(cached(classifier)[1])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(looked) == [0, 0, 10]


def test_a_data_set_without_a_fingerprint_may_change_its_items(tiny, digit_batch, tmp_path):
    model, processor = tiny("timm-convnext")
    images, labels = digit_batch(8)
    read = []

    class Changing(torch.utils.data.Dataset):
        def __len__(self):
            return len(labels)

        def __getitem__(self, row):
            read.append(row)
            return {"pixel_values": images[row], "labels": int(labels[row])}

    args = RobustTrainingArguments(
        str(tmp_path / "run"), use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, **FROZEN
    )
    trainer = RobustTrainer(model, args, processing_class=processor, train_dataset=Changing())
    looks = len(read)
    trainer.train()
    assert len(read) - looks == 3 + 3 * len(labels)  # two to see that the model takes them, one to tell its size
