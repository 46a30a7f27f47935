"""The reference is what the code says."""

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_reference_is_up_to_date():
    made = subprocess.run([sys.executable, DOCS / "make_reference.py"], capture_output=True, text=True, check=True).stdout
    assert made == (DOCS / "reference.md").read_text(encoding="utf-8"), "run `make reference`"
