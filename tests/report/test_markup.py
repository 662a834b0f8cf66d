import pytest
from markupsafe import Markup

from triptych.report.svg import element, format_coordinate


def test_text_and_attributes_are_escaped_and_markup_is_not():
    inner = element("b", {"title": 'a"<b>'}, "1 < 2 & 'x'")
    assert inner == '<b title="a&#34;&lt;b&gt;">1 &lt; 2 &amp; &#39;x&#39;</b>'
    assert element("p", {}, inner, "<i>") == f"<p>{inner}&lt;i&gt;</p>"
    assert element("p", {}, Markup("<br>"), "{}") == "<p><br>{}</p>"


@pytest.mark.parametrize("value, text", [(1.0, "1"), (0.126, "0.13"), (-0.001, "0"), (10, "10")])
def test_coordinates_are_short(value, text):
    assert format_coordinate(value) == text
