import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.report.page import parse
from triptych.core.errors import DataError
from triptych.core.outputs import MetricValue
from triptych.report.data import (
    Answer,
    BeforeAfter,
    Change,
    Curve,
    Grounding,
    ImageCard,
    Neighbour,
    ReportData,
    ScoreRow,
)
from triptych.report.html import render_report, score_scale, write_report

EVIL = "<script>alert('x')</script> & \"more\""
IMAGE = np.random.default_rng(1).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def make_data(text="a red star"):
    scores = (
        ScoreRow(
            task="VQA", metric="accuracy", split="test", protocol=text,
            value=0.781, low=0.75, high=0.81, chance=0.18, blind=0.46, target=0.7,
        ),
        ScoreRow(task="VQA", metric=text, split="compositional", value=0.6, low=0.5, high=0.7),
        ScoreRow(
            task="Caption", metric="CIDEr", split="test", value=3.4, low=3, high=4, target=5.0,
        ),
    )  # fmt: skip
    card = ImageCard(
        image=IMAGE,
        caption_truth=text,
        caption_model=f"model: {text}",
        caption_right_objects=(1, 2),
        questions=(Answer(text, "red", "red", True), Answer("how many?", text, "two", False)),
        phrases=(Grounding(text, (1.0, 2.0, 8.0, 9.0), (1.0, 2.0, 8.0, 9.0), 1.0),),
        neighbours=(Neighbour(IMAGE, False), Neighbour(IMAGE[:, ::-1], True)),
    )
    return ReportData(
        title=f"Demo: {text}",
        summary_lines=(text, "second line"),
        scores=scores,
        curves=(Curve(title=text, series={text: [(0, 2.0), (10, 1.0)]}),),
        images=(card,),
        images_note="Drawn with seed 7.",
        configuration={text: f"name: {text}\nsteps: 10\n"},
        machine={"CPU": text, "cores": 2},
        commit="0123abc-dirty",
        times_s={"train": 150.0, text: 50.0},
        commands=("make demo", f"echo {text}"),
    )


def test_the_page_has_a_heading_for_each_part_and_links_to_it():
    page = parse(render_report(make_data()))
    assert [node.text() for node in page.find("h1")] == ["Demo: a red star"]
    titles = {node.attributes["id"]: node.find("h2")[0].text() for node in page.find("section")}
    assert titles == {
        "scores": "Scores", "images": "Images", "curves": "Loss curves", "times": "Time",
        "run": "Run",
    }  # fmt: skip
    links = [link.attributes["href"] for link in page.find("nav")[0].find("a")]
    assert links == [f"#{name}" for name in titles]


def test_the_table_shows_each_score_beside_chance_blind_and_target():
    table = parse(render_report(make_data())).find("table")[0]
    groups = [body.find("tr", "task")[0].text() for body in table.find("tbody")]
    assert groups == ["VQA", "Caption"]
    rows = [[cell.text() for cell in row.find("td")] for row in table.find("tr")]
    shown = [cells for cells in rows if cells]
    assert shown == [
        ["0.7810.750 – 0.810", "", "0.180", "0.460", "0.700✓ met"],
        ["0.6000.500 – 0.700", "", "–", "–", "–"],
        ["3.4003.000 – 4.000", "scale ends at 5", "–", "–", "5.000✗ not met"],
    ]
    assert len(table.find("svg", "score")) == 3


def test_what_fine_tuning_did_to_retrieval_stands_in_a_table():
    shared = {"name": "i2t_r1", "num_items": 200, "protocol": ""}
    before = MetricValue(value=0.75, low=0.7, high=0.8, **shared)
    after = MetricValue(value=0.625, low=0.5, high=0.7, **shared)
    stages = (
        BeforeAfter(stage="vqa", changes=(Change(EVIL, 1200, before, after),)),
        BeforeAfter(stage="box", changes=(Change("g", 9, before, None),), notes=("no embeddings",)),
    )
    page = parse(render_report(ReportData(title="x", before_after=stages)))
    (section,) = page.find("section")
    assert section.attributes["id"] == "before_after"
    rows = [[cell.text() for cell in row.find("td")] for row in section.find("tr")]
    assert [cells for cells in rows if cells] == [
        ["0.7500.700 – 0.800", "0.6250.500 – 0.700", "-0.125"],
        ["0.7500.700 – 0.800", "–", "lost"],
    ]
    heads = [row.find("th")[0].text() for row in section.find("tr")]
    assert heads == ["Metric", "vqa", f"i2t_r1{EVIL} 1,200 images", "box", "i2t_r1g 9 images",
                     "no embeddings"]  # fmt: skip


