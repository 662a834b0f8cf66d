"""`triptych demo` itself at scale "smoke": its files, its report, and what it prints."""

import contextlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from triptych.cli.demo import demo
from triptych.cli.main import main
from triptych.core.config import to_dict
from triptych.core.machine import describe_machine
from triptych.core.outputs import MetricValue
from triptych.data.images import decode_image
from triptych.demo.page import NUM_IMAGES, NUM_SEARCHES, image_cards, score_row, whole_demo
from triptych.demo.plan import SIZES
from triptych.demo.state import Demo, DemoSettings, Score
from triptych.index.search import open_index

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
TIMES = (*TIMES, "index")
# With seed 3 the 12 scenes of each split have questions of every type
COMMAND = "triptych demo --scale smoke --seed 3 --num-threads 1"


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The demo's result, its folder, and what it printed into a pipe of 80 columns."""
    threads, printed = torch.get_num_threads(), io.StringIO()
    folder = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("COLUMNS", "80")
        result = demo(folder, DemoSettings(scale="smoke", seed=3, num_threads=1))
    torch.set_num_threads(threads)
    return result, folder, printed.getvalue()


@pytest.fixture(scope="module")
def page(told):
    return (told[1] / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_results_hold_every_figure_with_its_command(told):
    result, folder, _ = told
    stored = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    parts = ("machine", "commit", "scale", "minutes", "whole", "times_s", "config", "figures")
    assert tuple(stored) == parts
    assert (stored["machine"], stored["scale"]) == (describe_machine(), "smoke")
    assert (stored["minutes"], stored["whole"]) == (None, True)
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
    assert page.count('<article class="card">') == NUM_IMAGES + NUM_SEARCHES
    assert page.count('alt="found image') == 5 * NUM_SEARCHES
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
    models = " ".join(f"{folder}/{stage}/model" for stage in STAGES)
    assert printed.splitlines()[-1] == f"triptych serve {models} --index {folder}/index"
    assert len(open_index(folder / "index").search("a red circle", top=30)) == 24
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

    monkeypatch.setattr("triptych.demo.run.train_tokenizer", stopped)
    assert main(["demo", "--out", str(tmp_path / "a b"), "--scale", "smoke"]) == 130
    command = f"triptych demo --scale smoke --seed 0 --out '{tmp_path / 'a b'}'"
    assert f"triptych: continue with `{command}`" in capsys.readouterr().err


@pytest.mark.slow
def test_a_seed_chooses_the_images(told, page):
    result = told[0]

    def names(seed, count):
        cards = image_cards(result, open_index(result.index), seed=seed, count=count)
        return [(card.caption_truth, card.image.tobytes()) for card in cards]

    first = names(3, 4)
    assert first == names(3, 4)
    assert len(set(first)) == 4
    assert names(4, 4) != first
    captions = re.findall(r"<dt>Truth</dt><dd>([^<]*)</dd>", page)
    assert captions[:4] == [caption for caption, _ in first]


@pytest.mark.slow
def test_a_card_holds_what_was_said_of_its_image_and_no_other(told):
    result = told[0]
    for card in image_cards(result, open_index(result.index), seed=0, count=2):
        (path,) = {
            record.image.path
            for record in result.records["caption", "test"]
            if (decode_image(record.image) == card.image).all()
        }
        questions = [r for r in result.records["vqa", "test"] if r.image.path == path]
        assert [a.question for a in card.questions] == [r.question for r in questions]
        assert [a.answer_truth for a in card.questions] == [r.answers[0] for r in questions]
        phrases = [r for r in result.records["grounding", "test"] if r.image.path == path]
        truth = [[x, y, x + w, y + h] for x, y, w, h in (r.box for r in phrases)]
        np.testing.assert_allclose([p.box_truth for p in card.phrases], truth)
        assert len(card.neighbours) == 5


def vqa_row(scale, plan=None):
    value = MetricValue(name="vqa", value=0.75, low=0.7, high=0.8, num_items=9, protocol="so")
    score = Score(key="vqa", task="vqa", split="test", value=value, chance=0.1, blind=0.3)
    return score_row(score, Demo(Path("out"), DemoSettings(scale=scale), Console(), plan))


@pytest.mark.parametrize(("scale", "bar"), [("tiny", 0.7), ("smoke", None), ("small", None)])
def test_bars_are_those_of_the_whole_tiny_scale(scale, bar):
    row = vqa_row(scale)
    assert (row.metric, row.value, row.low, row.high) == ("vqa", 0.75, 0.7, 0.8)
    assert (row.chance, row.blind, row.target, row.protocol) == (0.1, 0.3, bar, "so")
    assert row.met is (True if bar else None)
    assert row.whole is None


def test_a_shortened_demo_stands_beside_the_whole_one():
    row = vqa_row("tiny", replace(SIZES["tiny"], pretrain_steps=900))
    assert (row.target, row.met) == (None, None)
    assert row.whole == row.aim == whole_demo()["figures"]["vqa"]
    assert vqa_row("tiny", SIZES["tiny"]).target == 0.7
