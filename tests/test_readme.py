"""README's own commands and Python lines, run as they stand (at the smallest scale)."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych.cli.main import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
MAKEFILE = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
ROOT = Path(__file__).parents[1]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands():
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    inline = re.findall(r"`(triptych (?:train|init|eval)[^`]*)`", README)
    return lines, inline


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder: eight photos, a manifest of captions and one of questions."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    captions, questions = [], []
    for i in range(1, 9):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(
            tmp_path / "photos" / f"{i}.jpg"
        )
        name = f"photos/{i}.jpg"
        captions.append({"image": name, "caption": f"a brown dog number {i} runs"})
        questions.append({"image": name, "question": "what runs ?", "answers": ["dog"]})
    for name, lines in (
        ("my.jsonl", captions),
        ("questions.jsonl", questions),
        ("held_out.jsonl", questions),
    ):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def run(command):
    words = shlex.split(command)
    assert words[0].removeprefix(".venv/bin/") == "triptych"
    words = ["smoke" if w == "tiny" else w for w in words[1:]]
    if words[0] == "train" and "--resume" not in words:
        words += ["--scale", "smoke"] if "--scale" not in words else []
        words += ["--train.num-threads", "1"]
    assert main(words) == 0, command


def test_the_first_commands_install_from_a_checkout_or_are_targets_of_the_makefile():
    pip, make = (block.splitlines() for block in blocks("bash")[:2])
    assert pip == ["pip install -c constraints.txt torch", "pip install -c constraints.txt ."]
    assert (ROOT / "constraints.txt").exists()
    assert make == ["make demo", "make test"]
    for target in ("demo", "test"):
        assert re.search(rf"^{target}:", MAKEFILE, flags=re.MULTILINE)


def test_sections_come_in_the_order_that_a_newcomer_needs():
    first, *sections = README.split("\n## ")
    assert "![" in first and len(first.splitlines()) < 10
    titles = [section.split("\n")[0].split(",")[0] for section in sections]
    assert titles == [
        "Install",
        "Search your images in two commands",
        "In Python",
        "Your own data",
        "The laboratory",
        "What it does",
        "Demo and results",
        "Citation",
        "Links",
    ]


def test_own_data_in_three_commands_then_python_then_the_rest(folder, capsys):
    lines, inline = commands()
    three = [line for line in lines if line.startswith("triptych ")]
    assert len(three) == 3
    for command in three:
        run(command)
    (python,) = [block for block in blocks("python") if "triptych.load" in block]
    names: dict[str, object] = {}
    exec(python, names)
    caption = names["model"].caption("photos/1.jpg")
    assert isinstance(caption, str)
    assert len(python.splitlines()) <= 12
    assert len(inline) >= 4
    for command in inline:
        run(command)
    assert "vqa" in capsys.readouterr().out


def test_manifest_lines_are_json():
    lines = [line for block in blocks("json") for line in block.splitlines()]
    assert [sorted(json.loads(line)) for line in lines] == [["caption", "image"]]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_to_files(name):
    assert (ROOT / name).exists()