def test_the_main_scores_say_whether_their_target_is_met():
    tiles = parse(render_report(make_data())).find("ul", "tiles")[0].find("li")
    assert [tile.text() for tile in tiles] == [
        "VQA accuracy0.781✓ met target 0.7",
        "Caption CIDEr3.400✗ not met target 5",
    ]


def test_a_card_shows_caption_answers_box_and_neighbours():
    page = parse(render_report(make_data()))
    (card,) = page.find("article", "card")
    assert [node.text() for node in card.find("dd")] == ["model: a red star", "a red star"]
    assert "1 of 2 objects right" in card.text()
    answers = [item.text() for item in card.find("ul", "answers")[0].find("li")]
    assert answers == ["a red star red ✓ right", "how many? a red star ✗ wrong truth: two"]
    assert [item.text() for item in card.find("ol")[0].find("li")] == [
        "a red star IoU 1.00 ✓ right"
    ]
    box = card.find("rect", "box is-right")[0].attributes
    assert [box[key] for key in ("x", "y", "width", "height")] == ["1", "2", "7", "7"]
    assert [figure.text() for figure in card.find("figure")] == ["1", "✓ right"]
    lead = page.find("section")[1].find("p", "lead")[0].text()
    assert lead == (
        "Drawn with seed 7. On this page 1 of 2 answers are right and 1 of 1 boxes are right."
    )


def test_images_lie_in_the_page_pixel_by_pixel():
    card = parse(render_report(make_data())).find("article")[0]
    shown, *thumbnails = card.find("img")
    assert shown.attributes["alt"] == "a red star"
    assert shown.attributes["class"] == "pixels"
    data = shown.attributes["src"].removeprefix("data:image/png;base64,")
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data, validate=True)))), IMAGE
    )
    assert [image.attributes["alt"] for image in thumbnails] == [
        "retrieved image 1",
        "retrieved image 2",
    ]


def test_images_lie_in_the_page_and_keep_their_place():
    shown = parse(render_report(make_data())).find("img")
    assert len(shown) > 1
    for image in shown:  # what is not yet loaded would be blank in print, and move what follows
        assert "loading" not in image.attributes
        assert int(image.attributes["width"]) > 0 and int(image.attributes["height"]) > 0


def test_commands_in_the_summary_are_code():
    page = parse(render_report(replace(make_data(), summary_lines=("`a <b>` does `c`.",))))
    summary = page.find("div", "summary")[0]
    assert summary.text() == "a <b> does c."
    assert [node.text() for node in summary.find("code")] == ["a <b>", "c"]


def test_an_image_without_questions_has_its_caption_beside_it():
    card = ImageCard(image=IMAGE, caption_truth="t", caption_model="")
    article = parse(render_report(ReportData(title="x", images=(card,)))).find("article")[0]
    assert article.find("div", "said")[0].find("dd", "model")[0].text() == "(nothing)"
    assert article.find("svg") == []


def test_text_from_outside_is_never_markup():
    text = render_report(make_data(EVIL))
    page = parse(text)
    assert "<script" not in text
    assert page.find("script") == []
    assert page.find("h1")[0].text() == f"Demo: {EVIL}"
    assert page.find("img")[0].attributes["alt"] == EVIL
    assert page.find("details")[0].find("pre")[0].text() == f"name: {EVIL} steps: 10"
    # title, head, summary, table twice, curve (title, label, name, legend), card: 6, time,
    # machine, command, configuration twice: the text arrives whole wherever it is shown.
    assert text.count("&lt;script&gt;") >= 18


