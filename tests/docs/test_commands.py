"""The commands of the pages run as they are written, one after the other, in a folder as a reader has it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import DIGITS

from hf_robust_transfer.cli.main import run_command
from hf_robust_transfer.modeling import create_model

REPOSITORY = Path(__file__).resolve().parents[2]
HOW_TO = REPOSITORY / "docs" / "how-to"
# many-gpus.md needs GPUs; those of docs/results need data and sources of hours.
NAMES = (
    "transfer",
    "distill",
    "photographs",
    "interpolate",
    "evaluate",
    "publish",
    "export",
    "sources",
    "import",
    "extend",
)
PAGES = [REPOSITORY / "README.md", *(HOW_TO / f"{name}.md" for name in NAMES)]


def commands(page):
    """The page's commands, without those that install this package and run its tests."""
    text = "".join(re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(("make ", "pip ")))


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """What `make quickstart` leaves in outputs/quickstart."""
    folder = tmp_path_factory.mktemp("outputs") / "quickstart"
    run_command("quickstart", ["--output_dir", str(folder), "--use_cpu"])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run_as_they_are_written(page, quickstart, digits, tmp_path):
    (tmp_path / "outputs").mkdir()
    for name in ("quickstart", "source", "mine"):
        shutil.copytree(quickstart, tmp_path / "outputs" / name)
    (tmp_path / "recipes").symlink_to(REPOSITORY / "recipes")
    for row, sample in enumerate(digits):
        split = "train" if row < 150 else "test"
        for place in ("my_images", f"photos/{split}", f"my/cifar10/{split}"):
            file = tmp_path / place / str(sample["label"]) / f"{row}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            sample["image"].save(file)
    text = page.read_text(encoding="utf-8")
    for file, code in re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", text, re.S):
        (tmp_path / file).write_text(code)
    if "robust.pt" in text:
        model, _ = create_model("cifar_wrn", id2label=DIGITS, model_args={"depth": 34, "width": 10})
        torch.save(model.timm_model.state_dict(), tmp_path / "robust.pt")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "HF_HUB_OFFLINE": "1",
    }
    script = commands(page)
    # What the page makes anew is not there beforehand.
    for name in re.findall(r"--output_dir outputs/(\w+)", script):
        shutil.rmtree(tmp_path / "outputs" / name, ignore_errors=True)
    for command in re.sub(r"\\\n\s*", "", script).splitlines():
        done = subprocess.run(
            ["bash", "-euc", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
