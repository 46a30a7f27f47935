"""The table of sources in the documentation is made from the sources."""

import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_table_of_sources_is_up_to_date():
    made = runpy.run_path(str(DOCS / "make_sources.py"))
    _, table, _ = made["parts"](made["PAGE"].read_text(encoding="utf-8"))
    assert table.strip() == made["table"]().strip(), "run `make reference`"
