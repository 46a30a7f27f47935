import doctest
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import NormalDist

import evaluate
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, strategies as st

import hf_robust_transfer
from hf_robust_transfer.evaluation import metrics
from hf_robust_transfer.evaluation.metrics import METRICS, compute_metric, load_metric

FOLDER = Path(metrics.__file__).parent
COLUMNS = ("predictions", "adversarial_predictions", "references")
# Each sample: its prediction, its adversarial prediction, its label.
KEPT, FOOLED, WRONG, WRONG_BUT_RIGHT_WHEN_ATTACKED = (1, 1, 1), (1, 0, 1), (0, 2, 1), (0, 1, 1)
INTERVALS = ("clean_accuracy", "robust_accuracy", "attack_success_rate", "robustness_gap")
ACCURACY = """
import datasets
import evaluate


class Accuracy(evaluate.Metric):
    def _info(self):
        features = {"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="", features=datasets.Features(features)
        )

    def _compute(self, predictions, references):
        right = [prediction == reference for prediction, reference in zip(predictions, references)]
        return {"accuracy": sum(right) / len(right)}
"""

USE_EVERYTHING = """
import json
import datasets
import evaluate
import hf_robust_transfer
from hf_robust_transfer import RobustnessEvaluator, ThreatModel, create_model, load_metric
from PIL import Image
from transformers import pipeline

both = evaluate.combine([load_metric("robust_accuracy"), load_metric("robustness_gap")])
for adversarial in ([1, 0], [0, 0]):
    both.add_batch(predictions=[1, 0], adversarial_predictions=adversarial, references=[1, 0])
combined = both.compute()

sizes = {"patch_size": 1, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}
model, processor = create_model("convnext_tiny", id2label={0: "cat", 1: "dog"}, model_args=sizes, image_size=8)
columns = {"image": [Image.new("RGB", (8, 8), (shade,) * 3) for shade in (0, 90, 200, 255)], "label": [0, 1, 0, 1]}
features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
data = datasets.Dataset.from_dict(columns, features)
classify = pipeline("image-classification", model=model, image_processor=processor)
evaluated = RobustnessEvaluator(ThreatModel("linf", 0.5), "pgd-5").compute(model_or_pipeline=classify, data=data)
print(json.dumps([combined["robust_accuracy"], combined["robustness_gap"], evaluated["robust_accuracy"]]))
print(json.dumps(hf_robust_transfer.__file__))
"""


def columns(samples):
    return {name: [sample[index] for sample in samples] for index, name in enumerate(COLUMNS)}


