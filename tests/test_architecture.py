"""The picture of the house in `docs/architecture.md` is the house: nothing imports upwards, and nothing grows too long."""

import ast
from pathlib import Path

import pytest

from hf_robust_transfer import run_folder

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "hf_robust_transfer"
PICTURE = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
FOUNDATION = PICTURE.splitlines()[0].split("   ")[0].split()
ORDER = [*FOUNDATION, *(line.split()[0] for line in PICTURE.splitlines()[1:])]
FOLDERS = [REPOSITORY / name for name in ("hf_robust_transfer", "recipes", "tests")]
CODE = [file for folder in FOLDERS for file in sorted(folder.rglob("*.py"))]


def imports(file):
    """(the package or module of the house that a file is in, one that it imports from), also inside functions."""
    own = [PACKAGE.name, *file.relative_to(PACKAGE).parts[:-1], file.stem]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            places = [name.name.split(".") for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = (
                [*own[: len(own) - node.level], *(node.module or "").split(".")] if node.level else node.module.split(".")
            )
            base = [part for part in base if part]
            places = [[*base, name.name] for name in node.names] if base == [PACKAGE.name] else [base]
        else:
            continue
        yield from ((own[1], place[1]) for place in places if place[0] == PACKAGE.name and place[1:2] not in ([], own[1:2]))


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


def test_one_module_knows_the_names_of_the_files_in_a_run_s_folder():
    names = {value for name, value in vars(run_folder).items() if name.endswith("_NAME")} - {run_folder.LOCK_NAME}
    assert len(names) > 10
    for file in [file for file in CODE if "tests" not in file.parts and file != Path(run_folder.__file__)]:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value in names]
        assert not {node.value for node in texts}, file
