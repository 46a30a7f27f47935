"""Read dataclasses of options from a command line, after a file of them if there is one."""

import json
import re
from argparse import SUPPRESS, Action, ArgumentDefaultsHelpFormatter, ArgumentTypeError
from collections.abc import Iterator, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser, TrainingArguments

from ..errors import UsageError
from ..training.arguments import UNSUPPORTED

_INHERITED = "all other parameters of transformers.TrainingArguments"


class _Parser(HfArgumentParser):
    """`HfArgumentParser` whose options stand in the group that their field or their dataclass names.

    What a dataclass inherits from `TrainingArguments` shows with ``--help-all`` only, and what this package refuses never.
    """

    def __init__(self, types: Sequence[Any], program: str, description: str, show_all: bool) -> None:
        self.group_of = {
            option.name: option.metadata.get("group", getattr(kind, "group", None))
            if option.name in _own_names(kind)
            else _INHERITED
            for kind in types
            for option in fields(kind)
        }
        self.groups: dict[str, Any] = {}
        self.action_of: dict[str, Action] = {}
        self.show_all = show_all
        super().__init__(
            types,
            prog=program,
            description=description,
            usage="%(prog)s [options.yaml] [--option value ...]",
            formatter_class=ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self.add_argument("-h", "--help", action="help", help="Show these options and exit.")
        if _INHERITED in self.group_of.values():
            self.add_argument("--help-all", action="help", help="Show those of TrainingArguments as well, and exit.")

    def add_argument(self, *flags: Any, **options: Any) -> Any:
        """Add an option to its group; of a field's metadata, argparse gets what it knows."""
        for name in ("group", "affects", "hidden_from_others"):
            options.pop(name, None)
        name = flags[0].lstrip("-").removeprefix("no_")
        group = self.group_of.get(name)
        if name in UNSUPPORTED or (group == _INHERITED and not self.show_all):
            options["help"] = SUPPRESS
        if group is None:
            return super().add_argument(*flags, **options)
        if group not in self.groups:
            self.groups[group] = self.add_argument_group(group)
        action: Action = self.groups[group].add_argument(*flags, **options)
        return self.action_of.setdefault(action.dest, action)

    def error(self, message: str) -> NoReturn:
        """Refuse a flag as everything else is refused: in one line."""
        raise UsageError(re.sub(r"^argument (--\w+)(/--[\w-]+)?", r"\1", message))


def _own_names(kind: Any) -> set[str]:
    """The fields that a dataclass of options, or a base of it in this package, declares."""
    own = (base for base in kind.__mro__ if not issubclass(TrainingArguments, base))
    return {name for base in own for name in vars(base).get("__annotations__", {})}


def parse_arguments(program: str, types: Sequence[Any], description: str, argv: Sequence[str]) -> tuple[Any, ...]:
    """Read dataclasses of options from a command line, where a YAML or JSON file may come first.

    What the file says takes the place of the options' defaults, so that flags go before it.

    Args:
        program: what it is called, for the help.
        types: the dataclasses. The class attribute ``group``, or a field's metadata of that name, titles them in the help.
        description: of it.
        argv: the arguments.

    Returns:
        An instance of each dataclass.

    Raises:
        UsageError: an unknown option, a file that cannot be read, or a value that an option or a dataclass refuses.
        SystemExit: help was asked for.

    Example:
        >>> from hf_robust_transfer.data import DataArguments
        >>> parse_arguments("evaluate", [DataArguments], "…", ["--dataset_name", "cifar10"])[0].dataset_name
        'cifar10'
    """
    parser = _Parser(types, program, description, show_all="--help-all" in argv)
    argv = list(argv)
    if names_a_file(argv):
        _take_defaults(parser, Path(argv.pop(0)))
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if unknown:
        raise UsageError(f"{unknown[0]} is no option of {program}{_near(unknown[0].lstrip('-'), parser)}")
    return tuple(parsed)


def names_a_file(argv: Sequence[str]) -> bool:
    """Whether a command line begins with a file of options."""
    return bool(argv) and not argv[0].startswith("-") and argv[0].endswith((".yaml", ".yml", ".json"))


def as_flags(argv: Sequence[str]) -> list[str]:
    """A command line with the options of its file, if there is one, as flags: what others can repeat without the file."""
    if not names_a_file(argv):
        return list(argv)
    flags: list[str] = []
    for name, value, text in _options_of_file(Path(argv[0])):
        if value is not None:
            values = text if isinstance(text, list) else [json.dumps(value) if isinstance(value, dict) else text]
            flags += [f"--{name}={values[0]}"] if values[0].startswith("-") else [f"--{name}", *values]
    return [*flags, *argv[1:]]


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings name nothing twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; a key that comes again is an error."""
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key} is given twice")
        return super().construct_mapping(node, deep)


def _options_of_file(file: Path) -> Iterator[tuple[str, Any, Any]]:
    """The options of a YAML or JSON file: name, value, and the value as it is written there."""
    try:
        content = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            values = json.loads(content, object_pairs_hook=_unique)
            texts = json.loads(content, parse_int=str, parse_float=str)
        else:
            values, texts = yaml.load(content, _UniqueKeys), yaml.load(content, yaml.BaseLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{file} cannot be read: {str(error).partition(chr(10))[0]}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{file} must map options to values, like `eps: 8/255`")
    names = [str(name).replace("-", "_") for name in values]
    for name, value, text in zip(names, values.values(), texts.values(), strict=True):
        if names.count(name) > 1:
            raise UsageError(f"{file} cannot be read: {name} is given twice")
        yield name, value, _written(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is given twice")
    return dict(pairs)


def _written(value: Any) -> Any:
    """A value as one writes it behind a flag."""
    if isinstance(value, list):
        return [_written(each) for each in value]
    if isinstance(value, str):  # PyYAML leaves a character that JSON escapes as two surrogates in two
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return json.dumps(value) if isinstance(value, bool) else value


def _take_defaults(parser: _Parser, file: Path) -> None:
    """Make the options of a file the parser's defaults; each goes through what reads its flag's value."""
    for name, value, text in _options_of_file(file):
        if name not in parser.action_of:
            raise UsageError(f"{file}: {name} is no option{_near(name, parser)}")
        if value is None:
            continue
        action = parser.action_of[name]
        several = action.nargs in ("+", "*")
        if isinstance(value, dict) and action.type is str:
            value, text = json.dumps(value), json.dumps(value)
        if isinstance(value, dict) or (isinstance(value, list) and not several):
            raise UsageError(f"{file}: {name} takes one value, not {json.dumps(value)}")
        each = text if isinstance(text, list) else [text]
        if not all(isinstance(one, str) for one in each) or (several and not each):
            raise UsageError(f"{file}: {name} takes plain values, not {json.dumps(value)}")
        try:
            read = [action.type(one) if callable(action.type) else one for one in each]
        except (ValueError, TypeError, OverflowError, ArgumentTypeError) as error:
            raise UsageError(f"{file}: {name} {text} is refused: {error}") from None
        if action.choices is not None and not set(read) <= set(action.choices):
            raise UsageError(f"{file}: {name} {text} is unknown: use {', '.join(map(str, action.choices))}")
        parser.set_defaults(**{name: read if several else read[0]})
        action.required = False


def _near(name: str, parser: _Parser) -> str:
    near = get_close_matches(name.partition("=")[0].replace("-", "_"), parser.group_of, n=1)
    return f": do you mean --{near[0]}?" if near else ", see --help"
