"""Whoever has only the wheel can do all that the README shows: no checkout is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_wheel_alone_does_everything(tmp_path, digits):
    site, work = tmp_path / "site", tmp_path / "work"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, REPOSITORY], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    work.mkdir()
    for label in ("5", "6"):
        (work / "photos" / label).mkdir(parents=True)
        for row in (row for row in range(len(digits)) if digits[row]["label"] == int(label)):
            digits[row]["image"].save(work / "photos" / label / f"{row}.png")
    # A site folder before all others, where this package's wheel goes before an editable installation.
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}

    def run(*arguments):
        command = [sys.executable, site / "bin" / "hf-robust-transfer", *arguments]
        done = subprocess.run(
            list(map(str, command)), cwd=work, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    located = subprocess.run(
        [sys.executable, "-c", "import hf_robust_transfer as package; print(package.__file__)"],
        cwd=work, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert located.stdout.startswith(str(site))
    assert "finetune" in run("--help") and "--transfer" in run("finetune", "--help")
    assert "natural source" in run("quickstart", "--use_cpu")
    run(
        *("finetune", "--model_name_or_path", "robust-tiny", "--train_dir", "photos", "--eps", "0.1"),
        *("--num_train_epochs", "1", "--per_device_train_batch_size", "8", "--output_dir", "outputs/mine", "--use_cpu"),
    )
    assert json.loads((work / "outputs/mine/config.json").read_text())["id2label"] == {"0": "5", "1": "6"}
    run(
        *("evaluate", "--model_name_or_path", "outputs/mine", "--attacks", "fgsm", "pgd-5", "--max_eval_samples", "8"),
        *("--self_check_samples", "0", "--curve_samples", "0", "--use_cpu"),
    )
    shown = run("publish", "--folder", "outputs/mine", "--repo_id", "me/mine", "--dry_run")
    assert "robustness.json" in shown and "README.md" in shown and "Nothing was uploaded" in shown
