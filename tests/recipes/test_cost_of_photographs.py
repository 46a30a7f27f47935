"""The measurement of transfers to photographs, on a network so small that only its form can be right."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from recipes.benchmark.photographs import CLASSES, METHODS, PhotographsArguments, decoding, make_photographs, transfer

SMALL = {"image_size": 8, "images": 12, "batch_size": 4, "steps": 1, "epochs": 1}
TINY = '{"patch_size": 1, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}'


def test_photographs_are_made_alike_and_of_all_classes(tmp_path):
    for name in ("one", "two"):
        make_photographs(tmp_path / name, 12)
    one, two = (sorted((tmp_path / name).rglob("*.jpg")) for name in ("one", "two"))
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]
    assert len({file.read_bytes() for file in one}) == 12 and {file.parent.name for file in one} == set(CLASSES)
    assert {Image.open(file).size for file in one} == {(500, 375)}


@pytest.mark.slow
def test_what_is_measured_of_a_transfer_and_of_decoding(tmp_path):
    make_photographs(tmp_path, 12)
    args = PhotographsArguments(model_args=TINY, **SMALL)
    lines = [transfer(args, str(tmp_path), "convnext_tiny", method) for method in ("frozen", "lwf")]
    assert {"features_images_per_second", "head_seconds", "peak_memory_mib"} < lines[0].keys()
    assert lines[1]["images_per_second"] == pytest.approx(4 / lines[1]["step_seconds"])
    assert all(value > 0 for line in lines for key, value in line.items() if "peak" not in key and key != "line")
    rates = decoding(args, str(tmp_path))
    assert {"decoding, resized, 1 thread", "decoding, random_resized_crop, 1 thread"} == {rate["line"] for rate in rates}
    assert torch.get_num_threads() == 1


@pytest.mark.slow
def test_each_line_is_measured_in_a_process_of_its_own_and_written(tmp_path):
    output = tmp_path / "photographs.json"
    small = [text for name, value in SMALL.items() for text in (f"--{name}", str(value))]
    of = ["--architectures", "convnext_tiny", "--model_args", TINY, *small]
    done = subprocess.run(
        [sys.executable, "-m", "recipes.benchmark.photographs", *of, "--output", str(output)],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    names = [line["line"] for line in json.loads(output.read_text())["lines"]]
    assert [name for name in names if "convnext" in name] == [f"convnext_tiny, {method}" for method in METHODS]
