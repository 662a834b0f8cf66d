"""The counts of docs/architecture.md: what is counted, on code written for it."""

import ast
import sys

from benchmarks.pages import house


def test_a_step_is_counted_without_imports_and_lambdas(monkeypatch, tmp_path):
    monkeypatch.setattr(house, "PACKAGE", tmp_path)
    module = tmp_path / "counted.py"
    module.write_text(
        "def used():\n    return [x for x in (1,)], (lambda: 2)()\n\n"
        "def at_import():\n    return 3\n\nat_import()\n"
    )
    profiler, space = house.Profiler(), {}
    sys.setprofile(profiler)
    exec(compile(module.read_text(), str(module), "exec"), space)
    space["used"]()
    sys.setprofile(None)
    assert [name for _, _, name in profiler.entered] == ["used"]


def test_literals_and_matches_are_keyed_by_what_they_name():
    literals = "{'a': 1, B: 2}\n('c', 'd')\n"
    tree = ast.parse(literals + "match x:\n    case E(): pass\n    case F(): pass\n")
    found = [list(house._listed(node)) for node in ast.walk(tree)]
    assert sorted(names for names in found if names) == [["E", "F"], ["a", "B"], ["c", "d"]]
