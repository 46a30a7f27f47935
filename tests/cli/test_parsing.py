"""Options from the command line and from files: types are kept, flags win, and what is wrong is said in one line."""

import json
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import yaml
from hypothesis import given, strategies as st

from hf_robust_transfer.cli.parsing import as_flags, parse_arguments
from hf_robust_transfer.data import DataArguments
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.training import RobustTrainingArguments


@dataclass
class Options:
    """Options of every kind."""

    group: ClassVar[str] = "all kinds"

    text: str = "a"
    words: list[str] | None = None
    count: int = 1
    share: float = 0.5
    flag: bool = False
    on: bool = True
    maybe: bool | None = None
    nothing: str | None = None
    mapping: str | None = field(default=None, metadata={"help": "JSON."})


def parse(*argv):
    return parse_arguments("test", [Options], "…", list(map(str, argv)))[0]


plain = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029\ufeff"))
options = st.fixed_dictionaries(
    {},
    optional={
        "text": plain,
        "words": st.lists(plain, min_size=1),
        "count": st.integers(-(10**12), 10**12),
        "share": st.floats(allow_nan=False, allow_infinity=False),
        "flag": st.booleans(),
        "on": st.booleans(),
        "maybe": st.booleans(),
        "nothing": st.none(),
    },
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("options") / "run.yaml"


@given(options, st.sampled_from([".yaml", ".json", "JSON is YAML"]))
def test_values_of_a_file_arrive_as_they_are(file, values, kind):
    written = file.with_suffix(".json") if kind == ".json" else file
    written.write_text(yaml.safe_dump(values, allow_unicode=True) if kind == ".yaml" else json.dumps(values))
    assert parse(written) == Options(**values)


@given(st.text("abc", min_size=1), st.integers(0, 9))
def test_flags_go_before_the_file(file, text, count):
    file.write_text(yaml.safe_dump({"text": "of the file", "words": ["x"], "count": 77}))
    assert parse(file, "--text", text, "--count", count, "--words", "y", "z") == Options(text, ["y", "z"], count)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("text: 010", "010"),
        ("text: yes", "yes"),
        ("text: 1e-3", "1e-3"),
        ("text: 8/255", "8/255"),
        ("text: '08'", "08"),
        ("text: --share", "--share"),
    ],
)
def test_text_stays_as_it_is_written(file, written, expected):
    file.write_text(written)
    assert parse(file).text == expected


def test_a_mapping_becomes_json_and_labels_keep_their_zeros(file):
    file.write_text("mapping: {depth: 16, wide: true}\nwords: [01, 2, no]")
    read = parse(file)
    assert json.loads(read.mapping) == {"depth": 16, "wide": True} and read.words == ["01", "2", "no"]


def test_what_a_file_says_can_be_repeated_without_it(file):
    file.write_text("text: --share\nwords: [a b, c]\ncount: 3\nflag: true\nmapping: {depth: 16}\nnothing: null")
    flags = as_flags([str(file), "--count", "4"])
    file.unlink()
    assert "--nothing" not in flags
    assert parse(*flags) == Options("--share", ["a b", "c"], 4, flag=True, mapping='{"depth": 16}')


@pytest.mark.parametrize("argv", [["--tex", "b"], ["--cont=3"], ["--Text", "b"], ["stray"]])
def test_an_unknown_option_is_an_error(argv):
    with pytest.raises(UsageError, match="is no option of test"):
        parse(*argv)


def test_help_shows_the_commands_own_options_and_more_on_demand(capsys):
    shown = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as stopped:
            parse_arguments("test", [DataArguments, RobustTrainingArguments], "…", [flag])
        assert stopped.value.code == 0
        shown[flag] = capsys.readouterr().out
    assert "--dataset_name" in shown["--help"] and "--objective" in shown["--help"] and "--help-all" in shown["--help"]
    assert "parameters that control the data" in shown["--help"]
    assert "--hub_strategy" not in shown["--help"] and "--hub_strategy" in shown["--help-all"]
    assert not any("--label_smoothing_factor" in text for text in shown.values())  # refused anyway
    assert shown["--help"].count("\n") < 250 < shown["--help-all"].count("\n")