def test_the_page_loads_nothing_and_runs_nothing():
    page = parse(render_report(make_data()))
    for node in page.walk():
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            target = node.attributes.get(name, "data:")
            assert target.startswith(("data:", "#")), f"<{node.name} {name}={target!r}>"
        assert not [name for name in node.attributes if name.startswith("on")]
        assert node.name not in {"script", "link", "iframe", "object", "base"}
    policy = next(m for m in page.find("meta") if m.attributes.get("http-equiv"))
    assert policy.attributes["content"].startswith("default-src 'none'")


def test_a_curve_reads_its_metrics_and_shows_the_last_value(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss/itc": 4.0}\n{"step": 2, "loss/itc": 1.25}\n')
    data = ReportData(title="x", curves=(Curve(title="Stage", metrics_jsonl=path),))
    figure = parse(render_report(data)).find("figure", "curve")[0]
    assert figure.find("h3")[0].text() == "Stage"
    assert [item.text() for item in figure.find("li")] == ["itc 1.25"]
    assert figure.find("svg")[0].attributes["aria-label"] == "Stage: itc from 4 to 1.25"


def test_a_missing_metrics_file_is_an_error(tmp_path):
    data = ReportData(title="x", curves=(Curve(title="s", metrics_jsonl=tmp_path / "none"),))
    with pytest.raises(DataError, match="no such file"):
        render_report(data)


@pytest.mark.parametrize("given", [{}, {"series": {}, "metrics_jsonl": "m"}])
def test_a_curve_takes_numbers_or_a_file(given):
    with pytest.raises(ValueError, match="either metrics_jsonl or series"):
        Curve(title="x", **given)


def test_times_are_shares_of_the_whole():
    section = parse(render_report(make_data("other"))).find("section")[3]
    assert section.find("p")[0].text() == "3 min 20 s in total."
    assert [item.text() for item in section.find("li")] == [
        "train2 min 30 s · 75 %",
        "other50.0 s · 25 %",
    ]
    assert [rect.attributes["width"] for rect in section.find("rect")] == ["75%", "25%"]


def test_machine_commit_commands_and_configuration_are_shown():
    run = parse(render_report(make_data())).find("section")[4]
    facts = dict(zip([n.text() for n in run.find("dt")], [n.text() for n in run.find("dd")]))
    assert facts == {"CPU": "a red star", "cores": "2", "commit": "0123abc-dirty"}
    commands, configuration = run.find("code")
    assert commands.children == ["make demo\necho a red star"]
    assert configuration.children == ["name: a red star\nsteps: 10\n"]
    assert run.find("details")[0].attributes == {}, "closed until a reader opens it"


def test_an_empty_report_has_no_empty_parts(tmp_path):
    write_report(ReportData(title="Nothing yet"), tmp_path / "deep" / "report.html")
    page = parse((tmp_path / "deep" / "report.html").read_text(encoding="utf-8"))
    assert page.find("h1")[0].text() == "Nothing yet"
    assert page.find("section") == []


def test_ids_are_unique():
    ids = re.findall(r' id="([^"]*)"', render_report(make_data()))
    assert len(ids) == len(set(ids)) == 10


@pytest.mark.parametrize("high, scale", [(0.9, 1), (1.2, 2), (3.4, 5), (41.0, 50)])
def test_a_score_above_one_has_a_round_scale(high, scale):
    row = ScoreRow(task="t", metric="m", split="s", value=high / 2, low=0.1, high=high)
    assert score_scale(row) == scale


def test_fifty_images_stay_below_two_megabytes():
    rng = np.random.default_rng(2)
    smooth = [
        np.clip(np.full((64, 64, 3), 128) + rng.normal(0, 4, (64, 64, 3)), 0, 255).astype(np.uint8)
        for _ in range(6)
    ]
    card = ImageCard(
        image=smooth[0],
        caption_truth="t",
        caption_model="m",
        neighbours=tuple(Neighbour(image, False) for image in smooth[1:]),
    )
    assert len(render_report(ReportData(title="x", images=(card,) * 50))) < 2e6
