"""Functions that a user names, and options whose types their signatures tell."""

import sys
from functools import partial
from typing import Literal, Optional, Union

import pytest

from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.functions import Count, Length, Option, function_named, options_of, read_options


def search(
    images,
    *,
    steps: int = 3,
    rate: float = 0.5,
    decay=0.9,
    nesterov: bool = False,
    name: str = "plain",
    start: float | None = None,
    kind: Literal["a", "b"] = "a",
    old: Optional[Union[Literal["x"], Literal["y"]]] = None,  # noqa: UP007, UP045
    draws: Count = 1,
    radius: Length = 0.1,
    module: dict | None = None,
    seed: int = 0,
    needed,
):
    """A function with an option of every type."""


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("steps", "-7", -7),
        ("rate", "8/255", 8 / 255),
        ("rate", "1e-3", 0.001),
        ("decay", "2", 2.0),
        ("nesterov", "true", True),
        ("name", "1", "1"),
        ("start", "none", None),
        ("start", "-1", -1.0),
        ("kind", "b", "b"),
        ("old", "y", "y"),
        ("draws", "4", 4),
        ("radius", "2/255", 2 / 255),
    ],
)
def test_an_option_is_read_by_its_annotation_or_its_default(option, text, value):
    read = read_options(options_of(search), {option: text}, "search")[option]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("steps", "2.5", "steps='2.5' must be a whole number"),
        ("rate", "fast", "rate='fast' is not a number"),
        ("rate", "inf", "rate='inf' is not a number"),
        ("rate", "1/0", "rate='1/0' is not a number"),
        ("nesterov", "1", "nesterov='1' must be true or false"),
        ("kind", "c", "kind='c' is unknown: use a, b"),
        ("draws", "0", "draws='0' must be a whole number of at least 1"),
        ("radius", "0", "radius='0' is not a number above 0"),
        ("module", "{}", "can be set from Python only"),
        ("step", "3", "search has no option 'step', only steps, rate"),
        ("needed", "3", "search has no option 'needed'"),
        ("images", "3", "search has no option 'images'"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(option, text, message):
    with pytest.raises(UsageError) as error:
        read_options(options_of(search), {option: text}, "search")
    assert message in str(error.value)


def test_parameters_that_are_no_options_and_bound_ones():
    assert "seed" not in options_of(search, but=["seed"])
    assert options_of(partial(search, steps=40))["steps"] == Option("steps", int, 40)


def test_a_function_is_imported_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "mine_of_a_user.py").write_text("def attack(images):\n    return images + 1\n\n\nvalue = 3\n")
    (tmp_path / "broken_of_a_user.py").write_text("import no_such_library\n")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    assert function_named("mine_of_a_user:attack", "attack")(1) == 2
    with pytest.raises(UsageError, match=r"'mine_of_a_user:atack': .* has no function 'atack': did you mean attack\?"):
        function_named("mine_of_a_user:atack", "attack")
    with pytest.raises(UsageError, match=r": mine_of_a_user\.py has no function 'value'"):
        function_named("mine_of_a_user.py:value", "attack")
    with pytest.raises(UsageError, match="there is no module 'yours_of_a_user'"):
        function_named("yours_of_a_user.attacks:attack", "attack")
    with pytest.raises(UsageError, match="not of the form module:function"):
        function_named(":attack", "attack")
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):  # the module's own fault: its traceback helps
        function_named("broken_of_a_user:attack", "attack")
