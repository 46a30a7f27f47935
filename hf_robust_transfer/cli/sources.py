"""List the robust sources that have a name, and import the file of one that is on no Hub.

hf-robust-transfer sources "resnet50 linf"
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import ClassVar

from ..errors import UsageError
from ..modeling.fetching import fetch_source, source_folder
from ..modeling.source_list import SOURCES, Source
from ..modeling.sources import matching
from ..run_folder import CONFIG_NAME
from .main import run_command
from .parsing import names_a_file, parse_arguments

_FOOT = (
    "Any name goes where a checkpoint folder goes (--model_name_or_path, load_model). `here`: fetched and imported already."
    " Accuracies in percent are as they were published; those of the two in this package were measured here. Nobody has"
    " tried the other names on the original files yet: their layouts are those of the code that wrote them."
)


@dataclass
class SourcesArguments:
    """Which sources to list, and how."""

    group: ClassVar[str] = "parameters that control the list"

    pattern: str | None = field(
        default=None,
        metadata={
            "help": "List those with all of these words in their name, architecture, place or reference; * and ? may"
            " be in them. The words may come first, without --pattern."
        },
    )
    json: bool = field(default=False, metadata={"help": "Print all that is known of them as JSON."})
    file: str | None = field(
        default=None, metadata={"help": "The file of the one source that is named: import it, in place of a download."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "As of the other commands: where sources are kept."})


def main(argv: Sequence[str]) -> None:
    """Parse, import a file if one is given, list."""
    words = list(argv)
    if words and not words[0].startswith("-") and not names_a_file(words):
        first = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
        words[:first] = ["--pattern", " ".join(words[:first])]
    (args,) = parse_arguments(
        "hf-robust-transfer sources",
        [SourcesArguments],
        "Robust checkpoints that others published, by name: each is downloaded and imported when it is first used.",
        words,
    )
    if args.file is not None:
        if args.pattern not in SOURCES:
            raise UsageError(f"--file {args.file} is the file of one source: name it, as `hf-robust-transfer sources` does")
        folder = fetch_source(SOURCES[args.pattern], file=args.file, cache_dir=args.cache_dir)
        print(f"{args.pattern} is imported: --model_name_or_path {args.pattern} uses it (from {folder})")
        return
    found = matching(args.pattern)
    if not found:
        raise UsageError(
            f"no source has {args.pattern!r} in its name, architecture, place or reference: list all, without it"
        )
    print(
        json.dumps([asdict(source) for source in found], indent=2)
        if args.json
        else "\n".join(_table(found, args.cache_dir))
    )


def _table(sources: Sequence[Source], cache_dir: str | None) -> Iterator[str]:
    measured = {source.figures: "" for source in sources}
    for number, figures in enumerate(measured, 1):
        measured[figures] = f"[{number}]"
    rows: list[tuple[str, ...]] = [
        ("name", "architecture", "pixels", "trained for", "clean", "robust", "", "million", "licence", "", "from")
    ]
    for source in sources:
        here = (source_folder(source, cache_dir=cache_dir) / CONFIG_NAME).is_file()
        rows.append(
            (
                *(source.name, source.architecture, str(source.input_size), f"{source.norm} {source.eps}"),
                *("-" if each is None else f"{each:.1f}" for each in (source.clean, source.robust)),
                *(measured[source.figures], f"{source.parameters:.0f}", source.license or "unknown"),
                *("here" if here else "", source.place),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    yield ""
    yield from (f"{number} {figures}" for figures, number in measured.items())
    yield _FOOT


if __name__ == "__main__":
    run_command("sources")
