"""The benchmark, on a model and images so small that only its form can be right."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "benchmark.py"


@pytest.fixture(scope="module")
def inputs(tiny, digits, tmp_path_factory):
    """Arguments that name a tiny checkpoint and a folder of digits."""
    folder = tmp_path_factory.mktemp("benchmark")
    model, processor = tiny("timm-convnext")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    for name, rows in (("train", range(40)), ("test", range(40, 60))):
        (folder / "data").mkdir(exist_ok=True)
        digits.select(rows).to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    model, data = str(folder / "model"), str(folder / "data")
    return [
        *("--model_name_or_path", model, "--natural_model_name_or_path", model),
        *("--dataset_name", data, "--transfer_dataset_name", data),
    ]


QUICK = ["pgd_float32", "evaluation", "lwf_step"]
OTHERS = ["pgd_low", "evaluation_natural", "autoattack", "training_step", "training_throughput", "frozen_transfer"]


@pytest.mark.slow
@pytest.mark.parametrize("rows", [QUICK, [*OTHERS, "import", "memory"]])
def test_each_line_says_what_was_compared_and_is_written_at_once(inputs, tmp_path, rows):
    output = tmp_path / "figures" / "benchmark.json"
    small = ["--samples", "8", "--batch_size", "4", "--rounds", "1", "--epochs", "1", "--autoattack_samples", "1"]
    done = subprocess.run(
        [sys.executable, str(RECIPE), *inputs, *small, "--output", str(output), "--rows", *rows],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text())
    assert document["hardware"]["cores"] > 0 and document["versions"]["torch"] == torch.__version__.split("+")[0]
    lines = document["rows"]
    assert len(lines) >= len(rows)
    for line in lines:
        assert {"name", "ratio", "target", "met", "ours", "peer", "peer_name", "unit"} <= line.keys()
        bound = float(line["target"].split()[1])
        assert line["met"] == (line["ratio"] >= bound if line["target"].startswith(">=") else line["ratio"] <= bound)
        if "difference" in line["name"]:
            assert line["ratio"] == abs(line["ours"] - line["peer"])
        elif "import" not in line["name"] and "PGD-10 training" not in line["name"]:
            assert line["ratio"] == pytest.approx(line["ours"] / line["peer"]) and line["ours"] > 0
        assert line["name"] in done.stdout
    for line in lines:
        if line["name"].startswith("robust-accuracy evaluation") and "difference" not in line["name"]:
            assert line["robust_accuracy"].keys() == {"ours", *line["all_peers"]} and "foolbox" in line["all_peers"]
    # torchattacks is no dependency.
    assert "pgd_float32" not in rows or importlib.util.find_spec("torchattacks") or "(foolbox)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "pgd"], "--rows pgd: there is no such line, only pgd_low, pgd_float32"),
        (["--samples", "0"], "--samples 0 must be at least 1"),
        ([], "--model_name_or_path and --dataset_name are needed"),
    ],
)
def test_bad_input_is_one_line(error_of, arguments, message):
    assert message in error_of("benchmark.py", *arguments)
