"""`triptych demo` itself at scale "smoke": its files, its report, and what it prints."""

import contextlib
import io
import json
import re

import numpy as np
import pytest
import torch

from triptych.cli.demo import NUM_IMAGES, demo, image_cards, score_row
from triptych.cli.main import main
from triptych.core.config import to_dict
from triptych.core.machine import describe_machine
from triptych.core.outputs import MetricValue
from triptych.workflows.demo import SIZES, Score

RECALLS = [f"{way}_r{k}{itm}" for way in ("i2t", "t2i") for k in (1, 5, 10) for itm in ("", "_itm")]
SHOWN = {  # the rows of the table, of each split
    *("i2t_r1", "i2t_r1_itm", "t2i_r1", "t2i_r1_itm", "r_mean", "r_mean_itm"),
    *("caption_objects", "bleu_4", "rouge_l", "cider"),
    *("vqa", *(f"vqa/{kind}" for kind in ("color", "count", "relation", "shape", "yes_no"))),
    *("grounding", "grounding_iou"),
}
KEYS = SHOWN | {*RECALLS, "bleu_1", "bleu_2", "bleu_3"}  # of results.json, which leaves none out
STAGES = ("pretrain", "vqa", "grounding")
TIMES = ("scenes", "pretrain", "fine-tuning", "evaluation test", "evaluation compositional")
# With seed 3 the 12 scenes of each split have questions of every type
COMMAND = "triptych demo --scale smoke --seed 3 --num-threads 1"


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The demo's result, its folder, and what it printed into a pipe of 80 columns."""
    threads, printed = torch.get_num_threads(), io.StringIO()
    folder = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("COLUMNS", "80")
        result = demo(folder, "smoke", seed=3, num_threads=1)
    torch.set_num_threads(threads)
    return result, folder, printed.getvalue()


@pytest.fixture(scope="module")
def page(told):
    return (told[1] / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_results_hold_every_figure_with_its_command(told):
    result, folder, _ = told
    stored = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert list(stored) == ["machine", "commit", "scale", "times_s", "config", "figures"]
    assert (stored["machine"], stored["scale"]) == (describe_machine(), "smoke")
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|\d+\.\d+\.\d+", stored["commit"])
    assert tuple(stored["times_s"]) == TIMES
    configs = {stage: to_dict(config) for stage, config in result.configs.items()}
    assert stored["config"] == json.loads(json.dumps(configs))
    figures = stored["figures"]
    assert figures.keys() == {"demo_minutes"} | {
        prefix + key for prefix in ("", "compositional_") for key in (*KEYS, "vqa_blind")
    }
    assert {figure["command"] for figure in figures.values()} == {COMMAND}
    assert figures["vqa_blind"]["value"] == figures["vqa"]["blind"]
    assert figures["i2t_r1"]["chance"] == 1 / SIZES["smoke"].num_test
    for key in ("bleu_4", "rouge_l", "cider", "vqa", "grounding", "grounding_iou"):
        assert figures[key]["chance"] is not None and figures[key]["blind"] is not None
    parts = {"value", "command", "low", "high", "num_items", "chance", "blind", "protocol"}
    assert all(figures[key].keys() == parts for key in KEYS)


@pytest.mark.slow
def test_the_report_shows_images_curves_configuration_machine_commit_and_times(told, page):
    stored = json.loads((told[1] / "results.json").read_text(encoding="utf-8"))
    assert page.count('<article class="card">') == NUM_IMAGES
    assert re.findall(r"<summary>(\w+)</summary>", page) == [*STAGES]
    curves = page[page.index('<section id="curves"') : page.index('<section id="times"')]
    assert curves.count("<figure") == len(STAGES)
    for stage in STAGES:
        assert f"recipe: mplug.{stage}" in page
    for fact in (*stored["machine"].values(), stored["commit"], COMMAND, *TIMES):
        assert fact in page
    assert set(re.findall(r">((?:compositional|test))<", page)) == {"compositional", "test"}


@pytest.mark.slow
def test_the_terminal_shows_the_short_table_and_a_path_that_exists(told):
    _, folder, printed = told
    (path,) = re.findall(r"^[\d.]+ minutes in all\. Report: (.+)$", printed, flags=re.MULTILINE)
    assert path == str((folder / "report.html").resolve())
    assert (folder / "report.html").is_file()
    assert re.search(rf"^Try it: triptych caption {folder}/pretrain/model \S+$", printed, re.M)
    rows = re.findall(r"^(\S+) +(?:test|compositional) +\d", printed, flags=re.MULTILINE)
    assert sorted(rows) == sorted([*SHOWN] * 2)


@pytest.mark.slow
def test_a_finished_demo_is_kept(told, capsys):
    _, folder, _ = told
    assert main(["demo", "--out", str(folder), "--scale", "smoke"]) == 2
    assert f"{folder} holds a finished demo, with its report in" in capsys.readouterr().err


def test_a_stop_between_trainings_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("triptych.workflows.demo._train_tokenizer", stopped)
    assert main(["demo", "--out", str(tmp_path / "a b"), "--scale", "smoke"]) == 130
    command = f"triptych demo --scale smoke --seed 0 --out '{tmp_path / 'a b'}'"
    assert f"triptych: continue with `{command}`" in capsys.readouterr().err


@pytest.mark.slow
def test_a_seed_chooses_the_images(told, page):
    result = told[0]

    def names(seed, count):
        return [card.image.name for card in image_cards(result, seed=seed, count=count)]

    first = names(3, 4)
    assert first == names(3, 4)
    assert len(set(first)) == 4
    assert names(4, 4) != first
    by_name = {
        record.image.path.rpartition("/")[2]: record for record in result.records["caption", "test"]
    }
    captions = re.findall(r"<dt>Truth</dt><dd>([^<]*)</dd>", page)
    assert captions[:4] == [by_name[name].caption for name in first]


@pytest.mark.slow
def test_a_card_holds_what_was_said_of_its_image_and_no_other(told):
    result = told[0]
    for card in image_cards(result, seed=0, count=2):
        questions = [r for r in result.records["vqa", "test"] if r.image.path == str(card.image)]
        assert [a.question for a in card.questions] == [r.question for r in questions]
        assert [a.answer_truth for a in card.questions] == [r.answers[0] for r in questions]
        phrases = [
            r for r in result.records["grounding", "test"] if r.image.path == str(card.image)
        ]
        truth = [[x, y, x + w, y + h] for x, y, w, h in (r.box for r in phrases)]
        np.testing.assert_allclose([p.box_truth for p in card.phrases], truth)
        assert len(card.neighbours) == 5


@pytest.mark.parametrize(("scale", "bar"), [("tiny", 0.7), ("smoke", None), ("small", None)])
def test_bars_are_those_of_the_tiny_scale(scale, bar):
    value = MetricValue(name="vqa", value=0.75, low=0.7, high=0.8, num_items=9, protocol="so")
    score = Score(key="vqa", task="vqa", split="test", value=value, chance=0.1, blind=0.3)
    row = score_row(score, scale)
    assert (row.metric, row.value, row.low, row.high) == ("vqa", 0.75, 0.7, 0.8)
    assert (row.chance, row.blind, row.target, row.protocol) == (0.1, 0.3, bar, "so")
    assert row.met is (True if bar else None)
