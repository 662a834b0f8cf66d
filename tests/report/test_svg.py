import pytest

from tests.report.page import parse
from triptych.report.data import Grounding, ScoreRow
from triptych.report.svg import build_lines, draw_boxes, draw_curves, draw_score, draw_times, spread


def row(**fields):
    defaults = {"task": "t", "metric": "m", "split": "s", "value": 0.5, "low": 0.4, "high": 0.6}
    return ScoreRow(**defaults | fields)


def test_curve_coordinates_of_a_case_worked_by_hand():
    # Axis from 0 to 4 between y = 242 and 22, steps 0 to 10 between x = 42 and 398:
    # (0, 2) lies at (42, 242 - 220/2), (5, 3) at (220, 242 - 165), (10, 4) at (398, 22).
    chart = parse(draw_curves(build_lines({"a": [(0, 2.0), (5, 3.0), (10, 4.0)]}), "losses"))
    (path,) = chart.find("path", "smooth")
    assert path.attributes["d"] == "M42,132 220,77 398,22"
    labels = [text.text() for text in chart.find("text", "tick")]
    assert labels[:5] == ["0", "1", "2", "3", "4"]
    assert {"2", "6", "10", "loss", "optimizer step"} <= set(labels)
    assert chart.find("text", "name")[0].attributes["y"] == "30", (
        "as near to y = 22 as the plot lets"
    )


def test_a_wide_range_is_drawn_and_named_logarithmic():
    series = {"a": [(0, 100.0), (10, 0.01)]}
    chart = parse(draw_curves(build_lines(series), "losses"))
    assert chart.find("path", "raw")[0].attributes["d"] == "M42,22 398,242"
    assert "loss, log scale" in [text.text() for text in chart.find("text")]


def test_each_line_has_a_faint_and_a_strong_path_of_its_own_colour():
    lines = build_lines({"total": [(0, 1.0)], "itc": [(0, 1.0)], "empty": [], "itm": [(0, 2.0)]})
    chart = parse(draw_curves(lines, "losses"))
    assert [line.colour for line in lines] == ["series-total", "series-0", "series-2"]
    for line in lines:
        assert {path.attributes["class"] for path in chart.find("path", line.colour)} == {
            f"raw {line.colour}",
            f"smooth {line.colour}",
        }


def test_non_finite_values_are_not_drawn():
    lines = build_lines({"a": [(0, 1.0), (1, float("nan")), (2, 2.0)], "b": [(0, float("inf"))]})
    text = draw_curves(lines, "losses")
    assert "nan" not in text and "inf" not in text
    assert [line.name for line in lines] == ["a"]


def test_score_bars_whisker_and_target_stand_at_their_shares():
    drawn = parse(draw_score(row(chance=0.002, blind=0.25, target=0.45), 1.0))
    widths = {node.attributes["class"]: node.attributes["width"] for node in drawn.find("rect")}
    assert widths == {
        "track": "100%", "bar-model": "50%", "bar-blind": "25%", "bar-chance": "0.2%",
    }  # fmt: skip
    whisker = drawn.find("line", "whisker")[0].attributes
    assert (whisker["x1"], whisker["x2"]) == ("40%", "60%")
    target = drawn.find("line", "target")[0].attributes
    assert target["x1"] == target["x2"] == "45%"
    label = drawn.find("svg")[0].attributes["aria-label"]
    assert label == (
        "score 0.500, 95 % interval 0.400 to 0.600, chance 0.002, blind 0.250, target 0.450"
    )


def test_a_score_without_comparison_has_no_bars_for_them():
    drawn = parse(draw_score(row(value=2.0, low=1.0, high=3.0), 5.0))
    assert [node.attributes["class"] for node in drawn.find("rect")] == ["track", "bar-model"]
    assert drawn.find("rect", "bar-model")[0].attributes["width"] == "40%"
    assert drawn.find("line", "target") == []


def test_times_follow_each_other():
    rects = parse(draw_times([0.25, 0.5, 0.25], "times")).find("rect")
    places = [(rect.attributes["x"], rect.attributes["width"]) for rect in rects]
    assert places == [("0%", "25%"), ("25%", "50%"), ("75%", "25%")]


def test_boxes_lie_in_pixels_of_the_image_with_the_models_solid_and_the_true_ones_dashed():
    phrases = [
        Grounding("the star", (8.0, 10.0, 28.0, 40.0), (9.0, 10.0, 29.0, 41.5), 0.9),
        Grounding("the heart", (0.0, 0.0, 4.0, 4.0), (30.0, 30.0, 50.0, 50.0), 0.0),
        Grounding("the cross", None, (1.0, 2.0, 3.0, 5.0), 0.0),
    ]
    drawn = parse(draw_boxes(phrases, 64, 48))
    assert drawn.find("svg")[0].attributes["viewbox"] == "0 0 64 48"
    places = {
        css_class: [
            tuple(node.attributes[key] for key in ("x", "y", "width", "height"))
            for node in drawn.find("rect", css_class)
        ]
        for css_class in ("box is-right", "box is-wrong", "box truth")
    }
    assert places["box is-right"] == [("8", "10", "20", "30")]
    assert places["box is-wrong"] == [("0", "0", "4", "4")]
    assert places["box truth"] == [
        ("9", "10", "20", "31.5"), ("30", "30", "20", "20"), ("1", "2", "2", "3"),
    ]  # fmt: skip
    assert [badge.text() for badge in drawn.find("g", "badge")] == ["1", "2"]


@pytest.mark.parametrize(
    "wanted, places",
    [
        ([10, 50, 90], [10, 50, 90]),
        ([50, 50], [50, 64]),
        ([98, 99, 20], [86, 100, 20]),
        ([-5, 0], [0, 14]),
    ],
)
def test_names_never_overlap(wanted, places):
    assert spread(wanted, 14, 0, 100) == places
