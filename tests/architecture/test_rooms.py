"""The list of rooms in docs/architecture.md names every module, and none that is not there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "triptych"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())


def named(page):
    """Return {room: its modules} of the page; of a folder in a room as "folder/module"."""
    (block,) = re.findall(r"^```\ntriptych/\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    rooms, room, folder = {}, "", ""
    for line in block.splitlines():
        depth, text = len(line) - len(line.lstrip()), line.strip()
        if depth == 2:  # a room and its purpose
            room = text.split()[0].rstrip("/")
            rooms[room] = []
            continue
        if depth == 4:  # its modules, or a folder's; deeper lines go on with the folder
            folder = (re.findall(r"^\w+/(?= )", text) or [""])[0]
        text = re.sub(r"\([^)]*\)|: .*", "", text.removeprefix(folder))
        rooms[room] += [folder + name.strip() for name in text.split(",") if name.strip()]
    return rooms


def modules(room):
    files = (PACKAGE / room).rglob("*.py")
    paths = [path.relative_to(PACKAGE / room).with_suffix("") for path in files]
    return sorted(path.as_posix() for path in paths if path.name != "__init__")


def test_every_room_stands_in_the_page():
    alone = [path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    assert sorted(named(PAGE)) == sorted([*ROOMS, *alone])


def test_every_module_of_a_room_stands_in_its_lines_once():
    listed = named(PAGE)
    assert {room: sorted(listed[room]) for room in ROOMS} == {room: modules(room) for room in ROOMS}


def test_the_reader_of_the_page_knows_rooms_folders_and_explanations():
    page = """```
triptych/
  core/          a, b (not a module)
    config (strict, yes), rng,
    files
  data/          from files
    records
    readers/ jsonl, coco,
      glue
    dvae/ model: the tokenizer
```
"""
    found = named(page)
    assert found["core"] == ["config", "rng", "files"]
    assert found["data"] == [
        "records",
        "readers/jsonl",
        "readers/coco",
        "readers/glue",
        "dvae/model",
    ]
