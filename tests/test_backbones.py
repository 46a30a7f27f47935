"""All kinds of backbones: from a source over three transfers to what every library loads and evaluates."""

import re
from pathlib import Path

import pytest
from backbones import REFUSED, SEVEN, SMALLER, TIMM, WITHOUT_CACHE, save_source, stock, stock_kinds, tried

from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.modeling import create_model

# One of each kind, in a size that is quick to try.
QUICK = {
    "two heads": ("DeiTForImageClassificationWithTeacher", "deit"),
    "stages whose layers stand before their blocks": ("PvtForImageClassification", "pvt"),
    "batch-norm before the head": ("repvit_m0_9", {"embed_dim": [8, 16], "depth": [1, 1]}),
    "attention pooling": ("vit_base_patch16_siglip_224", {"img_size": 32, "depth": 2, "embed_dim": 16, "num_heads": 2}),
}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("kind", QUICK)
def test_one_of_each_kind_works(kind, tmp_path):
    name, how = QUICK[kind]
    made = stock(name, how) if isinstance(how, str) else create_model(name, id2label=SEVEN, model_args=how)
    assert carried_over(*made, tmp_path) == "works"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model_type"), list(stock_kinds()))
def test_each_image_classifier_of_transformers_works_or_is_refused_with_the_reason(name, model_type, tmp_path):
    if name in REFUSED:
        with pytest.raises((UsageError, ImportError), match=REFUSED[name]):
            carried_over(*stock(name, model_type), tmp_path)
    else:
        assert carried_over(*stock(name, model_type), tmp_path) == "works"


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TIMM, *SMALLER])
def test_models_of_each_family_of_timm_work(name, tmp_path):
    model, processor = create_model(name, id2label=SEVEN, model_args=SMALLER.get(name))
    expected = "works without the feature cache" if name in WITHOUT_CACHE else "works"
    assert carried_over(model, processor, tmp_path) == expected


def carried_over(model, processor, folder):
    save_source(model, processor, folder / "source")
    return tried(str(folder / "source"), folder)


def test_the_page_lists_what_is_tried():
    page = (Path(__file__).parents[1] / "docs" / "reference" / "backbones.md").read_text()
    kinds = [name for name, _ in stock_kinds()]
    assert set(re.findall(r"`(\w+ForImageClassification\w*)`", page)) == set(kinds)
    assert set(re.findall(r"`(\w+)`", page.partition("## timm")[2].partition("## Heads")[0])) == {*TIMM, *SMALLER}
    works = f"{len(kinds) - len(REFUSED)} of the {len(kinds)} image classifiers of `transformers`"
    assert f"| works | {works}, {len(TIMM) + len(SMALLER) - len(WITHOUT_CACHE)} models of timm |" in page
    assert f"| works without the feature cache | {len(WITHOUT_CACHE)} models of timm" in page
    refused = page.partition("Refused:")[2].partition("## timm")[0]
    assert set(re.findall(r"`(\w+ForImageClassification\w*)`", refused)) == set(REFUSED)
