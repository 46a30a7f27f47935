"""The model card in the documentation is the one that the code writes."""

from card_example import PAGE, PICTURE, page


def test_the_card_in_the_documentation_is_written_by_the_code():
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew with: python tests/hub/card_example.py"
    assert PICTURE.is_file()
