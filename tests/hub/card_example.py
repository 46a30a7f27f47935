"""The model card in the documentation: that of a real run on scikit-learn's digits, whose report and record are kept here.

    python tests/hub/card_example.py

writes ``docs/model_card_example.md`` and its picture anew.
"""

import json
from pathlib import Path

from hf_robust_transfer.evaluation import RobustnessReport
from hf_robust_transfer.evaluation.counting import check_report
from hf_robust_transfer.evaluation.plots import plot_curve
from hf_robust_transfer.hub import model_card
from hf_robust_transfer.hub.card import CheckpointFacts
from hf_robust_transfer.run_folder import CURVE_NAME, RECORD_NAME

KEPT = Path(__file__).with_name("card_example")
DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, PICTURE = DOCS / "model_card_example.md", DOCS / "digits_curve.png"
LABELS = list("56789")
ABOUT = f"""# A model card as it is published

`hf-robust-transfer publish` writes this one for a small ConvNeXt that was trained adversarially on the digits 0–4 and
transferred to 5–9 with LwF. Its curve is [{PICTURE.name}]({PICTURE.name}). The page is written by
`python tests/hub/card_example.py`.

"""


def page() -> str:
    """The page, from the report and the record."""
    report = RobustnessReport.load(KEPT)
    check_report(report, LABELS)
    training = json.loads((KEPT / RECORD_NAME).read_text())
    facts = CheckpointFacts(
        architecture="convnext_tiny",
        model_class="TimmWrapperForImageClassification",
        labels=LABELS,
        input_shape=tuple(report.model["input_shape"]),
        fingerprint_parts=training["fingerprint_parts"],
        report=report,
        training=training,
        pictures=[("Accuracy against ε", CURVE_NAME)],
    )
    return f"{ABOUT}~~~~markdown\n{model_card(facts, 'you/digits-lwf', license='apache-2.0')}\n~~~~\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    plot_curve(RobustnessReport.load(KEPT), PICTURE)
