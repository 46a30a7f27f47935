"""What a card says of the source that a model comes from, and which licences it may have."""

import pytest

from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.hub.origin import describe_origin, license_of
from hf_robust_transfer.provenance import Origin


@pytest.mark.parametrize(
    "own, given, stated",
    [
        (None, None, None),
        (None, "mit", "mit"),
        ("mit", None, "mit"),
        ("mit", "apache-2.0", "apache-2.0"),
        ("cc-by-4.0", "mit", "mit"),
        ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-sa-4.0"),
        ("cc-by-nc-4.0", "other", "other"),
        ("cc-by-nc-sa-4.0", None, "cc-by-nc-sa-4.0"),
        ("CC-BY-NC-4.0", "cc-by-nc-4.0", "cc-by-nc-4.0"),
    ],
)
def test_the_licence_is_the_one_given_or_else_the_sources(own, given, stated):
    assert license_of(given, Origin(name="source", license=own)) == stated
    assert license_of(given, None) == given


@pytest.mark.parametrize(
    "own, given", [("cc-by-nc-4.0", "mit"), ("cc-by-nc-sa-4.0", "cc-by-nc-4.0"), ("cc-by-sa-4.0", "cc-by-4.0")]
)
def test_what_the_source_forbids_is_refused(own, given):
    with pytest.raises(UsageError, match=f"--license {given} is not open .* {own} demands: .*Leave --license out"):
        license_of(given, Origin(name="source", license=own))


def test_origins_are_told_as_far_as_they_are_known():
    known = {"model_id": "me/mine", "revision": 40 * "a", "file": "a.pt", "license": "cc-by-nc-sa-4.0", "eps": "4/255"}
    told = describe_origin(Origin(name="source", reference="Somebody, 2020", **known))
    assert (
        "source (Somebody, 2020), trained for linf, ε = 4/255: me/mine on the Hub, file a.pt, at commit aaaaaaaaaaaa."
        in told
    )
    assert "no commercial use" in told and "under the same licence" in told and "its authors are named" in told
    assert "not known: ask its authors" in describe_origin(Origin(name="source", url="https://example.org"))
    assert "trained naturally" in describe_origin(Origin(name="source", url="https://example.org", eps="0"))
    assert "a licence of its own" in describe_origin(Origin(name="source", model_id="me/mine", license="other"))
    assert "an imported file, sha256 abc." in describe_origin(Origin(name="an imported file", sha256="abc"))
