"""data check and data scenes."""

import json

import numpy as np
import pytest
from PIL import Image

from triptych.cli.main import main


@pytest.fixture
def manifest(tmp_path):
    """A manifest of four images, of which one is broken."""
    for number in range(4):
        Image.fromarray(np.full((8, 12, 3), number * 60, np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"nothing")
    lines = [{"image": f"{number}.png", "caption": f"image {number}"} for number in range(4)]
    path = tmp_path / "my.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_check_fails_where_too_much_is_bad(capsys, manifest, tmp_path):
    report, skipped = tmp_path / "report.json", tmp_path / "skipped.jsonl"
    arguments = ["--json", str(report), "--skipped", str(skipped)]
    assert main(["data", "check", str(manifest), *arguments]) == 1
    captured = capsys.readouterr()
    assert "3 usable of 4" in captured.out and "not_an_image: 1" in captured.out
    assert "25.00% is bad, more than the 1.00% that is allowed" in captured.err
    content = json.loads(report.read_text())
    assert content["num_bad"] == 1 and content["num_total"] == 4
    (line,) = [json.loads(line) for line in skipped.read_text().splitlines()]
    assert line["where"] == str(tmp_path / "3.png")


def test_the_share_that_check_advises_is_enough(capsys, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    lines = [{"image": "a.png", "caption": "x" if n > 2 else ""} for n in range(197)]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["data", "check", str(path)]) == 1
    assert capsys.readouterr().err.endswith("with --data.max-bad-share 0.02\n")  # not 0.0152
    assert main(["data", "check", str(path), "--max-bad-share", "0.02"]) == 0


def test_check_passes_where_more_is_allowed(capsys, manifest):
    assert main(["data", "check", str(manifest), "--max-bad-share", "0.25"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.jsonl"], "absent.jsonl: there is no such file"),
        (["{manifest}", "--reader", "cocoo"], "did you mean 'coco'?"),
        (["{manifest}", "--max-bad-share", "2"], "max_bad_share = 2.0: must be from 0 to 1"),
        (["{manifest}", "--image-root", "elsewhere"], "Set image_root"),
        (["{manifest}", "--spilt", "val"], "--split"),
        ([], "MANIFEST"),
    ],
)
def test_check_refuses_what_it_cannot_read(capsys, manifest, arguments, message):
    filled = [word.format(manifest=manifest) for word in arguments]
    assert main(["data", "check", *filled]) == 2
    assert message in capsys.readouterr().err


def test_scenes_are_written_and_pass_the_check(capsys, tmp_path):
    out = tmp_path / "scenes"
    arguments = [str(out), "--num-images", "6", "--num-val", "0", "--num-test", "2"]
    arguments += ["--num-compositional", "0", "--image-size", "32", "--formats", "captions"]
    assert main(["data", "scenes", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(list((out / "images" / "train").iterdir())) == 6
    assert len(list((out / "clips" / "videos").iterdir())) == 2  # one of train, one of test
    with Image.open(next((out / "images" / "test").iterdir())) as image:
        assert image.size == (32, 32)
    command = next(line for line in lines if line.startswith("next: triptych "))
    assert main(command.split()[2:]) == 0
    assert "12 usable of 12" in capsys.readouterr().out


def test_images_that_no_clip_can_have_are_written_without(capsys, tmp_path):
    out = tmp_path / "scenes"
    arguments = ["--num-images", "4", "--num-val", "0", "--num-test", "0", "--image-size", "33"]
    arguments += ["--num-compositional", "0", "--formats", "captions"]
    assert main(["data", "scenes", str(out), *arguments]) == 0
    assert "no clips: image_size = 33: must be even" in capsys.readouterr().out
    assert not (out / "clips").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-images", "0"], "0 images for train"),
        (["--num-images", "4", "--formats", "caption"], "did you mean 'captions'?"),
        (["--num-images", "4", "--image-size", "4"], "image_size = 4: must be at least 16"),
        ([], "--num-images"),
    ],
)
def test_scenes_refuses_what_it_cannot_write(capsys, tmp_path, arguments, message):
    assert main(["data", "scenes", str(tmp_path / "new"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
