"""The demo of this metric in a Space of the Hub; `python app.py` starts it anywhere, and needs Gradio 3."""

from pathlib import Path

import evaluate
from evaluate.utils import launch_gradio_widget

if __name__ == "__main__":
    # The file beside this one, so that neither the name of the Space nor the working directory matters.
    launch_gradio_widget(evaluate.load(str(Path(__file__).with_name("robustness_gap.py"))))
