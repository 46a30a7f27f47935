"""What README and docs show: their commands are read by the commands' own parsers, their Python runs, their links exist."""

import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_robust_transfer.cli.main import COMMANDS

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md")), REPOSITORY / "recipes/reproduce/README.md"]


def blocks(page, language):
    """The contents of a page's code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def shown_commands():
    """(page, command, arguments) of every command of this package in a bash block, by whatever it is started."""
    for page in (page for page in PAGES if page.name != "extend.md"):  # whose lines tests/docs runs
        for line in "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for place, word in enumerate(words):
                name = None
                if word == "hf-robust-transfer":
                    place += 1
                    name = words[place]
                elif match := re.fullmatch(r"recipes/(\w+)\.py|hf_robust_transfer\.cli\.(\w+)", word):
                    name = (match[1] or match[2]).replace("_", "-")
                if name in COMMANDS:
                    yield pytest.param(name, words[place + 1 :], id=f"{page.name}: {name} {len(words)}")
                    break


class Parsed(Exception):
    """The parser took the arguments."""


@pytest.mark.parametrize(("name", "argv"), list(shown_commands()))
def test_every_command_that_is_shown_is_understood_by_its_parser(name, argv, monkeypatch, tmp_path):
    if any(word.endswith(".yaml") for word in argv[:1]):
        (tmp_path / argv[0]).write_text("{}")
    monkeypatch.chdir(tmp_path)
    command = import_module(f"hf_robust_transfer.cli.{name.replace('-', '_')}")
    parse = command.parse_arguments

    def parse_only(*args):
        parse(*args)
        raise Parsed

    monkeypatch.setattr(command, "parse_arguments", parse_only)
    with pytest.raises(Parsed):
        command.main(argv)


def test_no_two_commands_write_into_one_folder():
    """But for the benchmark's and the reproduction's, whose folders hold several runs."""
    folders = [
        argv[argv.index("--output_dir") + 1] for _, argv in (p.values for p in shown_commands()) if "--output_dir" in argv
    ]
    pages = [page for page in PAGES if page.parent.name != "reproduce"]
    python = [
        name for page in pages for block in blocks(page, "python") for name in re.findall(r'Arguments\("([^"]+)"', block)
    ]
    twice = {name for name in [*folders, *python] if [*folders, *python].count(name) > 1}
    assert twice <= {"outputs/mine"}  # the README's transfer, told again in its how-to
    assert "outputs/quickstart" not in {*folders, *python}


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "card" not in page.name], ids=lambda page: str(page.relative_to(REPOSITORY))
)
def test_links_and_pictures_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text):
        assert "://" in target or (page.parent / target).exists(), target


def test_the_readme_is_read_in_three_minutes():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 90 and len(text.split()) <= 1100


@pytest.fixture
def my_images(digits, tmp_path):
    """Sixty digits in a folder ``my_images`` with a subfolder per class."""
    for row, sample in enumerate(digits.select(range(60))):
        file = tmp_path / "my_images" / str(sample["label"]) / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image: Image.Image = sample["image"]
        image.save(file)
    return tmp_path / "my_images"


def test_the_readmes_python_runs(tiny, my_images, tmp_path, monkeypatch, capsys):
    model, processor = tiny("timm-convnext")
    for part in (model, processor):
        part.save_pretrained(tmp_path / "outputs" / "quickstart")
    (block,) = blocks(REPOSITORY / "README.md", "python")
    shown = block[: block.index("trainer.train()")].splitlines()
    (start,) = (number for number, line in enumerate(shown) if "= load_dataset(" in line)
    assert len(shown[start:]) < 6  # with the call of train, six at most from the data to a robust model
    monkeypatch.chdir(tmp_path)
    exec(block, {"__name__": "__main__"})
    assert "pgd-20" in capsys.readouterr().out


def test_a_part_of_a_stream_is_kept_as_the_page_on_data_shows(my_images, monkeypatch):
    monkeypatch.chdir(my_images.parent)
    (block,) = blocks(REPOSITORY / "docs" / "how-to" / "data.md", "python")
    names: dict[str, Any] = {}
    exec(block, names)
    assert len(names["images"]) == 60 and names["images"].features["label"].names == [str(digit) for digit in range(10)]
    assert isinstance(names["images"][0]["image"], Image.Image)


def test_the_python_of_the_how_to_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in blocks(REPOSITORY / "docs" / "how-to" / "python.md", "python"):
        exec(block, {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert "{'eval_accuracy': 0." in printed and "'eval_robust_accuracy': 0." in printed and "'score': " in printed
