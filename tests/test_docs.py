"""Every page of docs/: its commands run, and the files and functions that it names exist.

A fenced `sh` or `console` block whose first line says `test`, as in ```sh test, is run, at scale
"smoke", in a folder with the files that `docs_files.PREPARE` writes. A `python test` block runs
there as well. A block with `triptych` commands that is not run says why: ```sh untested: REASON.
"""

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from triptych.cli.main import main
from triptych.recipes.registry import RECIPES, build_recipe

from .docs_files import PREPARE as FIRST_PAGES
from .docs_flava import prepare_flava
from .docs_vlmo import prepare_vlmo

ROOT = Path(__file__).parents[1]
PREPARE = FIRST_PAGES | {"vlmo": prepare_vlmo, "flava": prepare_flava}
PAGES = sorted((ROOT / "docs").rglob("*.md"))
MARKDOWN = sorted([*PAGES, *ROOT.glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
REFERENCE = re.compile(r"`([\w./-]+\.py)(?::([A-Za-z_][\w.]*))?`")
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
SMALLER = {"--model.image-size": "64", "--image-size": "64"}
PAPER_SCALES = ("base", "large")
MAX_WIDTH = 120


def blocks(text):
    """Return (language, words after it, content) of each fenced block."""
    return [(m[1], m[2].strip(), m[3]) for m in FENCE.finditer(text)]


def commands(language, content):
    """Return the command lines of a block; in a console block they follow a `$`."""
    lines = content.replace("\\\n", " ").splitlines()
    if language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def shrunk(words):
    """Return a command's words with the sizes of a test in place of the paper's."""
    words = list(words)
    for flag, value in SMALLER.items():
        if flag in words:
            words[words.index(flag) + 1] = value
    if words[0] == "train" and words[1].endswith(".stagewise"):
        del words[words.index("--scale") : words.index("--scale") + 2]
        return [*words, "--scale", "smoke", "--num-threads", "1"]
    if words[0] != "train" or words[1] not in RECIPES:
        return words
    scale = "tiny"
    if "--scale" in words:
        scale = words[words.index("--scale") + 1]
        del words[words.index("--scale") : words.index("--scale") + 2]
    words += ["--scale", "smoke", "--train.num-threads", "1", "--train.progress", "off"]
    if scale in PAPER_SCALES and not {"--model.name", "--init-from"} & set(words):
        words += ["--model.name", build_recipe(words[1], scale).model.name]
    return words


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(PREPARE))
def test_commands_run_as_they_stand(page, tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    PREPARE[page](tmp_path, monkeypatch)
    names: dict[str, object] = {}
    number = 0
    for language, marks, content in blocks(text):
        if marks != "test":
            continue
        if language == "python":
            exec(content, names)
            number += 1
            continue
        for command in commands(language, content):
            words = shlex.split(command)
            assert words[0] == "triptych", f"only triptych is run: {command}"
            assert main(shrunk(words[1:])) == 0, f"{command}\n{capsys.readouterr().err}"
            number += 1
    assert number > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_block_with_commands_is_run_or_says_why_not(page):
    for language, marks, content in blocks(page.read_text(encoding="utf-8")):
        if language in ("sh", "bash", "console", "shell") and "triptych " in content:
            assert marks == "test" or re.fullmatch(r"untested: .{10,}", marks), content
            name = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
            assert marks != "test" or name in PREPARE


GENERATED = re.compile(r"<!-- (\w+) -->.*?<!-- /\1 -->", flags=re.DOTALL)
CODE = re.compile(r"^```.*?^```", flags=re.DOTALL | re.MULTILINE)
UNBREAKABLE = re.compile(r"`[^`]*`|\]\([^)]*\)")


def long_lines(text):
    """Return the lines of over 120 characters; tables, code and generated parts may have them."""
    text = CODE.sub("", GENERATED.sub("", text))
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("|", "!["))]
    wide = [line for line in lines if len(line) > MAX_WIDTH]
    return [line for line in wide if len(UNBREAKABLE.sub("", line)) > MAX_WIDTH // 2]


def test_lines_of_markdown_are_short_enough_to_read_in_a_terminal():
    pages = [path for path in MARKDOWN if path.name != "results.md"]
    found = {path.name: long_lines(path.read_text(encoding="utf-8")) for path in pages}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_the_site_has_every_page_and_its_reference_names_modules_that_exist():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    listed = re.findall(r": ([\w/-]+\.md)$", nav, flags=re.MULTILINE)
    assert sorted(listed) == [page.relative_to(ROOT / "docs").as_posix() for page in PAGES]
    for page in PAGES:
        for module in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), flags=re.MULTILINE):
            file = ROOT / (module.replace(".", "/") + ".py")
            assert file.exists(), f"{page.name}: {module}"


@cache
def defined_names(path):
    """Return what a file defines: functions, classes, their members, and constants."""
    found = set()

    def visit(nodes, prefix):
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")
            if isinstance(node, ast.Assign):
                found.update(prefix + t.id for t in node.targets if isinstance(t, ast.Name))
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(prefix + node.target.id)

    visit(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return found


def missing_references(text):
    """Return each `path.py` or `path.py:name` of a text that does not exist.

    Paths begin at the repository or at the package; a bare file name may lie anywhere.
    """
    wrong = []
    for path, name in REFERENCE.findall(text):
        places = [ROOT / path, ROOT / "triptych" / path]
        if "/" not in path:
            places += (ROOT / "triptych").rglob(path)
        places = [place for place in places if place.is_file()]
        known = any(not name or name in defined_names(place) for place in places)
        if not known and path != "utils.py":  # named as what must not be
            wrong.append(f"{path}:{name}" if name else path)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_files_and_functions_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    assert missing_references(text) == []
    links = [name for name in LINK.findall(text) if not name.startswith("http")]
    assert [name for name in links if not (page.parent / name).exists()] == []


def test_the_checker_sees_what_does_not_exist():
    text = "`nn/block.py:Block.forward` `nn/block.py:Blok` `nn/blok.py` `models/base.py`"
    assert missing_references(text) == ["nn/block.py:Blok", "nn/blok.py"]


def test_the_runner_reads_blocks_as_written():
    text = "```sh test\ntriptych a \\\n  b\n# why\n```\n```console\n$ triptych c\nsaid\n```\n"
    found = [(marks, commands(language, content)) for language, marks, content in blocks(text)]
    assert found == [("test", ["triptych a    b"]), ("", ["triptych c"])]
    words = shrunk(shlex.split("train mplug.vqa --scale base --data q.jsonl"))
    assert words[2:6] == ["--data", "q.jsonl", "--scale", "smoke"]
    assert words[-2:] == ["--model.name", "mplug_base_patch16_256"]
