"""Robust sources by name that cannot be had, and what is called adversarial and is no robust source."""

from row import Row
from rows_models import EVALUATE, PUBLISH, changed, damaged

from hf_robust_transfer.modeling import load_model

ON_NO_HUB, ON_THE_HUB = "singh2023-convnext-t-linf-eps4", "salman2020-resnet18-linf-eps4"
FINETUNE = "finetune <finetune> --model_name_or_path"


def from_source(value):
    return changed(robust_training={"norm": "linf", "eps": "8/255", "source": value})


def text_file(here, places):
    (here / "a.pt").write_text("no weights")


ROWS = [
    Row("words that no source has", "sources nonsense", "no source has 'nonsense'"),
    Row("a file of several sources", "sources resnet18 --file a.pt", "--file a.pt is the file of one source: name it"),
    Row("a file of no source", "sources --file a.pt", "--file a.pt is the file of one source: name it"),
    Row("a file that is not there", f"sources {ON_NO_HUB} --file no.pt", "no.pt cannot be read"),
    Row("a file that is none", f"sources {ON_NO_HUB} --file a.pt", "is not a PyTorch checkpoint", text_file),
    Row(
        "a source on no Hub",
        f"{FINETUNE} {ON_NO_HUB}",
        (f"source {ON_NO_HUB} is on no Hub", "https://", f"hf-robust-transfer sources {ON_NO_HUB} --file FILE"),
    ),
    Row(
        "a source without a network",
        f"{FINETUNE} {ON_THE_HUB}",
        ("is not here yet", "hf download madrylab/robust-imagenet-models", f"sources {ON_THE_HUB} --file FILE"),
    ),
    Row("a teacher without a network", f"finetune <finetune> --teacher_name_or_path {ON_THE_HUB}", "is not here yet"),
    Row("one to evaluate", f"evaluate <evaluate> --model_name_or_path {ON_THE_HUB}", "is not here yet"),
    Row("one from Python", lambda here, places: load_model(ON_THE_HUB), "is not here yet"),
    Row("a name that is nearly one", f"{FINETUNE} salman2020-resnet18-linf-4", f"did you mean {ON_THE_HUB}"),
    Row("a repository of many", f"{FINETUNE} madrylab/robust-imagenet-models", "it holds"),
    Row("no name at all", f"{FINETUNE} nonsense", "like salman2020-resnet50-linf-eps4"),
    Row("an architecture", f"{FINETUNE} resnet50", "such as salman2020-resnet50-linf-eps4"),
    Row(
        "another image processor",
        f"{FINETUNE} {ON_THE_HUB} --processor_name_or_path <model>",
        "comes with its image processor: leave out the other one",
    ),
    Row(
        "arguments of an architecture",
        f"{FINETUNE} {ON_THE_HUB} --model_args '{{}}' --model_args '{{\"depth\": 3}}'",
        "leave",
    ),
    Row(
        "AdvProp weights as a source",
        f"{FINETUNE} timm/tf_efficientnet_b0.ap_in1k",
        ("no robust source for --transfer lwf: AdvProp", "salman2020-resnet50-linf-eps4", "--transfer fine_tuned"),
    ),
    Row(
        "weights of FGSM's first steps",
        f"{FINETUNE} timm/inception_v3.tf_adv_in1k --transfer frozen",
        ("no robust source for --transfer frozen", "one FGSM step"),
    ),
    Row(
        "AdvProp weights as a teacher",
        "finetune <finetune> --teacher_name_or_path timm/tf_efficientnet_b7.ap_in1k",
        "timm/tf_efficientnet_b7.ap_in1k is no robust source",
    ),
    *(
        Row(f"an origin of {value!r}", command, ("robust_training", words), damaged(config=from_source(value)))
        for command in (EVALUATE, PUBLISH)
        for value, words in (("here", "source 'here'"), ({"license": 3}, "license 3"), ({"eps": 4}, "eps 4"))
    ),
    Row(
        "a licence that the source forbids",
        f"{PUBLISH} --license mit",
        ("--license mit is not open to this model", "no commercial use", "Leave --license out"),
        damaged(config=from_source({"name": "somebody-s", "license": "cc-by-nc-4.0"})),
    ),
]
