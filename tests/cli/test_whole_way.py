"""From a written dataset to a caption, by commands alone."""

import json

import pytest

from triptych.cli.main import main


@pytest.mark.slow
def test_data_to_caption_by_commands(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scenes = ["s", "--num-images", "24", "--num-test", "8", "--formats", "captions", "vqa"]
    assert main(["data", "scenes", *scenes]) == 0
    captions = ["s/captions/captions_train.json", "--image-root", "s/images/train"]
    assert main(["data", "check", *captions]) == 0
    assert main(["init", *captions, "--scale", "smoke"]) == 0
    assert main(["train", "run.yaml", "--train.precision", "fp32"]) == 0
    test = ["--data", "s/captions/captions_test.json", "--image-root", "s/images/test"]
    scores = ["--out", "scores.json", "--limit", "12"]
    assert main(["eval", "runs/run/model", "--task", "retrieval", *test, *scores]) == 0
    stored = json.loads((tmp_path / "scores.json").read_text())["scores"][0]["metrics"]
    chance = {metric["name"]: metric["value"] for metric in stored}
    assert 0 <= chance["i2t_r1"] <= chance["i2t_r5"] <= chance["i2t_r10"] <= 1
    questions = "s/vqa/v2_OpenEnded_mscoco_train_questions.json"
    flags = ["--image-root", "s/images", "--init-from", "runs/run/model", "--scale", "smoke"]
    assert main(["train", "mplug.vqa", "--data", questions, *flags, "--out", "runs/vqa"]) == 0
    capsys.readouterr()
    image = str(next((tmp_path / "s/images/test").iterdir()))
    assert main(["caption", "runs/run/model", image]) == 0
    assert main(["answer", "runs/vqa/model", image, "is there a star?"]) == 0
    caption, answer = capsys.readouterr().out.splitlines()
    assert isinstance(caption, str) and len(answer.split()) <= 10
    assert main(["answer", "runs/run/model", image, "is there a star?"]) == 2
    assert main(["train", "runs/vqa", "--resume"]) == 0
    assert main(["train", "run.yaml"]) == 2
    assert "holds an earlier run: resume it" in capsys.readouterr().err
