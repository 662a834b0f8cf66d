"""The table of formats: every format says how it is recognised and where it lies."""

import importlib.util
import json
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest

from triptych.cli.data_check import CheckOptions
from triptych.cli.main import main
from triptych.cli.parsing import parse
from triptych.core.errors import ConfigError, DataError
from triptych.data.formats import FORMATS, register_format
from triptych.data.lines import CHUNK, first_member, iterate_json
from triptych.data.manifest import DataSourceConfig, read_records
from triptych.data.records import Record
from triptych.data.spec import Expected, Format, Layout

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("known", FORMATS.entries().values(), ids=lambda known: known.name)
def test_every_format_is_complete(known):
    assert set(known.fields) <= set(Record.__slots__)
    assert known.tells and known.layouts
    asks = (known.of_path, known.of_json, known.of_object, known.of_member, known.of_line)
    assert any(asks)
    assert (known.of_line is not None) == bool(known.suffixes)
    for layout in known.layouts:
        assert layout.examples and layout.files and layout.folder
        assert any(not files.optional for files in layout.files)


@pytest.mark.parametrize("known", FORMATS.entries().values(), ids=lambda known: known.name)
def test_examples_are_commands_on_files_of_the_layout(known):
    for layout in known.layouts:
        paths = [path for files in layout.files for path in (files.path, *files.other)]
        if not layout.source:
            continue  # of one's own data, whose names are one's own
        for example in layout.examples:
            options = parse(CheckOptions, shlex.split(example), verb="data check", description="")
            options.source.source(options.manifest)
            name = options.manifest.removeprefix(layout.folder).strip("/")
            is_own = any(fnmatch(name, path) or path.startswith(f"{name}/") for path in paths)
            assert not name or is_own or "://" in name or "{" in name, example


def test_each_layout_is_found_where_it_lies(tmp_path):
    layout = Layout(
        "ours",
        "ours",
        "https://example.org",
        (
            Expected("a.json", "captions"),
            Expected("images/*.jpg", "images", 3, other=("*.jpg",)),
            Expected("extra.json", "more", optional=True),
        ),
    )
    assert layout.find(tmp_path).state == "absent"
    (tmp_path / "ours" / "images").mkdir(parents=True)
    (tmp_path / "ours/images/1.jpg").touch()
    report = layout.find(tmp_path)
    assert (report.state, report.folder) == ("incomplete", tmp_path / "ours")
    folder = tmp_path / "ours"
    assert report.missing == [
        f"{folder}/a.json: missing (captions)",
        f"{folder}/images/*.jpg or {folder}/*.jpg: 1 of 3 (images)",
    ]
    for name in ("a.json", "1.jpg", "2.jpg", "3.jpg"):
        (folder / name).touch()
    assert layout.find(tmp_path).state == layout.find(folder).state == "complete"


def test_common_names_alone_are_not_a_dataset(tmp_path):
    names = ("train.jsonl", "dev.jsonl", "test.jsonl", "img/*.png")
    layout = Layout("ours", "ours", "https://example.org", tuple(Expected(n, n) for n in names))
    (tmp_path / "train.jsonl").touch()
    assert layout.find(tmp_path).state == "absent"
    (tmp_path / "dev.jsonl").touch()
    (tmp_path / "test.jsonl").touch()
    assert layout.find(tmp_path).state == "incomplete"
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/train.jsonl").touch()
    classes = Layout("c", "classes", "https://example.org", (Expected("*/*.jsonl", "images"),))
    assert classes.find(tmp_path).state == "absent"
    assert layout.find(tmp_path / "ours").state == "incomplete"


def test_a_format_reads_one_way():
    with pytest.raises(TypeError, match="must have read or read_json"):
        Format(name="x", title="x", fields=("text",))


def test_a_name_is_taken_once():
    with pytest.raises(ConfigError, match="'coco' is registered twice"):
        register_format(FORMATS.get("coco"))


def test_the_list_shows_every_format_and_its_files(capsys):
    assert main(["data", "list"]) == 0
    out = capsys.readouterr().out
    for known in FORMATS.entries().values():
        assert f"{known.name}: {known.title}" in out
        for layout in known.layouts:
            assert layout.source in out
            assert all(files.path in out for files in layout.files)
    assert main(["data", "list", "coko"]) == 2
    assert "did you mean 'coco'" in capsys.readouterr().err


