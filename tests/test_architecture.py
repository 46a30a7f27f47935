"""The picture of the house in `docs/architecture.md` is the house: nothing imports upwards, and nothing grows too long."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "hf_robust_transfer"
PICTURE = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
FOUNDATION = PICTURE.splitlines()[0].split("   ")[0].split()
ORDER = [*FOUNDATION, *(line.split()[0] for line in PICTURE.splitlines()[1:])]
FOLDERS = [REPOSITORY / name for name in ("hf_robust_transfer", "recipes", "tests")]
CODE = [file for folder in FOLDERS for file in sorted(folder.rglob("*.py"))]


def imports(file):
    """(the package or module of the house that a file is in, one that it imports from), also inside functions."""
    own = [*file.relative_to(PACKAGE).parts[:-1], file.stem]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = own[: len(own) - node.level]
            places = [[*base, *node.module.split(".")]] if node.module else [[*base, name.name] for name in node.names]
            yield from ((own[0], place[0]) for place in places if place and place[0] != own[0])


def test_the_picture_shows_every_package_and_module_of_the_foundation():
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert set(FOUNDATION) == modules and set(ORDER) == modules | packages and len(set(ORDER)) == len(ORDER)


def test_nothing_imports_upwards():
    found = {pair for file in PACKAGE.rglob("*.py") if file.parent != PACKAGE for pair in imports(file)}
    assert len(found) > 20  # the parsing sees imports at all
    assert not [(place, above) for place, above in found if ORDER.index(above) >= ORDER.index(place)]


def test_the_foundation_imports_nothing_but_itself_and_without_a_circle():
    needs = {name: {above for _, above in imports(PACKAGE / f"{name}.py")} for name in FOUNDATION}
    assert all(needed <= set(FOUNDATION) for needed in needs.values())
    while needs:
        free = {name for name, needed in needs.items() if not needed & needs.keys()}
        assert free, needs
        needs = {name: needed for name, needed in needs.items() if name not in free}


@pytest.mark.parametrize("file", CODE, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_files_and_functions_are_short(file):
    text = file.read_text(encoding="utf-8")
    most = {"trainer.py": 300}.get(file.name, 250 if "recipes" in file.parts and "tests" not in file.parts else 500)
    assert len(text.splitlines()) <= most
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.body[0].lineno + 1 - len((ast.get_docstring(node) or "").splitlines())
            assert lines <= 70, node.name
