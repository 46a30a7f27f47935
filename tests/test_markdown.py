"""Texts from outside in Markdown, judged by a parser of it."""

import pytest
from hypothesis import given, strategies as st
from markdown_it import MarkdownIt

from hf_robust_transfer.markdown import code, code_block, escaped, one_line

NASTY = (
    *("dog\n\n**Robust accuracy: 99.9 %**", "# Heading", "> quote", "- item", "1. one", "2) two", "+ plus", "---"),
    *("===", "- - -", "| a | b |", "a|b", "<b>bold</b>", "<!-- hidden", "<script>alert(1)</script>", "&lt;b&gt;"),
    *("&#60;b>", "AT&T", "a & b", "[x](http://evil.example)", "![x](http://evil.example/x.png)"),
    *("<http://evil.example>", "http://evil.example", "[ ] todo", "www.evil.example", "me@evil.example", "`code`"),
    *("```\ncode", "~~~", "~~gone~~", "*a*", "_a_", "__a__", "a_b_c", "*", "\\", "\\*", "$5 bill_$", "$$x$$"),
    *("[x]: http://evil.example", "[^1]", "\tindented", "    code", "a  \nb", "\u202e%9.99", "{{ x }}"),
    *("{% raw %}", "a\rb", "a\u2028b", "a\x00b", "--- \nx: y\n---", "é́ 日本 🐶", "learning_rate", "pgd-20:steps=3"),
    *("0.5%", "-1"),
)
TEXTS = st.text() | st.text(alphabet="\\`*_[]<>&|~$#+-=!:.@ \n1a") | st.sampled_from(NASTY)


def shown_by(markdown):
    """The elements of a page and the text that it shows, by a parser with tables, strikethrough and HTML."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(markdown)
    flat = [each for token in tokens for each in (token, *(token.children or ()))]
    texts = [token.content for token in flat if token.type in ("text", "text_special", "code_inline")]
    return [token.type for token in flat if token.type not in ("text", "text_special")], "".join(texts)


def check(text):
    around, line = ["paragraph_open", "inline", "paragraph_close"], one_line(text)
    for before in ("", "A class: "):
        elements, words = shown_by(before + escaped(text) if before or line else "x")
        assert (elements, words) == (around, (before + line).strip() if before or line else "x")
    elements, words = shown_by(f"| a | b |\n|---|---|\n| {escaped(text)} | x |\n\nend")
    assert elements == shown_by("| a | b |\n|---|---|\n| y | x |\n\nend")[0] and words == f"ab{line}xend"
    elements, words = shown_by(f"- {escaped(text)}: y")
    assert elements == shown_by("- x: y")[0] and words == f"{line}: y"
    elements, words = shown_by(f"- a\n{escaped(text)} (b)")  # at the beginning of a line within a paragraph
    assert "heading_open" not in elements and elements.count("list_item_open") == 1


@pytest.mark.parametrize("text", NASTY)
def test_what_is_nasty_shows_as_it_is_and_does_nothing(text):
    check(text)


@given(TEXTS)
def test_whatever_text_shows_as_it_is_and_does_nothing(text):
    check(text)


@given(TEXTS)
def test_no_text_ends_its_code(text):
    line = one_line(text)
    if line:
        elements, words = shown_by(f"x {code(text)} y")
        assert (
            elements == ["paragraph_open", "inline", "code_inline", "paragraph_close"]
            and words.split() == f"x {line} y".split()
        )
    tokens = MarkdownIt().parse(f"a\n\n{code_block(text, 'bash')}\n\nb")
    assert [token.type for token in tokens] == [token.type for token in MarkdownIt().parse("a\n\n```bash\nx\n```\n\nb")]


def test_ordinary_words_stay_as_they_are():
    for word in (
        "t-shirt",
        "learning_rate",
        "pgd-20:steps=3",
        "8/255",
        "12.5% (10.0% – 15.0%)",
        "λ_d = 0.5",
        "-1",
        "a & b",
    ):
        assert escaped(word) == word
