"""Bad input of exporting: what is written where, in which format, from what."""

from row import Row

from hf_robust_transfer.hub.exporting import export_file


def file(name, content=b""):
    """Puts a file into the row's own folder."""

    def make(here, places):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content)

    return make


EXPORT = "export --model_name_or_path <model>"
ROWS = [
    Row("an unknown format", f"{EXPORT} --output new --format tflite", ("--format", "tflite", "onnx", "torch")),
    Row("an unknown format from Python", lambda here, places: export_file("new", "tflite"), "tflite is unknown: use onnx"),
    Row("no output", EXPORT, "--output"),
    Row("an empty output", f"{EXPORT} --output ''", "--output is empty"),
    Row("no model", "export --output new", "--model_name_or_path is missing"),
    Row("an output that is there", f"{EXPORT} --output mine.onnx", "mine.onnx exists: delete it", file("mine.onnx")),
    Row("a folder with an export", f"{EXPORT} --output new", "new/model.onnx exists: delete it", file("new/model.onnx")),
    Row(
        "a folder with an export of the other format",
        f"{EXPORT} --output new --format torch",
        "new/model.pt2 exists: delete it",
        file("new/model.pt2"),
    ),
    Row("an output in a file", f"{EXPORT} --output a.txt/model.onnx", "--output a.txt is a file", file("a.txt")),
    Row("an output below a file", f"{EXPORT} --output a.txt/b", "cannot be made in", file("a.txt")),
    Row("another format's ending", f"{EXPORT} --output mine.pt2", "mine.pt2 ends as a file of --format torch does"),
    Row("the other way round", f"{EXPORT} --output m.onnx --format torch", "m.onnx ends as a file of --format onnx does"),
    Row("an untrained architecture", "export --model_name_or_path resnet18 --output new", "'resnet18' is untrained"),
    Row("a folder without a model", "export --model_name_or_path <images> --output new", "<images>' cannot be loaded"),
    Row("a folder that is not there", "export --model_name_or_path ./no --output new", "./no"),
    Row("a batch size", f"{EXPORT} --output new --batch_size 3", "--batch_size is no option of"),
]
