"""Functions that a user names (``module:function``, ``file.py:function``), and their options, typed by their signature."""

import difflib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import isfinite
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import UsageError

Count = Annotated[int, "at least 1"]
"""An option that is a whole number of at least 1."""

Weight = Annotated[float, "at least 0"]
"""An option that is a number of at least 0."""

Share = Annotated[float, "from 0 to 1"]
"""An option that is a number from 0 to 1."""

Length = Annotated[float, "above 0"]
"""An option that is a positive number, or a fraction like 8/255."""


@dataclass(frozen=True)
class Option:
    """An option of a function: a keyword-only parameter with a default, or any parameter of a class.

    Args:
        name: the parameter's.
        kind: its annotation, or where it has none the type of its default.
        default: what it is where nothing else is asked for; of a class, `inspect.Parameter.empty` where it must be given.
    """

    name: str
    kind: Any
    default: Any

    def read(self, text: str) -> Any:
        """The value that a text stands for, by the option's type: int, float, bool, str, literals, or one of them or None.

        Raises:
            UsageError: the text does not fit the type; the message says what would.

        Example:
            >>> Option("step_size", float | None, None).read("2/255") == 2 / 255
            True
        """
        kinds = _alternatives(self.kind)
        choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
        if NoneType in kinds and text.lower() == "none":
            return None
        if choices:
            for choice in choices:
                if text == str(choice):
                    return choice
            if not any(kind in _READERS for kind in kinds):
                raise UsageError(f"{self.name}={text!r} is unknown: use {', '.join(map(str, choices))}")
        for kind in kinds:
            if kind in _READERS:
                try:
                    return _READERS[kind](text)
                except (ValueError, ZeroDivisionError):
                    raise UsageError(f"{self.name}={text!r} {_WANTED[kind]}") from None
        raise UsageError(f"{self.name} is of a type that no text stands for: it can be set from Python only")


