"""Hostile text."""

from __future__ import annotations

from xml.etree.ElementTree import Element, fromstring, tostring

from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.assess.printable import printable

ANY = st.text(st.characters(codec=None, exclude_categories=()))


@settings(max_examples=200)
@given(ANY)
def test_any_text_becomes_harmless(text: str) -> None:
    clean = printable(text)
    assert all(c in "\n\t" or c.isprintable() for c in clean)
    clean.encode()
    element = Element("a", b=clean)
    element.text = clean
    assert fromstring(tostring(element)).text in {clean, None}
    assert printable(clean) == clean


def test_what_is_shown_of_escapes() -> None:
    text = "\x1b[2Ja\x9bb\u202ec\ud800\U000e0001\r\nd\te"
    assert printable(text) == "\\x1b[2Ja\\x9bb\\u202ec\\ud800\\U000e0001\nd\te"
    assert printable("naïve 漢字") == "naïve 漢字"


def test_limit_says_what_was_cut() -> None:
    assert printable("x" * 12, 10) == "xxxxxxxxxx\n[2 more characters]"