def wilson(count, total, level=0.95):
    """(p̂ + z²/2n ± z √(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n), as in Wilson (1927)."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = count / total
    centre = share + z**2 / (2 * total)
    half = z * (share * (1 - share) / total + z**2 / (4 * total**2)) ** 0.5
    return (centre - half) / (1 + z**2 / total), (centre + half) / (1 + z**2 / total)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return {name: load_metric(name, cache_dir=str(tmp_path_factory.mktemp(name))) for name in METRICS}


@pytest.fixture(scope="module")
def scores(loaded):
    """A function (samples, options) -> the scores of both metrics."""

    def compute(samples, **options):
        return {
            key: value for metric in loaded.values() for key, value in metric.compute(**columns(samples), **options).items()
        }

    return compute


def run(code, folder, *arguments, pythonpath=None, cwd=None):
    """Start Python on `code`, or on a file, with caches of its own under `folder` and without a network."""
    environment = {
        **os.environ,
        "HF_HOME": str(folder / "home"),
        "HF_MODULES_CACHE": str(folder / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    if pythonpath:
        environment["PYTHONPATH"] = str(pythonpath)
    what = [str(code)] if isinstance(code, Path) else ["-c", f"import socket; socket.socket.connect = None\n{code}"]
    return subprocess.Popen(
        [sys.executable, *what, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=cwd or folder,
    )


def absent(folder, *packages):
    """A folder that, on PYTHONPATH, hides these packages, as in a Space that has none of them.

    Without transformers `evaluate` also loads in a quarter of the time.
    """
    hiding = folder / "absent"
    hiding.mkdir()
    for package in packages:
        (hiding / f"{package}.py").write_text("raise ImportError")
    return hiding


def printed(process):
    """The JSON of each line that a process from `run` prints, but for those that tell what is done to images."""
    out, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    return [json.loads(line) for line in out.splitlines() if not line.startswith("evaluation: ")]


def test_the_metrics_are_the_folders():
    assert set(METRICS) == {script.stem for script in FOLDER.glob("*/*.py") if script.stem == script.parent.name}


def test_the_rates_worked_out_by_hand(scores):
    reached = scores([KEPT] * 4 + [FOOLED] * 2 + [WRONG] * 3 + [WRONG_BUT_RIGHT_WHEN_ATTACKED])
    assert {key: value for key, value in reached.items() if not key.endswith(("_lower", "_upper"))} == {
        "clean_accuracy": 6 / 10,
        "robust_accuracy": 4 / 10,
        "attack_success_rate": 2 / 6,
        "robustness_gap": 2 / 10,
        "relative_robustness": pytest.approx(4 / 6),
    }


def test_every_interval_is_over_its_own_number_of_samples(scores):
    reached = scores([KEPT] * 4 + [FOOLED] * 2 + [WRONG] * 4)
    counts = {
        "clean_accuracy": (6, 10),
        "robust_accuracy": (4, 10),
        "attack_success_rate": (2, 6),
        "robustness_gap": (2, 10),
    }
    for name, (count, total) in counts.items():
        assert (reached[f"{name}_lower"], reached[f"{name}_upper"]) == pytest.approx(wilson(count, total))


@pytest.mark.parametrize(
    ("right", "total", "lower", "upper"),
    # z² = 3.841459 for 95 %. Of 8 in 10: (0.8 + 0.192073 ± 1.959964 √(0.016 + 0.009604)) / 1.384146, and so on.
    [(8, 10, 0.490162, 0.943318), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (1, 2, 0.094531, 0.905469)],
)
def test_wilson_intervals_worked_out_by_hand(scores, right, total, lower, upper):
    reached = scores([KEPT] * right + [WRONG] * (total - right))
    for name in ("clean_accuracy", "robust_accuracy"):
        assert reached[f"{name}_lower"] == pytest.approx(lower, abs=1e-6)
        assert reached[f"{name}_upper"] == pytest.approx(upper, abs=1e-6)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_the_ends_of_an_interval_are_where_the_observed_rate_is_z_standard_errors_away(scores, level):
    reached = scores([KEPT] * 60 + [FOOLED] * 30 + [WRONG] * 10, confidence_level=level)
    totals = {"clean_accuracy": 100, "robust_accuracy": 100, "attack_success_rate": 90, "robustness_gap": 100}
    for name, total in totals.items():
        for end in (reached[f"{name}_lower"], reached[f"{name}_upper"]):
            away = abs(reached[name] - end) / (end * (1 - end) / total) ** 0.5
            assert NormalDist().cdf(away) - NormalDist().cdf(-away) == pytest.approx(level)


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=40), st.integers(0, 40))
def test_any_predictions_score_as_counted_one_by_one_however_they_are_batched(loaded, samples, cut):
    reached = {}
    for metric in loaded.values():
        for batch in filter(None, (samples[:cut], samples[cut:])):
            metric.add_batch(**columns(batch))
        reached |= metric.compute()
    clean = robust = fooled = 0
    for prediction, adversarial, label in samples:
        if prediction == label:
            clean += 1
            if adversarial == label:
                robust += 1
            else:
                fooled += 1
    rates = {
        "clean_accuracy": (clean, len(samples)),
        "robust_accuracy": (robust, len(samples)),
        "attack_success_rate": (fooled, clean),
        "robustness_gap": (fooled, len(samples)),
    }
    expected = {"relative_robustness": robust / clean if clean else 0}
    for name, (count, total) in rates.items():
        expected[name] = count / total if total else 0
        expected[f"{name}_lower"], expected[f"{name}_upper"] = wilson(count, total) if total else (0, 1)
    assert reached == pytest.approx(expected, abs=1e-9)
    for name in rates:
        assert 0 <= reached[f"{name}_lower"] <= reached[name] <= reached[f"{name}_upper"] <= 1
    assert reached["robustness_gap"] == pytest.approx(reached["clean_accuracy"] - reached["robust_accuracy"])


def test_a_sample_that_is_wrong_when_clean_is_not_robust(scores):
    reached = scores([WRONG_BUT_RIGHT_WHEN_ATTACKED] * 3 + [KEPT])
    assert reached["robust_accuracy"] == reached["clean_accuracy"] == 0.25
    assert reached["robustness_gap"] == 0


def test_where_nothing_is_right_nothing_is_known_about_the_attack(scores):
    reached = scores([WRONG, WRONG_BUT_RIGHT_WHEN_ATTACKED])
    assert reached["attack_success_rate"] == reached["relative_robustness"] == 0
    assert (reached["attack_success_rate_lower"], reached["attack_success_rate_upper"]) == (0, 1)


@pytest.mark.parametrize("kind", [list, np.array, lambda column: np.array(column, dtype=np.int32), torch.tensor])
def test_lists_arrays_and_tensors_score_alike_and_as_plain_floats(loaded, scores, kind):
    samples = [KEPT, FOOLED, WRONG]
    given = {name: kind(column) for name, column in columns(samples).items()}
    reached = {key: value for metric in loaded.values() for key, value in metric.compute(**given).items()}
    assert reached == scores(samples)
    assert {type(value) for value in reached.values()} == {float}


def test_one_sample_at_a_time(loaded, scores):
    samples = [KEPT, FOOLED, WRONG]
    for metric in loaded.values():
        for prediction, adversarial, label in samples:
            metric.add(prediction=prediction, adversarial_predictions=adversarial, reference=label)
        assert metric.compute().items() <= scores(samples).items()


def test_ten_thousand_samples_keep_every_digit(scores):
    reached = scores([KEPT] * 4321 + [FOOLED] * 3210 + [WRONG] * 2469)
    assert (reached["clean_accuracy"], reached["robust_accuracy"], reached["robustness_gap"]) == (0.7531, 0.4321, 0.321)
    assert reached["robust_accuracy_lower"] == pytest.approx(wilson(4321, 10000)[0])


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("options", [{}, {"keep_in_memory": True}])
def test_no_samples_are_refused_and_the_metric_goes_on(tmp_path, name, options):
    metric = load_metric(name, cache_dir=str(tmp_path), **options)
    with pytest.raises(ValueError, match=f"{name} of no samples: pass at least one to compute, add or add_batch"):
        metric.compute(**columns([]))
    assert metric.compute(**columns([KEPT]))


@pytest.mark.parametrize("name", METRICS)
def test_compute_before_any_batch_says_what_to_call(loaded, name):
    with pytest.raises(ValueError, match="call `add` or `add_batch`"):
        loaded[name].compute()


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("column", COLUMNS)
def test_columns_of_different_lengths_are_refused_and_the_metric_goes_on(loaded, name, column):
    given = columns([KEPT, FOOLED])
    with pytest.raises(ValueError, match="Mismatch in the number of predictions"):
        loaded[name].compute(**{**given, column: given[column][:1]})
    assert loaded[name].compute(**given)


@pytest.mark.parametrize("name", METRICS)
def test_missing_adversarial_predictions_are_refused_by_name(loaded, name):
    with pytest.raises(ValueError, match="inputs are missing: \\['adversarial_predictions'\\]"):
        loaded[name].compute(predictions=[1], references=[1])


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("level", [0, 1, 95, -0.5, float("nan")])
def test_a_confidence_level_out_of_range_is_refused(tmp_path, name, level):
    metric = load_metric(name, cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="must be between 0 and 1: 95 % is"):
        metric.compute(**columns([KEPT]), confidence_level=level)


def test_an_unknown_metric_is_refused_and_the_known_ones_are_named():
    with pytest.raises(ValueError, match="'accuracy' is unknown: use one of robust_accuracy, robustness_gap"):
        load_metric("accuracy")


def test_a_file_that_hides_the_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "evaluate.py").write_text("")
    monkeypatch.delitem(sys.modules, "evaluate")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"evaluate\.py hides the library"):
        load_metric("robust_accuracy")


def test_computed_at_once_even_after_an_error(scores):
    samples = [KEPT, FOOLED, WRONG]
    with pytest.raises(ValueError, match="Mismatch"):
        compute_metric("robust_accuracy", **{**columns(samples), "references": [1]})
    with pytest.raises(ValueError, match="no samples"):
        compute_metric("robust_accuracy", **columns([]))
    reached = [compute_metric(name, **columns(samples)) for name in METRICS]
    assert reached[0] | reached[1] == scores(samples)


def test_combined_with_a_stock_metric_in_batches_all_keys_stay_as_they_are(tmp_path, scores):
    (tmp_path / "accuracy").mkdir()
    (tmp_path / "accuracy" / "accuracy.py").write_text(ACCURACY)
    paths = [*(FOLDER / name for name in METRICS), tmp_path / "accuracy"]
    modules = [evaluate.load(str(path), cache_dir=str(tmp_path)) for path in paths]
    combined = evaluate.combine(modules)
    samples = [KEPT] * 5 + [FOOLED] * 3 + [WRONG] * 2 + [WRONG_BUT_RIGHT_WHEN_ATTACKED]
    for start in range(0, len(samples), 4):
        combined.add_batch(**columns(samples[start : start + 4]))
    reached = combined.compute()
    assert reached == {**scores(samples), "accuracy": 8 / 11}
    assert reached["clean_accuracy"] == reached["accuracy"]


def test_combined_in_one_call(loaded, scores):
    samples = [KEPT, FOOLED, WRONG]
    reached = evaluate.combine(list(loaded.values())).compute(**columns(samples), confidence_level=0.8)
    assert reached == scores(samples, confidence_level=0.8)


def test_two_processes_score_what_one_does(tmp_path, scores):
    code = """
