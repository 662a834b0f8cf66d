"""`triptych demo --data` on a few generated images."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image

from triptych.cli.main import main
from triptych.index.search import open_index

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220)}
NUM_IMAGES = 24


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A manifest of images of one colour each, and one with faults."""
    folder = tmp_path_factory.mktemp("my photos")
    rng, lines = np.random.default_rng(0), []
    for i in range(NUM_IMAGES):
        name, colour = list(COLOURS.items())[i % 3]
        pixels = np.clip(rng.normal(colour, 20, (40, 56, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append({"image": f"{i}.png", "caption": f"a {name} wall number {i}"})
    (folder / "my.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines[5]["image"] = "gone.png"
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"image": \n'
    (folder / "faults.jsonl").write_text(text)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch, photos):
    """An empty current folder; the terminal is wide."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.mark.slow
def test_own_images_end_in_a_report_an_index_and_a_command(here, photos, capsys):
    data = str(photos / "my.jsonl")
    flags = ["--scale", "smoke", "--num-threads", "1"]
    assert main(["demo", "--data", data, *flags]) == 0
    out = here / "runs" / "demo-my"
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == (
        "triptych serve runs/demo-my/pretrain/model --index runs/demo-my/index"
    )
    assert "24 images with 24 captions" in said
    assert "held out: training never saw them" in said
    assert "expect" in said
    page = (out / "report.html").read_text(encoding="utf-8")
    results = json.loads((out / "results.json").read_text())
    command = results["figures"]["i2t_r1"]["command"]
    words = shlex.split(command)
    assert words[:4] == ["triptych", "demo", "--data", data]
    plan = json.loads((out / "demo.json").read_text())["plan"]
    assert plan["num_images"] + plan["num_test"] == NUM_IMAGES
    assert page.count('<article class="card">') == min(12, plan["num_test"])
    assert results["figures"]["i2t_r1"]["num_items"] == plan["num_test"]
    assert results["figures"]["i2t_r1"]["chance"] == 1 / plan["num_test"]
    assert "cider" in results["figures"]
    index = open_index(out / "index")
    assert len(index.search("a red wall", top=100)) == NUM_IMAGES
    assert main(["demo", "--data", data, *flags]) == 2
    assert "holds a finished demo" in capsys.readouterr().err


@pytest.mark.slow
def test_problems_are_listed_and_left_out(here, photos, capsys):
    data = str(photos / "faults.jsonl")
    flags = ["--scale", "smoke", "--minutes", "1", "--num-threads", "1", "--out", "out"]
    assert main(["demo", "--data", data, *flags]) == 0
    said = capsys.readouterr().out
    assert "missing_file: 1" in said and "bad_json: 1" in said
    assert "2 entries cannot be used and were skipped" in said
    assert (here / "out" / "report.html").is_file()
    assert len(open_index(here / "out" / "index").search("a wall", top=100)) == NUM_IMAGES - 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "{photos}/faults.jsonl", "--max-bad-share", "0.01"], "2 of 25 entries cannot"),
        (["--data", "{photos}/none.jsonl"], "none.jsonl"),
        (["--data", "few.jsonl"], "few.jsonl holds 2 images with captions: the demo needs at lea"),
        (["--data", "questions.jsonl"], "no record has caption, which mplug.pretrain needs"),
        (["--reader", "csv"], "--reader says how --data is read: give --data as well"),
    ],
)
def test_data_that_cannot_be_used_is_told_and_nothing_is_written(
    here, photos, capsys, arguments, said
):
    lines = (photos / "my.jsonl").read_text().splitlines()[:2]
    few = [json.loads(line) for line in lines]
    for line in few:
        line["image"] = str(photos / line["image"])
    (here / "few.jsonl").write_text("".join(json.dumps(line) + "\n" for line in few))
    question = {"image": few[0]["image"], "question": "what ?", "answers": ["a wall"]}
    (here / "questions.jsonl").write_text(json.dumps(question) + "\n")
    given = [argument.format(photos=photos) for argument in arguments]
    assert main(["demo", *given, "--scale", "smoke", "--out", "out"]) in (1, 2)
    assert said in capsys.readouterr().err
    assert not (here / "out").exists()
