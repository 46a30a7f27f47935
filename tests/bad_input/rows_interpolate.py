"""The way between two models: what is no model, no way and no choice."""

import json

from row import Row

TWO = "interpolate <model> <model> --output_dir run --attacks fgsm --use_cpu"


def renamed(here, places):
    """Another model, whose labels are called otherwise."""
    copy_of(here, places)
    config = json.loads((here / "other/config.json").read_text())
    config["label_names"] = [f"label {name}" for name in config["label_names"]]
    (here / "other/config.json").write_text(json.dumps(config))


def copy_of(here, places):
    (here / "other").mkdir()
    for file in places["model"].iterdir():
        (here / "other" / file.name).write_bytes(file.read_bytes())


ROWS = [
    Row("no models", "interpolate --output_dir run", "name two checkpoints first"),
    Row("one model", "interpolate <model> --output_dir run", "name two checkpoints first"),
    Row("three models", "interpolate <model> <model> <model> --output_dir run", "is no option"),
    Row("no folder to write to", "interpolate <model> <model>", "--output_dir is missing"),
    Row("a model that is not there", "interpolate <model> nowhere --output_dir run --use_cpu", "nowhere"),
    Row("alpha above 1", f"{TWO} --alphas 0 1.5", "--alphas 1.5 is not in [0, 1]"),
    Row("alpha below 0", f"{TWO} --alphas=-0.5", "--alphas -0.5 is not in [0, 1]"),
    Row("alpha NaN", f"{TWO} --alphas nan", "--alphas nan is not in [0, 1]"),
    Row("an unknown choice", f"{TWO} --choose best", ("--choose best is unknown", "robust, clean, knee")),
    Row("a choice off the way", f"{TWO} --choose 2", "--choose 2 is unknown"),
    Row("an unknown attack", f"{TWO} --attacks magic", "magic"),
    Row("an unknown norm", f"{TWO} --norm l7", "l7"),
    Row("ε in steps of 255", f"{TWO} --eps 8", "8/255"),
    Row("chunks of nothing", f"{TWO} --chunk_size 0", "--chunk_size 0 must be at least 1"),
    Row("the folder of a model", "interpolate <model> <model> --output_dir <model> --use_cpu", "is one of the two models"),
    Row("other labels", "interpolate <model> other --output_dir run --use_cpu", "the same labels", make=renamed),
    Row("a folder with a model", "interpolate <model> <model> --output_dir other --use_cpu", "holds a model", make=copy_of),
]
