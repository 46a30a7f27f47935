"""The report of an evaluation and its pictures."""

import matplotlib
import pytest
from evaluated_digits import EPS
from PIL import Image

from hf_robust_transfer.evaluation import (
    RobustnessReport,
    evaluate_robustness,
)
from hf_robust_transfer.evaluation.plots import plot_curve, plot_examples
from hf_robust_transfer.evaluation.report import eps_text
from hf_robust_transfer.evaluation.subject import make_ready


def test_a_report_comes_back_as_it_was_saved(classifier, data, tmp_path):
    options = {"self_check_samples": 20, "curve_samples": 20, "chunk_size": 20, "progress": False}
    report = evaluate_robustness(classifier, data[:40], EPS, ["fgsm", "pgd-5:restarts=2"], **options)
    report.save(tmp_path)
    assert RobustnessReport.load(tmp_path) == report
    assert sorted(path.name for path in tmp_path.iterdir()) == ["robustness.json", "robustness.md"]
    text = (tmp_path / "robustness.md").read_text()
    for part in (str(report.worst_case), "at the model's resolution of 3×8×8", "pgd-5:restarts=2", report.hardware):
        assert part in text
    eps = [point.eps for point in report.curve]
    assert eps[0] == 0 and max(eps) == pytest.approx(4 * EPS.eps) and EPS.eps in eps
    assert report.curve[0].accuracy.value >= report.curve[-1].accuracy.value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("<html>", "is no robustness report"),
        ("{}", "is no robustness report"),
        ('{"schema_version": 99}', "has schema version 99, this package reads 1 to 2"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "robustness.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        RobustnessReport.load(tmp_path)


def test_radii_are_written_as_people_do():
    radii = (8 / 255, 2 / 255, 0.5 / 255, 0.1, 0.031, 0.5, 0)
    assert [eps_text(eps) for eps in radii] == ["8/255", "2/255", "0.5/255", "0.1", "0.031", "0.5", "0"]


NASTY = ("$5 bill_$", "$", "a_$b^{", "\\frac{", "line\nbreak", "nul\0", "%", "日本 🐶", "\ud800", "x" * 300)


def test_the_pictures_are_drawn_whatever_the_names_are(classifier, data, tmp_path, monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)  # as some have it
    options = {"self_check_samples": 0, "curve_samples": 20, "progress": False, "model_name": " ".join(NASTY)}
    report = evaluate_robustness(classifier, data[:20], EPS, ["fgsm"], **options)
    plot_curve(report, tmp_path / "curve.png")
    subject = make_ready(classifier, data, labels=NASTY)
    plot_examples(subject, data, EPS, tmp_path / "examples.png", title=" ".join(NASTY), columns=10)
    for name in ("curve.png", "examples.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 500 and len(picture.convert("RGB").getcolors(1 << 24)) > 20
