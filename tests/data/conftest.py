"""Digits as files: a parquet folder, and folders of images."""

import pytest


@pytest.fixture
def parquet(digits, tmp_path):
    """A function (split name -> data set) -> a folder of parquet files, as a data set on the Hub has them."""

    def write(**splits):
        folder = tmp_path / "parquet"
        folder.mkdir()
        for name, split in splits.items():
            split.to_parquet(str(folder / f"{name}-00000-of-00001.parquet"))
        return str(folder)

    return write


@pytest.fixture
def folder(digits, tmp_path):
    """A function (name, images per class) -> a folder of PNG files with a subfolder per class."""

    def write(name, counts):
        for label, count in counts.items():
            rows = [row for row, own in enumerate(digits["label"]) if str(own) == label][:count]
            (tmp_path / name / label).mkdir(parents=True)
            for row in rows:
                digits[row]["image"].save(tmp_path / name / label / f"{row}.png")
        return str(tmp_path / name)

    return write
