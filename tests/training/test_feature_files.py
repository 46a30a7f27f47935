"""The cache of features: its limit, what is spared, and the command that shows it."""

import os

import pytest
import torch
from torch.utils.data import DataLoader

from hf_robust_transfer import PixelClassifier, RobustTrainingArguments
from hf_robust_transfer.cli import cache as command
from hf_robust_transfer.data import collate
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.training.feature_files import feature_files, hold, parse_size, trim
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
    assert [file.path.stem for file in feature_files(folder)] == ["0", "1", "2", "3"]
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
