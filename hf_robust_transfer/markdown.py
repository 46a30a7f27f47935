"""Texts from outside (names of classes, of data, of options) in Markdown, where they show as they are and do nothing."""

import re
import unicodedata

# An underscore within a word, and an ampersand that begins no entity, are only themselves.
_SPECIAL = re.compile(r"[\\`*\[\]<|~$@]|&(?=[#\w])|(?<![^\W_])_|_(?![^\W_])")
# Domains and schemes become links in some Markdown.
_LINK = re.compile(r"(?<=\w)\.(?=[^\W\d])|:(?=//)|(?<=mailto):|(?<=xmpp):", re.IGNORECASE)
# What would begin a heading, a list, or the line under a heading.
_BEGINNING = re.compile(r"^(?:[#=>]|[+-](?=[\s+-]|$)|\d{1,9}[.)](?=\s|$))")
# Marks that let a text run in another direction, over what stands beside it.
_DIRECTIONS = dict.fromkeys(map(ord, "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"))


def one_line(text: object) -> str:
    """A text on one line: line breaks and runs of spaces become a space, control characters go.

    Example:
        >>> one_line("dog\\n\\n  # cat")
        'dog # cat'
    """
    words = str(text).translate(_DIRECTIONS).split()
    kept = ("".join(each for each in word if unicodedata.category(each) not in ("Cc", "Cs", "Zl", "Zp")) for word in words)
    return " ".join(word for word in kept if word)


def escaped(text: object) -> str:
    """Markdown, also for a table's cell or the beginning of a line, that shows a text on one line and as it is.

    Example:
        >>> escaped("**99.9 %** | <b>"), escaped("1. cat"), escaped("t-shirt")
        ('\\\\*\\\\*99.9 %\\\\*\\\\* \\\\| \\\\<b>', '1\\\\. cat', 't-shirt')
    """
    line = _LINK.sub(lambda match: f"\\{match[0]}", _SPECIAL.sub(lambda match: f"\\{match[0]}", one_line(text)))
    return _BEGINNING.sub(lambda match: f"{match[0][:-1]}\\{match[0][-1]}", line)


def code(text: object) -> str:
    """A text on one line as code in Markdown, between as many backticks as it needs.

    Example:
        >>> code("a`b")
        '`` a`b ``'
    """
    line = one_line(text)
    ticks = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    space = " " if "`" in line else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def code_block(text: str, language: str = "") -> str:
    """A text as a block of code in Markdown, which nothing in the text ends.

    Example:
        >>> print(code_block("echo", "bash"))
        ```bash
        echo
        ```
    """
    fence = "`" * max(3, max(map(len, re.findall("`+", text)), default=0) + 1)
    return f"{fence}{language}\n{text}\n{fence}"
