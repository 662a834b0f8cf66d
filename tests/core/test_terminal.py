"""Names and texts of others reach no terminal raw, whichever way they are printed."""

import io
import json
import logging
import os
import subprocess
import sys

import pytest
import rich.table
from PIL import Image
from rich.progress import Progress, TextColumn
from rich.text import Text

from triptych.cli.main import main
from triptych.core.console import Console
from triptych.core.terminal import colours, guarded, visible

EVIL = "a\x1b]0;title\x07\x1b[2J\x9b31m\r\u202egpj"
SEEN = "a\\u001b]0;title\\u0007\\u001b[2J\\u009b31m\\u000d\\u202egpj"


def is_clean(text):
    return not any(char in text for char in "\x1b\x07\x9b\r\u202e")


def test_what_cannot_be_seen_is_written_as_json_writes_it():
    assert visible(EVIL) == SEEN
    assert json.loads(f'"{visible(EVIL)}"') == EVIL
    assert visible("a\tb\nç 日本語 👍🏽 שלום\u200f") == "a\tb\nç 日本語 👍🏽 שלום\u200f"
    assert visible("a\udcff\x00") == "a\\udcff\\u0000"


def test_streams_are_guarded_and_come_back(capsys):
    before = sys.stdout, sys.stderr
    with guarded():
        print(EVIL, "\udc80")
        print(EVIL, file=sys.stderr)
        sys.stdout.writelines([EVIL, "\n"])
        logging.getLogger("triptych.test").warning("%s", EVIL)
        sys.stdout.flush()
    assert (sys.stdout, sys.stderr) == before
    shown = capsys.readouterr()
    assert shown.out == f"{SEEN} \\udc80\n{SEEN}\n"
    assert is_clean(shown.err) and shown.err.count(SEEN) >= 1


def test_colours_of_a_parser_pass_alone(capsys):
    with guarded():
        with colours():
            print("\x1b[1;31mred\x1b[0m \x1b[2J")
        print("\x1b[31m")
    assert capsys.readouterr().out == "\x1b[1;31mred\x1b[0m \\u001b[2J\n\\u001b[31m\n"


def printed(console, thing, **options):
    console.print(thing, **options)
    return console.file.getvalue()


def test_a_console_shows_what_it_is_given_and_keeps_its_own_colours():
    def console():
        return Console(file=io.StringIO(), force_terminal=True, width=120)

    table = rich.table.Table(EVIL, title=EVIL)
    table.add_row(EVIL, style="red")
    for thing in (EVIL, table, Text(EVIL), Text.assemble((EVIL, "red"))):
        shown = printed(console(), thing, markup=False, highlight=False)
        for own in ("\x1b[0m", "\x1b[31m", "\x1b[1m", "\x1b[3m", "\x1b[3;31m"):
            shown = shown.replace(own, "")
        assert is_clean(shown.replace("\x1b[1;36m", "").replace("\x1b[32m", "")), repr(shown)
        assert "\\u001b]0;" in shown
    shown = console()
    with Progress(TextColumn("{task.description}"), console=shown) as progress:
        progress.add_task(EVIL, total=1)
    assert "\x07" not in shown.file.getvalue() and "\x1b]0;" not in shown.file.getvalue()


def test_a_console_in_a_guarded_block_keeps_its_colours(capsys):
    with guarded():
        Console(force_terminal=True, width=80).print(
            EVIL, style="red", markup=False, highlight=False
        )
    shown = capsys.readouterr().out
    assert shown.startswith("\x1b[31m") and SEEN in shown


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_commands_show_names_and_texts_of_data(tmp_path, capsys, arguments):
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    (tmp_path / EVIL).write_bytes(b"no image")
    entries = [
        {"image": "good.png", "caption": EVIL},
        {"image": "good.png", "caption": EVIL, "id": EVIL},
        {"image": EVIL, "caption": "x"},
        {"image": f"missing {EVIL}", "caption": "x"},
        {"image": "good.png", EVIL: EVIL},
    ]
    manifest = tmp_path / f"{EVIL}.jsonl"
    manifest.write_text("\n".join(map(json.dumps, entries)))
    assert main(["data", "check", str(manifest), *arguments]) == 1
    shown = capsys.readouterr()
    assert is_clean(shown.out) and is_clean(shown.err)
    assert "\\u001b]0;title" in shown.out
    main(["data", "stats", str(manifest)])
    main(["data", "check", str(tmp_path / f"no {EVIL}.jsonl")])
    main([EVIL])
    main(["completion", EVIL])
    main(["train", EVIL])
    main(["eval", EVIL, "--task", EVIL, "--data", EVIL])
    shown = capsys.readouterr()
    assert is_clean(shown.out) and is_clean(shown.err)


def test_a_name_that_is_no_utf8_can_be_printed(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff\x1b[2J.jsonl"
    with open(name, "w") as file:  # noqa: PTH123 - pathlib takes no bytes
        file.write('{"image": "absent.png", "caption": "x"}\n')
    command = [sys.executable, "-m", "triptych", "data", "check", name]
    found = subprocess.run(command, capture_output=True, check=False)
    assert found.returncode == 2
    assert b"Traceback" not in found.stderr and b"\x1b" not in found.stderr
    assert b"\\udcff\\u001b[2J.jsonl" in found.stderr