import json, sys
import evaluate

process = int(sys.argv[1])
for experiment, parts in enumerate(json.loads(sys.argv[2])):
    for path in sys.argv[3:]:
        metric = evaluate.load(path, num_process=2, process_id=process, experiment_id=str(experiment))
        for batch in parts[process]:
            metric.add_batch(**batch)
        print(json.dumps(metric.compute(confidence_level=0.9)))
"""
    first, second, third = [KEPT, FOOLED, KEPT], [WRONG] * 2 + [FOOLED], [WRONG_BUT_RIGHT_WHEN_ATTACKED]
    # One batch against two, and a process that got no samples, but says so.
    experiments = [[[first], [second, third]], [[first, third], [[]]]]
    given = json.dumps([[[columns(batch) for batch in part] for part in parts] for parts in experiments])
    paths, pythonpath = [FOLDER / name for name in METRICS], absent(tmp_path, "transformers")
    processes = [run(code, tmp_path, process, given, *paths, pythonpath=pythonpath) for process in (1, 0)]
    other, main = map(printed, processes)
    assert other == [None] * 4
    assert main[0] | main[1] == scores(first + second + third, confidence_level=0.9)
    assert main[2] | main[3] == scores(first + third, confidence_level=0.9)


def test_a_folder_loads_offline_by_itself_wherever_it_lies(tmp_path, scores):
    code = """
