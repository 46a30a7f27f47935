"""The figure of each experiment, drawn from its results.json."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The colour-blind safe palette of Okabe and Ito.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK, GREY = (
    *("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#999999"),
)
PALETTE = (BLUE, GREEN, VERMILION, ORANGE, PURPLE, SKY, BLACK, GREY)
Results = dict[str, Any]


def freezing(results: Results, file: Path) -> None:
    """Accuracy against the number of retrained blocks, for both sources."""
    figure, (axes,) = _figure(results, 1, (6.4, 4.4))
    for source, colour in (("robust", BLUE), ("natural", VERMILION)):
        runs = [run for run in results["runs"] if run["source"] == source]
        counts = [run["retrained_blocks"] for run in runs]
        for key, style, what in (("accuracy", "o--", "clean"), ("robust_accuracy", "s-", "PGD-20")):
            _errorbar(axes, counts, runs, key, style, colour, f"{source} source, {what}")
    axes.set(xlabel="last blocks retrained naturally, besides the head", ylabel="accuracy (%)", ylim=(-2, 100))
    axes.set_xticks(sorted({run["retrained_blocks"] for run in results["runs"]}))
    _finish(figure, file, columns=2)


def features(results: Results, file: Path, arrays: Mapping[str, Path]) -> None:
    """Movement by block, input gradients, and embedded features of both sources; ``arrays`` is what features.py left."""
    runs = results["runs"]
    seen = [np.load(arrays[run["source"]]) for run in runs]
    figure: Any = Figure(figsize=(10.5, 8.2), dpi=130, layout="constrained")
    figure.suptitle(_title(results), fontsize="medium")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    left, right = upper.subfigures(1, 2)
    axes = left.subplots()
    for run, colour, style in zip(runs, (BLUE, VERMILION), ("o-", "s--"), strict=True):
        shifts = list(run["shift"].values())
        means = [100 * shift["mean"] for shift in shifts]
        margins = [100 * (shift["mean"] - shift["lower"]) for shift in shifts]
        label = f"{run['source']} source"
        axes.errorbar(range(len(means)), means, yerr=margins, fmt=style, color=colour, capsize=3, label=label)
    blocks = list(runs[0]["shift"])
    axes.set_xticks(range(len(blocks)), blocks, rotation=60, ha="right", fontsize="small")
    axes.set(ylabel="relative change ‖h(x′) − h(x)‖ / ‖h(x)‖ (%)", ylim=(0, None))
    axes.set_title("How far activations move, by block")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    rows = [("image", seen[0]["images"])]
    rows += [(f"{run['source']}:\ngradient", _shown(each["gradients"])) for run, each in zip(runs, seen, strict=True)]
    grid = right.subplots(len(rows), len(rows[0][1]))
    right.suptitle("Gradient of the loss with respect to the image", fontsize="medium")
    for row, (name, pictures) in zip(grid, rows, strict=True):
        row[0].set_ylabel(name, fontsize="small")
        for axes, picture in zip(row, pictures, strict=True):
            axes.imshow(picture.transpose(1, 2, 0), interpolation="nearest", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
    for axes, run, each in zip(lower.subplots(1, 2), runs, seen, strict=True):
        for points, marker, size in zip(each["embedding"], ("o", "x"), (14, 18), strict=True):
            look = {"cmap": "tab10", "vmin": 0, "vmax": 9, "marker": marker, "linewidths": 0.8, "alpha": 0.8}
            axes.scatter(*points.T, c=each["labels"], s=size, **look)
        axes.set(xticks=[], yticks=[], title=f"{run['source']} source: features, clean (●) and adversarial (×)")
        axes.set_xlabel("t-SNE, colours are the true classes", fontsize="small")
    figure.savefig(file)


def heads(results: Results, file: Path) -> None:
    """Clean and robust accuracy of each kind of head."""
    figure, (axes,) = _figure(results, 1, (7.2, 4.4))
    runs = results["runs"]
    places = np.arange(len(runs))
    for key, style, colour, offset, what in (
        ("accuracy", "o", BLUE, -0.1, "clean"),
        ("robust_accuracy", "s", VERMILION, 0.1, "PGD-20"),
    ):
        _errorbar(axes, places + offset, runs, key, style, colour, what)
    axes.set_xticks(places, [run["head"] for run in runs], rotation=30, ha="right", fontsize="small")
    axes.set(ylabel="accuracy (%)", xlabel="fully connected layers of the head", ylim=(0, 100))
    _finish(figure, file, columns=2)


def few_images(results: Results, file: Path) -> None:
    """Accuracies and seconds against images per class: means over seeds with their standard deviations."""
    figure, panels = _figure(results, 3, (11.5, 4.2))
    runs = results["runs"]
    counts = sorted({run["images_per_class"] for run in runs})
    values: tuple[tuple[str, Callable[[dict[str, Any]], float]], ...] = (
        ("clean accuracy (%)", lambda run: 100 * run["accuracy"]["value"]),
        ("PGD-20 accuracy (%)", lambda run: 100 * run["robust_accuracy"]["value"]),
        ("training time (s)", lambda run: run["training_seconds"]),
    )
    for axes, (label, value) in zip(panels, values, strict=True):
        for place, (method, colour) in enumerate(zip(dict.fromkeys(run["method"] for run in runs), PALETTE, strict=False)):
            of_method = [
                [value(run) for run in runs if (run["method"], run["images_per_class"]) == (method, count)]
                for count in counts
            ]
            means, spread = (
                [np.mean(each) for each in of_method],
                [np.std(each, ddof=min(1, len(each) - 1)) for each in of_method],
            )
            style = ("o-", "s-", "^--", "D--")[place % 4]
            axes.errorbar(counts, means, yerr=spread, fmt=style, color=colour, capsize=3, label=method)
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set(xlabel="training images per class", ylabel=label)
    panels[2].set_yscale("log")
    for axes in panels[:2]:
        axes.set_ylim(0, None)
    seeds = len({run["seed"] for run in runs})
    _finish(figure, file, columns=4, note=f"means of {seeds} seed(s), bars are their standard deviation")


def lwf(results: Results, file: Path) -> None:
    """Robust against clean accuracy: the line of LwF by its weight, and what it is compared with."""
    figure, (axes,) = _figure(results, 1, (7, 5))
    weights = [run for run in results["runs"] if run["method"].startswith("LwF ")]
    groups = [(weights, BLUE, "o-", "LwF, by its weight λ_d")]
    others = [run for run in results["runs"] if run not in weights]
    colours = {"LwF": BLUE}
    for run in others:  # a method keeps its colour from the natural source
        method = run["method"].removeprefix("natural source, ")
        colour = colours.setdefault(method, PALETTE[len(colours)])
        groups.append(([run], colour, "s" if method == run["method"] else "X", run["method"]))
    for runs, colour, style, label in groups:
        _errorbar(axes, [100 * run["accuracy"]["value"] for run in runs], runs, "robust_accuracy", style, colour, label)
    for run in weights:
        place = (100 * run["accuracy"]["value"], 100 * run["robust_accuracy"]["value"])
        weight = run["method"].removeprefix("LwF ")
        axes.annotate(weight, place, xytext=(5, 6), textcoords="offset points", fontsize="small")
    axes.set(xlabel="clean accuracy (%)", ylabel="PGD-20 accuracy (%)", ylim=(-1, None))
    _finish(figure, file, columns=3)


def methods(results: Results, file: Path) -> None:
    """Robust against clean accuracy of each method: means over seeds with their standard deviations."""
    figure, (axes,) = _figure(results, 1, (8, 6))
    runs = results["runs"]
    for place, method in enumerate(dict.fromkeys(run["method"] for run in runs)):
        of_method = [run for run in runs if run["method"] == method]
        both = [np.array([100 * run[key]["value"] for run in of_method]) for key in ("accuracy", "robust_accuracy")]
        (x, y), (dx, dy) = ([each.mean() for each in both], [each.std(ddof=min(1, len(each) - 1)) for each in both])
        colour, style = PALETTE[place % len(PALETTE)], "os^Dv"[place // len(PALETTE)]
        axes.errorbar(x, y, xerr=dx, yerr=dy, fmt=style, color=colour, capsize=3, label=method)
    axes.set(xlabel="clean accuracy (%)", ylabel="PGD-20 accuracy (%)", ylim=(-1, None))
    seeds = len({run["seed"] for run in runs})
    _finish(figure, file, columns=3, note=f"means of {seeds} seed(s), bars are their standard deviation")


FIGURES: dict[str, Callable[..., None]] = {
    "freezing": freezing,
    "features": features,
    "heads": heads,
    "few_images": few_images,
    "lwf": lwf,
    "same_task": lwf,
    "presets": methods,
    "distillation": methods,
}


def _figure(results: Results, columns: int, size: tuple[float, float]) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    figure.suptitle(_title(results), fontsize="medium")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _title(results: Results) -> str:
    run = results["runs"][0]
    threat_model, samples = run["threat_model"], run["samples"]
    eps = threat_model["eps"]
    shown = f"{255 * eps:g}/255" if threat_model["norm"] == "linf" else f"{eps:g}"
    return f"{results['title']}\n{threat_model['norm']} ε = {shown}, {samples} test images"


def _finish(figure: Figure, file: Path, *, columns: int, note: str = "bars are 95 % intervals") -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    options: dict[str, Any] = {"title": note, "fontsize": "small", "title_fontsize": "small"}
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, **options)
    figure.savefig(file)


def _errorbar(axes: Axes, x: Any, runs: Sequence[dict[str, Any]], key: str, style: str, colour: str, label: str) -> None:
    y = [100 * run[key]["value"] for run in runs]
    axes.errorbar(x, y, yerr=_bars(runs, key), fmt=style, color=colour, capsize=3, label=label)


def _bars(runs: Sequence[dict[str, Any]], key: str) -> list[list[float]]:
    below = [100 * (run[key]["value"] - run[key]["lower"]) for run in runs]
    return [below, [100 * (run[key]["upper"] - run[key]["value"]) for run in runs]]


def _shown(gradients: Any) -> Any:
    """Gradients as pictures: grey is none, and each picture's largest entries (but for one in a hundred) are full."""
    largest = np.quantile(np.abs(gradients), 0.99, axis=(1, 2, 3), keepdims=True)
    return np.clip(gradients / (2 * largest) + 0.5, 0, 1)
