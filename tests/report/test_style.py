import re
from importlib.resources import files

import pytest

STYLE = (files("triptych.report") / "templates" / "page.css").read_text(encoding="utf-8")
SCHEMES = re.findall(r":root \{(.*?)\}", STYLE, flags=re.DOTALL)[:2]
TEXT_ON = [
    ("ink", "page"), ("ink", "surface"), ("ink", "sunken"), ("soft", "page"), ("soft", "surface"),
    ("accent", "page"), ("right", "right-soft"), ("wrong", "wrong-soft"), ("partly", "partly-soft"),
    *((f"s{index}", "surface") for index in range(8)),
]  # fmt: skip


def colours(scheme):
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", scheme))


def luminance(colour):
    """Relative luminance as WCAG 2.2 defines it."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", SCHEMES, ids=["light", "dark"])
@pytest.mark.parametrize("text, ground", TEXT_ON)
def test_text_has_the_contrast_of_wcag_aa(scheme, text, ground):
    names = colours(scheme)
    light, dark = sorted((luminance(names[text]), luminance(names[ground])), reverse=True)
    minimum = 3.0 if re.fullmatch(r"s\d", text) else 4.5  # lines; their names are in the legend too
    assert (light + 0.05) / (dark + 0.05) >= minimum


def test_the_style_loads_nothing():
    assert "url(" not in STYLE and "@import" not in STYLE and "</" not in STYLE