import json, sys
import evaluate

for path in sys.argv[2:]:
    metric = evaluate.load(path)
    print(json.dumps([metric.name, metric.compute(**json.loads(sys.argv[1]))]))
"""
    for name in METRICS:
        shutil.copytree(FOLDER / name, tmp_path / "elsewhere" / name)
    samples = [KEPT, FOOLED, WRONG]
    paths = [tmp_path / "elsewhere" / name for name in METRICS]
    pythonpath = absent(tmp_path, "hf_robust_transfer", "transformers")
    loaded = dict(printed(run(code, tmp_path, json.dumps(columns(samples)), *paths, pythonpath=pythonpath)))
    assert tuple(loaded) == METRICS
    assert loaded["robust_accuracy"] | loaded["robustness_gap"] == scores(samples)


@pytest.mark.parametrize("name", METRICS)
def test_the_app_shows_the_metric_and_its_card_whatever_the_space_is_called(tmp_path, scores, name):
    """With a stand-in for Gradio, which passes on two rows as its table does: filled in as text."""
    pythonpath = absent(tmp_path, "hf_robust_transfer", "transformers")
    (pythonpath / "gradio.py").write_text("""
import json, types
import pandas

inputs, outputs = types.SimpleNamespace(Dataframe=dict), types.SimpleNamespace(Textbox=dict)

class Interface:
    def __init__(self, fn, inputs, title, article, **rest):
        rows = pandas.DataFrame([["1", "1", "1"], ["1", "0", "1"]], columns=inputs["headers"])
        self.shown = [title, inputs["headers"], article, fn(rows)]

    def launch(self):
        print(json.dumps(self.shown))
