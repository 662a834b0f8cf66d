"""predict and score: from the command line to the numbers, and what wrong flags say."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.serving.tiny_folder import IMAGE_SIZE, write_tiny_folder
from triptych.cli.main import main
from triptych.cli.parsing import read_names
from triptych.core.errors import ConfigError

COUNT = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Images with questions, two model folders."""
    folder = tmp_path_factory.mktemp("cli_predict")
    rng = np.random.default_rng(0)
    lines = []
    for number in range(COUNT):
        pixels = rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        asked = {"id": str(number), "image": f"{number}.png", "question": "what color ?"}
        lines.append(json.dumps(asked | {"answers": ["a", "e"]}))
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    for name in ("vqa", "pretraining"):
        write_tiny_folder(folder / name, name)
    return folder


def predict(root, *arguments, task="vqa", folder="vqa"):
    data = ["--data", str(root / "data.jsonl"), "--index", "never"]
    return main(["predict", str(root / folder), "--task", task, *data, *arguments])


def test_predict_and_score_from_the_command_line(root, tmp_path, capsys):
    out, scores = tmp_path / "p.jsonl", tmp_path / "scores.json"
    assert predict(root, "--out", str(out), "--local-batch-size", "4") == 0
    shown = capsys.readouterr()
    assert f"{COUNT} samples predicted" in shown.out and f"wrote {out}" in shown.out
    assert "predicting on" in shown.err
    assert predict(root, "--out", str(out), "--local-batch-size", "4") == 0
    assert "was finished before" in capsys.readouterr().out
    data = ["--data", str(root / "data.jsonl")]
    assert main(["score", str(out), *data, "--out", str(scores)]) == 0
    shown = capsys.readouterr()
    assert "vqa of" in shown.out and "Predicted by" in shown.out
    content = json.loads(scores.read_text())
    assert main(["eval", str(root / "vqa"), "--task", "vqa", *data, "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert content["scores"] == expected["scores"]
    assert content["made_by"]["model"] == str(root / "vqa") and content["form"] == "jsonl"


def test_the_official_form_lies_beside_ours(root, tmp_path, capsys):
    out = tmp_path / "results.json"
    assert predict(root, "--out", str(out), "--format", "vqa") == 0
    assert f"wrote {out} and {tmp_path / 'results.predictions.jsonl'}" in capsys.readouterr().out
    assert [entry["question_id"] for entry in json.loads(out.read_text())] == list(range(COUNT))
    assert main(["score", str(out), "--data", str(root / "data.jsonl"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["form"] == "vqa" and shown["made_by"] is None


def test_settings_of_generation_are_flags_of_all(root, tmp_path, capsys):
    flags = ["--num-beams", "1", "--max-tokens", "3", "--prompt", "a"]
    assert predict(root, "--out", str(tmp_path / "p.jsonl"), *flags) == 0
    first, *rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert first["settings"]["generation.max_tokens"] == 3 and "prompt = 'a'" in first["protocol"]
    capsys.readouterr()
    image = str(root / "0.png")
    assert main(["answer", str(root / "vqa"), image, "what color ?", *flags]) == 0
    assert capsys.readouterr().out.strip() == rows[0]["text"]


def test_flags_of_a_search_reach_it_and_its_score(root, tmp_path, capsys):
    data, out = tmp_path / "pairs.jsonl", tmp_path / "p.jsonl"
    lines = [
        {"id": str(n), "image": f"{root}/{n // 2}.png", "caption": f"a star {n}"} for n in range(12)
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    search = ["--task", "retrieval", "--data", str(data), "--index", "never"]
    search += ["--captions-per-image", "1", "--folds", "2", "--rerank-top-k", "2"]
    folder = str(root / "pretraining")
    assert main(["predict", folder, *search, "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["score", str(out), "--data", str(data), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)["scores"]
    assert main(["eval", folder, *search, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"] == scored
    assert "2 folds" in scored[0]["metrics"][0]["protocol"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--num-beams", "1", "--top-p", "0.5"], "num_beams excludes top_p"),
        (["--num-beams", "0"], "num_beams = 0"),
        (["--limit", "0"], "limit = 0"),
        (["--list-length", "3"], "list_length = 3"),
        (["--format", "coco"], "format 'coco' is none of those of vqa"),
        (["--local-batch-size", "0"], "local_batch_size = 0"),
        (["--templates", "absent.txt"], "absent.txt"),
        (["--classes", "one"], "must name two classes"),
    ],
)
def test_wrong_flags_of_predict(root, tmp_path, capsys, arguments, match):
    assert predict(root, "--out", str(tmp_path / "p.jsonl"), *arguments) == 2
    assert match in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_wrong_files_of_score(root, tmp_path, capsys):
    data = ["--data", str(root / "data.jsonl")]
    assert main(["score", str(tmp_path / "absent"), *data]) == 2
    assert "there is no such file" in capsys.readouterr().err
    assert main(["score", str(root / "0.png"), *data]) == 2
    assert "not UTF-8" in capsys.readouterr().err
    assert main(["score", str(root / "data.jsonl"), *data, "--format", "jsonl"]) == 2
    assert "no file of predictions of ours" in capsys.readouterr().err
    assert main(["score", str(root / "data.jsonl"), *data, "--format", "vqaa"]) == 2
    assert "did you mean 'vqa'" in capsys.readouterr().err


def test_classes_come_from_a_file_or_a_list(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("cat\n\n big dog \n")
    assert (
        read_names("classes", str(path))
        == ("cat", "big dog")
        == read_names("classes", "cat, big dog")
    )
    assert read_names("classes", None) == ()
    for bad in ("cat,cat", "cat", ","):
        with pytest.raises(ConfigError, match="two classes or more, each once"):
            read_names("classes", bad)