def test_the_list_says_what_is_missing_where(tmp_path, capsys):
    for name in ("dev.jsonl", "train.jsonl", "test.jsonl"):
        (tmp_path / "hateful_memes").mkdir(exist_ok=True)
        (tmp_path / "hateful_memes" / name).touch()
    (tmp_path / "hateful_memes/img").mkdir()
    (tmp_path / "hateful_memes/img/1.png").touch()
    assert main(["data", "list", "--data", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"hateful_memes: Hateful Memes: incomplete in {tmp_path}/hateful_memes" in out
    assert f"{tmp_path}/hateful_memes/img/*.png: 1 of 10,000 (images)" in out
    assert "not there:" in out and "RefCOCO+" in out
    assert main(["data", "list", "vqav2", "--data", str(tmp_path), "--json"]) == 1
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert row["layouts"][0]["state"] == "absent"
    assert any("v2_mscoco_val2014_annotations.json" in m for m in row["layouts"][0]["missing"])
    assert main(["data", "list", "--data", str(tmp_path / "none")]) == 2


def test_the_page_of_formats_is_written_by_the_code(capsys):
    page = (ROOT / "docs/reference/formats.md").read_text(encoding="utf-8")
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/_hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    file = type("Page", (), {"file": type("File", (), {"src_uri": "reference/formats.md"})})
    shown = hooks.on_page_markdown(page, file)
    assert main(["data", "list", "--markdown"]) == 0
    assert capsys.readouterr().out.strip() in shown
    for known in FORMATS.entries().values():
        assert f"\n## {known.name}\n" in shown and known.title in shown
    assert main(["data", "list", "--markdown", "--data", "."]) == 2


MEMBERS = [
    ("[]", []),
    (" {} \n", []),
    ('[1, "a", {"b": [2]}]', [(0, 1), (1, "a"), (2, {"b": [2]})]),
    ('{"x": 1.5 , "y":\n {"z": null}}', [("x", 1.5), ("y", {"z": None})]),
]


@pytest.mark.parametrize(("text", "members"), MEMBERS)
def test_a_json_file_is_read_member_by_member(tmp_path, text, members):
    (tmp_path / "a.json").write_text(text)
    assert list(iterate_json(tmp_path / "a.json")) == members
    assert first_member(tmp_path / "a.json") == (members[0] if members else None)


def test_members_that_cross_pieces_come_whole(tmp_path, monkeypatch):
    data = {f"k{i}": [i, "ä" * (i % 7), {"n": i * 1000}] for i in range(200)}
    text = json.dumps(data, indent=1, ensure_ascii=False)
    (tmp_path / "a.json").write_text("\ufeff" + text, encoding="utf-8")
    for size in (1, 2, 7, 64, CHUNK):
        monkeypatch.setattr("triptych.data.lines.CHUNK", size)
        assert dict(iterate_json(tmp_path / "a.json")) == data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a list or an object"),
        ("7", "expected a list or an object"),
        ("[1", "expected a comma"),
        ("[1,]", "Expecting value"),
        ("[1,\n\n2 3]", r"a\.json:3: .*expected a comma"),
        ('{"a" 1}', "expected a colon"),
        ("{1: 2}", "expected a name"),
        ('["a', "Unterminated string"),
        ("[1] [2]", "goes on after its end"),
        ("[" * 100_000, "recursion|Expecting value"),
        ("[" + "9" * 5000 + "]", "digits|limit"),
    ],
)
def test_what_is_no_json_says_where(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=message):
        list(iterate_json(tmp_path / "a.json"))


@pytest.mark.parametrize("content", [b"\xff\xfe[\x00", b'["\xe9"]'])
def test_json_that_is_not_utf8_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match="UTF-8"):
        list(iterate_json(tmp_path / "a.json"))


def test_the_domain_of_a_manifest_is_kept(tmp_path):
    path = Path(tmp_path / "m.jsonl")
    path.write_text('{"image": "a.jpg", "caption": "x", "domain": "in-domain"}\n')
    (tmp_path / "a.jpg").touch()
    (record,) = read_records(DataSourceConfig(path=str(path))).records
    assert record.domain == "in-domain"


PLUGIN = """
from pathlib import Path

from triptych.data.formats import register_format
from triptych.data.lines import read_lines
from triptych.data.records import ImageSource, Record
from triptych.data.spec import Expected, Format, Layout


def read(source):
    for number, line in read_lines(Path(source.path)):
        name, caption = line.split("=")
        image = ImageSource(str(source.root / name))
        yield Record(record_id=str(number), image=image, image_id=name, caption=caption)


FORMAT = Format(
    name="pairs",
    title="Names and captions",
    fields=("image", "caption"),
    read=read,
    tells="lines with =",
    of_line=lambda first: "=" in first,
    suffixes=(".txt", ".pairs"),
    layouts=(Layout("pairs", "pairs", "https://example.org", (Expected("*.txt", "pairs"),)),),
)
register_format(FORMAT)
"""


def test_a_plugin_adds_a_format(tmp_path, monkeypatch, capsys):
    (tmp_path / "pairs_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TRIPTYCH_PLUGINS", "pairs_plugin")
    (tmp_path / "a.jpg").touch()
    (tmp_path / "own.txt").write_text("a.jpg=a cat\n")
    (tmp_path / "plain.txt").write_text("a cat\n")
    try:
        assert main(["data", "list", "pairs"]) == 0
        assert "pairs: Names and captions" in capsys.readouterr().out
        for reader in ("auto", "pairs"):
            source = DataSourceConfig(path=str(tmp_path / "own.txt"), reader=reader)
            assert [r.caption for r in read_records(source).records] == ["a cat"]
        other = DataSourceConfig(path=str(tmp_path / "plain.txt"))
        assert [r.text for r in read_records(other).records] == ["a cat"]
    finally:
        FORMATS._entries.pop("pairs", None)
