import pytest

from triptych.report.markup import Markup, element, format_coordinate, join


def test_text_and_attributes_are_escaped_and_markup_is_not():
    inner = element("b", {"title": 'a"<b>'}, "1 < 2 & 'x'")
    assert inner == '<b title="a&quot;&lt;b&gt;">1 &lt; 2 &amp; &#x27;x&#x27;</b>'
    assert element("p", {}, inner, "<i>") == f"<p>{inner}&lt;i&gt;</p>"


def test_void_elements_have_no_end():
    assert element("img", {"alt": "x"}) == '<img alt="x">'


def test_join_escapes_plain_text():
    assert join(["<", Markup("<br>")], ", ") == "&lt;, <br>"


@pytest.mark.parametrize("value, text", [(1.0, "1"), (0.126, "0.13"), (-0.001, "0"), (10, "10")])
def test_coordinates_are_short(value, text):
    assert format_coordinate(value) == text