""")
    app = shutil.copytree(FOLDER / name, tmp_path / "space") / "app.py"
    title, headers, article, reached = printed(run(app, tmp_path, pythonpath=pythonpath))[0]
    assert title == f"Metric: {name}"
    assert tuple(headers) == COLUMNS
    assert article.lstrip().startswith("# Metric card")
    assert reached.items() <= scores([KEPT, FOOLED]).items()


@pytest.mark.parametrize("name", METRICS)
def test_the_card_has_the_header_of_a_metric_space_and_its_examples_run(name):
    card = (FOLDER / name / "README.md").read_text(encoding="utf-8")
    _, header, text = card.split("---\n", 2)
    header = yaml.safe_load(header)
    assert header["sdk"] == "gradio" and header["tags"] == ["evaluate", "metric"] and header["pinned"] is False
    assert (FOLDER / name / header["app_file"]).is_file()
    # Fences are blanked, as one right below an output would count as part of it.
    examples = doctest.DocTestParser().get_doctest(re.sub(r"^```.*$", "", text, flags=re.M), {}, name, None, 0)
    assert len(examples.examples) > 10
    assert doctest.DocTestRunner().run(examples).failed == 0


@pytest.mark.parametrize("name", METRICS)
def test_every_score_is_documented_in_the_card_and_in_the_docstring(loaded, name):
    card = (FOLDER / name / "README.md").read_text(encoding="utf-8")
    for key in loaded[name].compute(**columns([KEPT])):
        key = re.sub("_(lower|upper)$", "", key)
        assert f"| `{key}`" in card
        assert f"    {key}" in loaded[name].inputs_description
        assert f"    {key}" in type(loaded[name]).__doc__


def test_metrics_together_and_the_evaluator_work_in_a_fresh_process_offline(tmp_path):
    figures, _ = printed(run(USE_EVERYTHING, tmp_path, pythonpath=Path(hf_robust_transfer.__file__).parents[1]))
    assert figures[:2] == [0.75, 0.25] and 0 <= figures[2] <= 0.5


@pytest.mark.slow
def test_the_metrics_load_from_the_installed_wheel(tmp_path):
    source = Path(hf_robust_transfer.__file__).parents[1]
    if not (source / "pyproject.toml").is_file():
        pytest.skip("the package under test is installed and not a checkout that a wheel could be built from")
    pip = [sys.executable, "-m", "pip"]
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", *isolation, "--wheel-dir", str(tmp_path), str(source)], capture_output=True, text=True
    )
    if "No matching distribution found for hatchling" in built.stderr:
        pytest.skip("hatchling, which builds the wheel, is neither installed nor to be had from a package index")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "target"
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)], check=True)
    code = """
import json, sys
from pathlib import Path
import evaluate
from hf_robust_transfer.evaluation import metrics

for load in (metrics.load_metric, lambda name: evaluate.load(str(Path(metrics.__file__).with_name(name)))):
    for name in metrics.METRICS:
        metric = load(name)
        assert metric.compute(predictions=[1], adversarial_predictions=[1], references=[1])
        module = Path(sys.modules[type(metric).__module__].__file__)
        record = json.loads(module.with_suffix(".json").read_text())
        print(json.dumps([metric.name, metrics.__file__, record["original file path"], str(module)]))
"""
    (tmp_path / "elsewhere").mkdir()
    loads = printed(run(code, tmp_path, pythonpath=target, cwd=tmp_path / "elsewhere"))
    assert [load[0] for load in loads] == [*METRICS, *METRICS]
    for name, package, original, module in loads:
        assert Path(package).is_relative_to(target)
        assert Path(original) == target / "hf_robust_transfer" / "evaluation" / "metrics" / name / f"{name}.py"
        # `evaluate` imports a copy.
        assert Path(module).is_relative_to(tmp_path / "modules")
        assert Path(module).read_bytes() == (FOLDER / name / f"{name}.py").read_bytes()
    for name in METRICS:
        shipped = {file.name for file in (target / "hf_robust_transfer" / "evaluation" / "metrics" / name).glob("*.*")}
        assert shipped >= {"README.md", "app.py", "requirements.txt", f"{name}.py"}
    figures, package = printed(run(USE_EVERYTHING, tmp_path, pythonpath=target, cwd=tmp_path / "elsewhere"))
    assert figures[:2] == [0.75, 0.25] and Path(package).is_relative_to(target)
