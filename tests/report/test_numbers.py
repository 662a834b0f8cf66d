import pytest

from triptych.report.data import format_duration, format_score, format_share


@pytest.mark.parametrize(
    "value, text",
    [
        (None, "–"),
        (0.8617, "0.862"),
        (0.0002, "0.0002"),
        (0, "0.000"),
        (3.41, "3.410"),
        (41.26, "41.3"),
    ],
)
def test_scores(value, text):
    assert format_score(value) == text


@pytest.mark.parametrize(
    "seconds, text",
    [(8.44, "8.4 s"), (200, "3 min 20 s"), (119.7, "2 min 00 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    "share, text", [(0, "0 %"), (0.001, "<1 %"), (0.256, "26 %"), (1, "100 %")]
)
def test_shares(share, text):
    assert format_share(share) == text
