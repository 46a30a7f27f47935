"""The cache of features: its limit, what is spared, and the command that shows it."""

import os
import resource

import pytest
import torch
from torch.utils.data import DataLoader

from hf_robust_transfer import PixelClassifier, RobustTrainingArguments
from hf_robust_transfer.cache_folder import cached_files, hold, parse_size, trim
from hf_robust_transfer.cli import cache as command
from hf_robust_transfer.data import collate
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.training.known_features import cache_features


@pytest.fixture
def folder(tmp_path):
    """Four files of 1000 bytes, used one after the other."""
    for number in range(4):
        (tmp_path / f"{number}.npy").write_bytes(bytes(1000))
        os.utime(tmp_path / f"{number}.npy", (number, number))
    return tmp_path


def names(folder):
    return sorted(path.stem for path in folder.glob("*.npy"))


def test_the_least_recently_used_go_first_and_only_as_many_as_needed(folder):
    assert [file.path.stem for file in cached_files(folder)] == ["0", "1", "2", "3"]
    assert trim(folder, 4000) == [] and names(folder) == ["0", "1", "2", "3"]
    assert [file.path.stem for file in trim(folder, 2500)] == ["0", "1"]
    assert names(folder) == ["2", "3"]


def test_a_file_in_use_stays_and_counts_as_used_last(folder):
    with hold(folder / "0.npy"):
        trim(folder, 0)
        assert names(folder) == ["0"]
    trim(folder, 0)
    assert names(folder) == []


def test_computing_features_beyond_the_limit_deletes_those_of_others(tiny, folder):
    classifier = PixelClassifier(*tiny("timm-convnext"))
    loader = DataLoader([{"pixel_values": torch.rand(3, 8, 8)} for _ in range(4)], 2, collate_fn=collate)
    kept = cache_features(classifier, loader, folder, fingerprint="a", progress=False, limit=1500)
    assert len(names(folder)) == 2 and "3" in names(folder)
    assert kept.of(torch.tensor([1])).shape == (1, 16)
    again = cache_features(classifier, loader, folder, fingerprint="b", progress=False, limit=0)
    assert len(names(folder)) == 2  # both are in use
    del kept, again
    assert len(trim(folder, 0)) == 2


@pytest.fixture
def compute(tiny, tmp_path):
    """A function (count, **options) -> the features of so many images, and how many images had to be looked at."""
    torch.manual_seed(0)
    items = [{"pixel_values": torch.rand(3, 8, 8)} for _ in range(200)]
    classifier = PixelClassifier(*tiny("timm-convnext"))

    def run(count, **options):
        looked = []

        def counting(batch):
            looked.append(len(batch))
            return collate(batch)

        loader = DataLoader(items[:count], 50, collate_fn=counting)
        cache = cache_features(classifier, loader, tmp_path / "kept", fingerprint="f", progress=False, **options)
        return cache.of(torch.arange(count)).clone(), sum(looked)

    return run


DAMAGE = {
    "cut short": lambda content: content[: len(content) // 2],
    "cut by a byte": lambda content: content[:-1],
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "one bit": lambda content: content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
    "one bit of the header": lambda content: content[:60] + bytes([content[60] ^ 1]) + content[61:],
    "a page of the web": lambda content: b"<!DOCTYPE html>" * 300,
    "longer": lambda content: content + b"more",
}


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_made_anew(compute, tmp_path, damage, mirrored):
    expected, looked = compute(60, mirrored=mirrored)
    assert looked == 60 and compute(60, mirrored=mirrored)[1] == 0
    (file,) = (tmp_path / "kept").glob("*.npy")
    whole = file.read_bytes()
    file.write_bytes(DAMAGE[damage](whole))
    found, looked = compute(60, mirrored=mirrored)
    assert looked == 60 and torch.equal(found, expected) and file.read_bytes() == whole
    assert compute(60, mirrored=mirrored)[1] == 0


def test_a_file_of_fewer_images_is_not_taken_for_that_of_more(compute):
    assert compute(60)[1] == 60
    found, looked = compute(80)
    assert looked == 80 and len(found) == 80


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_disk_that_is_full_is_an_error_and_leaves_no_file(compute, tmp_path, mirrored):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, before[1]))  # as small as a disk can be made without mounting one
    try:
        with pytest.raises(
            UsageError, match=r"--feature_cache_dir .*kept: features cannot be kept there \(File too large\)"
        ):
            compute(200, mirrored=mirrored)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [file for file in (tmp_path / "kept").iterdir() if file.suffix != ".lock"]
    assert compute(200, mirrored=mirrored)[1] == 200


def test_features_that_are_no_numbers_are_refused(tiny, tmp_path):
    classifier = PixelClassifier(*tiny("timm-convnext"))
    classifier.model.timm_model.stem[0].weight.data[0] = float("nan")
    loader = DataLoader([{"pixel_values": torch.rand(3, 8, 8)} for _ in range(4)], 2, collate_fn=collate)
    with pytest.raises(UsageError, match="features of the images 0 to 1 are not finite"):
        cache_features(classifier, loader, tmp_path, fingerprint="f", progress=False)
    assert names(tmp_path) == []


def test_the_command_lists_limits_and_clears(folder, capsys):
    command.main(["--feature_cache_dir", str(folder)])
    assert "0.0 MB in 4 files" in capsys.readouterr().out
    command.main(["--feature_cache_dir", str(folder), "--limit", "2KB"])
    assert names(folder) == ["2", "3"] and "deleted 2 files" in capsys.readouterr().out
    command.main(["--feature_cache_dir", str(folder), "--clear"])
    assert names(folder) == []
    command.main(["--feature_cache_dir", str(folder / "nowhere")])


def test_sizes_are_read_and_others_refused(tmp_path):
    assert [parse_size(text, "--limit") for text in ("0", "7B", "20GB", "0.5 tb")] == [0, 7, 20e9, 0.5e12]
    for text in ("much", "-1GB", "1XB"):
        with pytest.raises(UsageError, match=r"--feature_cache_limit .* is not a size: write it like 500MB or 20GB"):
            RobustTrainingArguments(str(tmp_path), feature_cache_limit=text)
