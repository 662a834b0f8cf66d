"""caption, answer, ground, match, models: what they print equals what the engine says."""

import json

import numpy as np
import pytest
from PIL import Image

import triptych
from tests.serving.tiny_folder import write_tiny_folder
from triptych.cli.main import main
from triptych.cli.use import BOX_COLOR
from triptych.generation.sampling import SamplingConfig
from triptych.models.base import num_parameters
from triptych.models.families import list_image_tokenizers


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    names = ("captioning", "vqa", "grounding", "retrieval")
    return {name: str(write_tiny_folder(root / name, name)) for name in names}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths = [root / f"{number}.png" for number in range(2)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(path)
    return [str(path) for path in paths]


def test_caption(capsys, folders, images):
    expected = triptych.load(folders["captioning"]).caption(images)
    assert main(["caption", folders["captioning"], images[0]]) == 0
    assert capsys.readouterr().out == f"{expected[0]}\n"
    assert main(["caption", folders["captioning"], *images]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{path}\t{text}" for path, text in zip(images, expected, strict=True)]
    assert main(["caption", folders["captioning"], "--json", *images]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["caption"] for line in found] == expected


def test_caption_takes_beams_and_a_prompt(capsys, folders, images):
    arguments = ["--num-beams", "1", "--prompt", "a small red"]
    assert main(["caption", folders["captioning"], images[0], *arguments]) == 0
    expected = triptych.load(folders["captioning"]).caption(
        images[0], num_beams=1, prompt="a small red"
    )
    assert capsys.readouterr().out == f"{expected}\n"


@pytest.mark.parametrize("drawn", [[], ["--top-k", "3"]])
def test_one_token_alone_can_be_asked_for(capsys, folders, images, drawn):
    arguments = ["caption", folders["captioning"], images[0], "--max-tokens", "1", *drawn]
    assert main(arguments) == 0
    assert len(capsys.readouterr().out.split()) <= 1
    assert main([*arguments, "--min-tokens", "1"]) == 2
    assert "min_tokens = 1" in capsys.readouterr().err


def test_caption_draws_where_it_is_told_how(capsys, folders, images):
    expected = triptych.load(folders["captioning"]).caption(
        images[0], sampling=SamplingConfig(top_p=0.9, temperature=2.0, max_tokens=30), seed=3
    )
    arguments = ["--top-p", "0.9", "--temperature", "2", "--seed", "3"]
    assert main(["caption", folders["captioning"], images[0], *arguments]) == 0
    assert capsys.readouterr().out == f"{expected}\n"


def test_answer_chooses_and_reads_words(capsys, folders, images):
    engine = triptych.load(folders["vqa"])
    question, choices = "what color is the star?", ["red", "blue square", "no"]
    expected = engine.answer(images[0], question, choices=choices, ocr_words="a red star")
    arguments = ["--choices", *choices, "--ocr-words", "a red star"]
    assert main(["answer", folders["vqa"], images[0], question, *arguments]) == 0
    assert capsys.readouterr().out == f"{expected}\n" and expected in choices


def test_answer(capsys, folders, images):
    question = "what color is the star?"
    expected = triptych.load(folders["vqa"]).answer(images[0], question)
    assert main(["answer", folders["vqa"], images[0], question]) == 0
    assert capsys.readouterr().out == f"{expected}\n"
    assert main(["answer", folders["vqa"], images[0], question, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"image": images[0], "question": question, "answer": expected}


def test_ground_prints_and_draws_the_box(capsys, folders, images, tmp_path):
    box = triptych.load(folders["grounding"]).ground(images[0], "the star")
    drawn = tmp_path / "box.png"
    arguments = [folders["grounding"], images[0], "the star", "--draw", str(drawn)]
    assert main(["ground", *arguments]) == 0
    printed = [float(word) for word in capsys.readouterr().out.split()]
    assert printed == pytest.approx(box, abs=0.051)
    before = np.asarray(Image.open(images[0]))
    after = np.asarray(Image.open(drawn))
    changed = (before != after).any(axis=2)
    assert changed.any() and (after[changed] == BOX_COLOR).all()
    rows, columns = np.nonzero(changed)
    x0, y0, x1, y1 = (round(value) for value in box)
    inside = (columns >= x0 - 1) & (columns <= x1 + 1) & (rows >= y0 - 1) & (rows <= y1 + 1)
    assert inside.all()


def test_ground_as_json(capsys, folders, images):
    assert main(["ground", folders["grounding"], images[0], "the star", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["box_xyxy"]) == 4


def test_a_drawing_that_cannot_be_written(capsys, folders, images, tmp_path):
    arguments = [folders["grounding"], images[0], "a", "--draw", str(tmp_path / "box.what")]
    assert main(["ground", *arguments]) == 2
    assert "box.what: unknown file extension" in capsys.readouterr().err


def test_match(capsys, folders, images):
    texts = ["a red circle", "a blue square"]
    expected = triptych.load(folders["retrieval"]).match(images[0], texts)
    assert main(["match", folders["retrieval"], images[0], *texts]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [text for _, text in rows] == texts
    assert [float(score) for score, _ in rows] == pytest.approx(expected, abs=1e-4)
    assert main(["match", folders["retrieval"], images[0], *texts, "--json"]) == 0
    found = [json.loads(line)["probability"] for line in capsys.readouterr().out.splitlines()]
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["caption", "nowhere", "a.jpg"], "no model folder at nowhere"),
        (["caption", "{captioning}", "absent.jpg"], "absent.jpg: there is no such file"),
        (["caption", "{captioning}"], "name at least one image"),
        (["caption", "{captioning}", "."], ".: is a folder: name an image in it; `triptych batch`"),
        (["caption", "{captioning}", "{image}", "--num-beams", "0"], "num_beams = 0: must"),
        (["caption", "{captioning}", "{image}", "--num-beams", "100000"], "must be at most 256"),
        (["caption", "{captioning}", "{image}", "--top-p", "2"], "top_p = 2.0: must"),
        (
            ["caption", "{captioning}", "a", "--top-k", "2", "--num-beams", "2"],
            "beam search or sampling",
        ),
        (["answer", "{vqa}", "{image}", "a?", "--choices", " "], "choice is empty"),
        (["match", "{retrieval}", "{image}"], "name at least one text"),
        (["match", "{retrieval}", "{image}", ""], "text is empty"),
        (["answer", "{vqa}", "{image}", " "], "question is empty"),
        (["answer", "{captioning}", "{image}", "a?"], "triptych train mplug.vqa --data"),
        (["ground", "{vqa}", "{image}", "a"], "triptych train mplug.grounding --data"),
        (["answer", "{vqa}", "{image}"], "QUESTION"),
        (["match", "{retrieval}", "{image}", "a", "--jsn"], "--json"),
        (["caption", "{captioning}", "{image}", "--precision", "fp8"], "fp8"),
    ],
)
def test_mistakes_give_code_2_and_say_what_is_wrong(capsys, folders, images, arguments, message):
    filled = [word.format(**folders, image=images[0]) for word in arguments]
    assert main(filled) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (["batch", "caption", "{captioning}", "."], "triptych.jobs.run.run_job"),
        (["index", "{retrieval}", "."], "triptych.index.build.build_index"),
    ],
)
def test_ctrl_c_says_that_the_same_command_goes_on(
    capsys, folders, tmp_path, monkeypatch, arguments, place
):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(place, stop)
    filled = [word.format(**folders) for word in arguments]
    assert main([*filled, "--out", str(tmp_path / "out")]) == 130
    assert "the same command goes on where this one stopped" in capsys.readouterr().err


def test_models_counts_parameters(capsys):
    assert main(["models", "--json"]) == 0
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert list(rows) == [*triptych.list_models(), *list_image_tokenizers()]
    assert rows["dvae_dalle"]["vocab_size"] == 8192
    tiny = triptych.create_model("mplug_tiny")
    assert rows["mplug_tiny"]["num_parameters"] == num_parameters(tiny)
    assert rows["mplug_tiny"]["image_size"] == 64
    assert main(["models"]) == 0
    assert "mplug_base_patch16_256" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["caption", "classify"])
def test_an_image_that_cannot_be_used_is_listed_and_the_others_answered(
    capsys, folders, images, verb
):
    folder = folders["captioning" if verb == "caption" else "retrieval"]
    more = [] if verb == "caption" else ["--labels", "star,circle"]
    assert main([verb, folder, *images, *more, "--json"]) == 0
    expected = capsys.readouterr().out
    assert main([verb, folder, images[0], "absent.jpg", images[1], *more, "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == expected
    assert captured.err == "triptych: skipped: absent.jpg: there is no such file\n"
