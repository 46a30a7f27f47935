"""Bad input of every kind ends in one line that says what is wrong, and writes nothing: the rows of `rows_*.py`.

How rows are written is said in `row.py`.
"""

import hashlib
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from data_folders import write_splits
from row import GOOD, Row, arguments, filled

from hf_robust_transfer.cli.main import COMMANDS, run_command
from hf_robust_transfer.errors import UsageError

AREAS = sorted(file.stem for file in Path(__file__).parent.glob("rows_*.py"))
ROWS = [
    pytest.param(row, id=f"{area.removeprefix('rows_')}: {row.name}")
    for area in AREAS
    for row in importlib.import_module(area).ROWS
]


@pytest.fixture(scope="session")
def folders(tmp_path_factory, digits, tiny):
    """Shared folders that rows may read: ``images`` (parquet: 48 digits to train on, 32 to test on), ``model`` (a
    checkpoint for them), and ``weights`` (the same without a configuration, as from elsewhere, in ``weights.pt``)."""
    images, model_folder, weights = (tmp_path_factory.mktemp(name) for name in ("images", "model", "weights"))
    write_splits(images, digits, train=range(48), test=range(48, 80))
    model, processor = tiny("timm-convnext")
    model.config.robust_training = {"norm": "linf", "eps": "8/255", "data": {"dataset_name": str(images)}}
    model.save_pretrained(model_folder)
    processor.save_pretrained(model_folder)
    torch.save(model.timm_model.state_dict(), weights / "weights.pt")
    return {"images": images, "model": model_folder, "weights": weights}


def contents(*folders):
    """All that is in some folders: places, kinds and bytes, and of files the times."""
    found = {}
    for path in (each for folder in folders for each in [folder, *sorted(folder.rglob("*"))]):
        status = path.lstat()
        readable = path.is_file() and os.access(path, os.R_OK)
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if readable and status.st_size < 10**7 else None
        found[str(path)] = (status.st_mode, path.is_dir() or status.st_mtime_ns, digest)
    return found


def prepared(row, here, folders):
    """Fill the row's own folder; what is now in all folders."""
    if row.make is not None:
        row.make(here, folders)
    return contents(here, *folders.values())


def words_of(row, places):
    return [filled(each, places) for each in ((row.words,) if isinstance(row.words, str) else row.words)]


@pytest.mark.parametrize("row", ROWS)
def test_bad_input_is_one_line_and_writes_nothing(row: Row, folders, tmp_path, monkeypatch, capsys):
    before = prepared(row, tmp_path, folders)
    monkeypatch.chdir(tmp_path)
    if callable(row.act):
        with pytest.raises(UsageError) as refused:
            row.act(tmp_path, folders)
        error = f"error: {refused.value}"
    else:
        command, *argv = arguments(row.act, folders)
        assert command in COMMANDS
        with pytest.raises(SystemExit) as stopped:
            run_command(command, argv)
        error = str(stopped.value.code)  # what Python prints before it exits with status 1
    assert error.startswith("error: ") and "\n" not in error
    for words in words_of(row, folders):
        assert words in error
    assert contents(tmp_path, *folders.values()) == before
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err


@pytest.mark.parametrize("command", [name for name in GOOD if name in COMMANDS])
def test_the_same_command_without_the_fault_runs(command, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {**folders, "model": Path(shutil.copytree(folders["model"], tmp_path / "model"))}
    before = contents(tmp_path)
    run_command(command, arguments(GOOD[command], places))
    assert contents(tmp_path).keys() > before.keys()


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if isinstance(row.values[0].act, str)])
def test_bad_input_is_one_line_and_status_1_of_a_real_process(row: Row, folders, tmp_path):
    before = prepared(row, tmp_path, folders)
    done = subprocess.run(
        [sys.executable, "-m", "hf_robust_transfer.cli", *arguments(str(row.act), folders)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    for words in words_of(row, folders):
        assert words in error
    assert contents(tmp_path, *folders.values()) == before
