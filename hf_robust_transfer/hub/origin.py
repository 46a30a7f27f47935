"""What a card has to say of the robust source that a model comes from, and what that source's licence asks for."""

from ..errors import UsageError
from ..provenance import Origin

# What is in the name of a licence, and what it asks of those who pass a model on.
_OBLIGATIONS = {
    "-nc": "no commercial use of it, nor of what is made from it",
    "-sa": "what is made from it comes under the same licence",
    "-nd": "what is made from it may not be passed on",
    "cc-by": "its authors are named",
    "mit": "its copyright notice is kept",
    "bsd": "its copyright notice is kept",
    "apache": "its copyright notice is kept, and changes are stated",
}


def license_of(given: str | None, origin: Origin | None) -> str | None:
    """The licence to state for a model: the one that is given, else its source's.

    Args:
        given: a Hub identifier.
        origin: the source that it comes from.

    Raises:
        UsageError: the source's licence forbids what is given.

    Example:
        >>> license_of(None, Origin(license="cc-by-nc-4.0"))
        'cc-by-nc-4.0'
    """
    own = None if origin is None else origin.license
    if own is None or given is None:
        return given or own
    free, allowed = given.lower(), own.lower()
    forbidden = ("-nc" in allowed and "-nc" not in free) or (
        any(part in allowed for part in ("-sa", "-nd")) and free != allowed
    )
    if origin is not None and forbidden and free != "other":
        raise UsageError(
            f"--license {given} is not open to this model: it comes from {origin.name}, whose licence {own} demands:"
            f" {_asked(own)}. Leave --license out to state {own}"
        )
    return given


def describe_origin(origin: Origin) -> str:
    """Where a model's weights come from and what its source's licence asks for, in two sentences."""
    trained = {None: "", "0": ", trained naturally"}.get(origin.eps, f", trained for {origin.norm}, ε = {origin.eps}")
    reference = f" ({origin.reference})" if origin.reference else ""
    if origin.model_id is not None:
        file = f", file {origin.file}" if origin.file else ""
        revision = f", at commit {origin.revision[:12]}" if origin.revision else ""
        place = f"{origin.name}{reference}{trained}: {origin.model_id} on the Hub{file}{revision}"
    elif origin.url is not None:
        place = f"{origin.name}{reference}{trained}: {origin.url}"
    else:
        place = f"{origin.name}{trained}" + (f", sha256 {origin.sha256}" if origin.sha256 else "")
    first = f"Its weights come from {place}."
    if origin.license is None:
        return f"{first} The licence of that source is not known: ask its authors before you pass this model on."
    if origin.license == "other":
        return f"{first} That source has a licence of its own: read there what it asks for."
    asked = _asked(origin.license)
    return f"{first} The licence of that source is {origin.license}" + (f": {asked}." if asked else ".")


def _asked(license: str) -> str:
    found = [asked for part, asked in _OBLIGATIONS.items() if part in license.lower()]
    return "; ".join(found)
