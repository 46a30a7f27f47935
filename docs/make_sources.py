"""Print the table of `docs/how-to/sources.md`, made from `hf_robust_transfer.modeling.source_list`."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from hf_robust_transfer.modeling.source_list import SOURCES, Source

PAGE = Path(__file__).parent / "how-to" / "sources.md"
FIRST, LAST = "<!-- the table is made by docs/make_sources.py -->\n", "<!-- end of the table -->"


def table() -> str:
    """The table and its notes, in Markdown; sources that differ in ε alone have a row together."""
    figures = {source.figures: number for number, source in enumerate(SOURCES.values())}
    numbers = {text: position for position, text in enumerate(figures, 1)}
    lines = [
        "| name | trained for | clean, robust (%) | parameters | licence | from |",
        "|---|---|---|---|---|---|",
        *(_row(list(group), numbers) for _, group in groupby(SOURCES.values(), _family)),
        "",
        *(f"{number}. {text[0].upper()}{text[1:]}." for text, number in numbers.items()),
    ]
    return "\n".join(lines) + "\n"


def _family(source: Source) -> tuple[str, str]:
    return source.name.partition("-eps")[0], source.architecture


def _row(sources: list[Source], numbers: dict[str, int]) -> str:
    first, name = sources[0], _family(sources[0])[0]
    endings = [f"`{source.name.removeprefix(name)}`" for source in sources]
    names = f"`{name}` with {', '.join(endings)}" if len(sources) > 1 else f"`{first.name}`"
    radii = ", ".join(source.eps for source in sources)
    accuracies = "; ".join(_accuracies(source, numbers) for source in sources)
    place = f"[{first.repo_id}](https://huggingface.co/{first.repo_id})" if first.repo_id else f"[file]({first.url})"
    place = first.place if first.layout == "embedded" else place
    parts = [f"{names}<br>{first.architecture}", f"{first.norm} {radii}", accuracies]
    return f"| {' | '.join([*parts, f'{first.parameters:.0f} M', first.license or 'not stated', place])} |"


def _accuracies(source: Source, numbers: dict[str, int]) -> str:
    if source.clean is None:
        return "none found"
    robust = "" if source.robust is None else f", {source.robust:.1f}"
    return f"{source.clean:.1f}{robust} ({numbers[source.figures]})"


def parts(page: str) -> Iterator[str]:
    """The page before its table, the table, and what comes after."""
    before, rest = page.split(FIRST)
    made, after = rest.split(LAST)
    yield from (before + FIRST, made, LAST + after)


if __name__ == "__main__":
    before, _, after = parts(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(f"{before}\n{table()}\n{after}", encoding="utf-8")
