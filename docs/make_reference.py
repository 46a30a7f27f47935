"""Print `docs/reference.md`, made from the code: every command's options, and every public name of the package."""

import contextlib
import inspect
import io
import os
import re
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

# What is printed must not depend on who prints it.
os.environ.update(COLUMNS="100", NO_COLOR="1", HF_HOME="$HF_HOME")

from hf_robust_transfer.cli.main import COMMANDS, run_command

PACKAGES = ("", ".data", ".modeling", ".attacks", ".objectives", ".transfer", ".evaluation", ".hub", ".training")


def reference() -> str:
    """The page, in Markdown."""
    lines = [
        "# Reference",
        "",
        "Made from the code by `make reference`. Options of `transformers.TrainingArguments` are behind `--help-all`.",
        "",
        "## Commands",
    ]
    for command, summary in COMMANDS.items():
        lines += ["", f"### hf-robust-transfer {command}", "", f"{summary[0].upper()}{summary[1:]}.", ""]
        lines += ["```text", help_of(command), "```"]
    lines += ["", "## Python"]
    for package in PACKAGES:
        module = import_module(f"hf_robust_transfer{package}")
        lines += ["", f"### {module.__name__}", "", *(line for name in module.__all__ for line in entry(module, name))]
    return "\n".join(lines) + "\n"


def help_of(command: str) -> str:
    """What ``--help`` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        run_command(command, ["--help"])
    return "\n".join(line.rstrip() for line in printed.getvalue().strip().splitlines())


def entry(module: ModuleType, name: str) -> Iterator[str]:
    """One name: how it is called, and the first paragraph of its docstring, or where it is told."""
    value = getattr(module, name)
    if module.__name__.count(".") and getattr(import_module("hf_robust_transfer"), name, None) is value:
        yield f"- `{name}`: see [hf_robust_transfer](#hf_robust_transfer)"
    elif inspect.isclass(value) or inspect.isroutine(value):
        summary = (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")
        yield f"- `{name}{signature(value)}`<br>{summary.replace('``', '`')}"
    elif isinstance(value, dict):
        yield f"- `{name}`: {', '.join(f'`{key}`' for key in value)}"
    else:
        yield f"- `{name} = {without_modules(repr(value))}`"


def signature(value: Any) -> str:
    """The parameters of a function or class, without the modules that their types are from."""
    if inspect.isclass(value) and issubclass(value, Exception):
        return ""
    if inspect.isclass(value) and len(inspect.signature(value).parameters) > 20:
        return "(…)"  # options, as the commands have them
    return without_modules(str(inspect.signature(value)).replace("'", ""))


def without_modules(text: str) -> str:
    """The names of classes alone: `Tensor` for `torch.Tensor`."""
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", text)


if __name__ == "__main__":
    print(reference(), end="")