def options_of(function: Callable[..., Any], *, but: Collection[str] = ()) -> dict[str, Option]:
    """The options of a function by their names: its keyword-only parameters that have a default; all those of a class.

    Args:
        function: any function, a class (for its constructor) or a `functools.partial`.
        but: names of parameters that are no options.

    Example:
        >>> def attack(images, *, steps: int = 20, seed: int = 0): ...
        >>> options_of(attack, but=["seed"])
        {'steps': Option(name='steps', kind=<class 'int'>, default=20)}
    """
    of_class = inspect.isclass(function)
    hints = get_type_hints(function.__init__ if of_class else getattr(function, "func", function), include_extras=True)
    return {
        name: Option(name, hints.get(name, type(parameter.default)), parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in but
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and (of_class or (parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty))
    }


def read_options(options: Mapping[str, Option], given: Mapping[str, str], of: str) -> dict[str, Any]:
    """All options of a function by their names, with the values that were given as text and the others' defaults.

    Args:
        options: as `options_of` finds them.
        given: values by an option's name.
        of: whose options they are, for the error's message.

    Raises:
        UsageError: an option that is not there, or a value that does not fit it.

    Example:
        >>> read_options({"steps": Option("steps", int, 20)}, {"steps": "40"}, "pgd")
        {'steps': 40}
    """
    for name in given:
        if name not in options:
            others = f", only {', '.join(options)}" if options else " and no others"
            raise UsageError(f"{of} has no option {name!r}{others}")
    try:
        return {name: option.read(given[name]) if name in given else option.default for name, option in options.items()}
    except UsageError as error:
        raise UsageError(f"{of}: {error}") from None


def function_named(text: str, what: str) -> Callable[..., Any]:
    """Import a function of a user's own module; modules in the working directory are found, too.

    Args:
        text: ``module:function``, where the module may be dotted, or ``file.py:function``.
        what: what the function is to be, for the error's message.

    Raises:
        UsageError: there is no such module or function. What the module itself raises on import passes through.

    Example:
        >>> function_named("math:sqrt", "distance")(9.0)
        3.0
    """
    module_name, _, name = text.rpartition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = _file_module(module_name) if module_name.endswith(".py") else importlib.import_module(module_name)
    except FileNotFoundError:
        raise UsageError(f"{what} {text!r}: there is no file {module_name}") from None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UsageError(
            f"{what} {text!r}: there is no module {error.name!r}; it must lie in the working directory or be installed"
        ) from None
    except (ValueError, TypeError):
        raise UsageError(f"{what} {text!r} is not of the form module:function") from None
    function = getattr(module, name, None)
    if not callable(function):
        there = [each for each, value in vars(module).items() if callable(value)]
        raise UsageError(f"{what} {text!r}: {module_name} has no function {name!r}{similar(name, there)}")
    return function


@cache
def _file_module(file: str) -> ModuleType:
    path = Path(file).resolve(strict=True)
    spec = importlib.util.spec_from_file_location(f"{path.stem}_of_a_file", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def choose_function(name: str, known: Mapping[str, Callable[..., Any]], flag: str) -> Callable[..., Any]:
    """The function of a name: one that is known, or a user's own as for `function_named`.

    Args:
        name: what was asked for.
        known: functions by their names.
        flag: the option that asked, for errors.

    Raises:
        UsageError: there is no such function.
    """
    if name in known:
        return known[name]
    if ":" not in name:
        yours = "or a function of yours as module:function or file.py:function"
        raise UsageError(f"{flag} {name} is unknown: use {choices(known)}, {yours}")
    return function_named(name, flag)


def registered(choice: Any, known: MutableMapping[str, Callable[..., Any]], flag: str) -> str:
    """The name of a choice that is a name or a function; a user's function is known by its own name from then on.

    Raises:
        UsageError: an unknown name, or a function with the name of one of this package's.

    Example:
        >>> distances = {}
        >>> def largest(student, teacher):
        ...     return (student - teacher).abs().amax(1)
        >>> registered(largest, distances, "--lwf_distance"), list(distances)
        ('largest', ['largest'])
    """
    if not callable(choice):
        choose_function(choice, known, flag)
        return str(choice)
    for name, function in known.items():
        if function is choice:
            return name
    name = str(unwrapped(choice).__name__)
    if getattr(known.get(name), "__module__", "").startswith(f"{__package__}."):
        raise UsageError(f"{flag} {name} is the name of one of this package's functions: give yours another")
    known[name] = choice
    return name


def unwrapped(function: Any) -> Any:
    """The function inside a `functools.partial`, or the function itself."""
    return getattr(function, "func", function)


def choices(names: Collection[str]) -> str:
    """Names as a text.

    Example:
        >>> choices(["l1", "l2", "cosine"])
        'l1, l2 or cosine'
    """
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def similar(name: str, there: Collection[str]) -> str:
    """The end of a message about an unknown name: which names there are that look like it, if any."""
    folded = {each.lower(): each for each in there}
    close = difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.5)
    return f": did you mean {', '.join(folded[each] for each in close)}?" if close else ""


def _alternatives(kind: Any) -> list[Any]:
    if get_origin(kind) in (Union, UnionType):
        return [each for part in get_args(kind) for each in _alternatives(part)]
    return [kind]


def _number(text: str) -> float:
    number = float(Fraction(text.replace(" ", "")))
    if not isfinite(number):
        raise ValueError
    return number


def _length(text: str) -> float:
    if (number := _number(text)) <= 0:
        raise ValueError
    return number


def _weight(text: str) -> float:
    if (number := _number(text)) < 0:
        raise ValueError
    return number


def _share(text: str) -> float:
    if (number := _weight(text)) > 1:
        raise ValueError
    return number


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError
    return int(text)


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


_READERS: dict[Any, Callable[[str], Any]] = {
    Count: _count,
    Length: _length,
    Share: _share,
    Weight: _weight,
    bool: _truth,
    int: int,
    float: _number,
    str: str,
}
_WANTED = {
    Count: "must be a whole number of at least 1",
    Weight: "must be a number of at least 0",
    Share: "must be a number from 0 to 1",
    Length: "is not a number above 0: write it like 8/255 or 0.031",
    bool: "must be true or false",
    int: "must be a whole number",
    float: "is not a number: write it like 8/255 or 0.031",
}
