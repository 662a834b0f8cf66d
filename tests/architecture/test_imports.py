"""The rooms may only be entered along the arrows of docs/architecture.md."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "triptych"
ARROWS = {  # importer: what it may import directly; `reachable` closes this transitively
    "core": set(),
    "nn": {"core"},
    "text": {"core"},
    "models": {"nn"},
    "distributed": {"core"},
    "objectives": {"core", "distributed"},
    "generation": {"core", "nn"},
    "evaluation": {"core"},
    "papers": {"core"},
    "data": {"core", "text"},
    "scenes": {"data"},
    "checkpoint": {"distributed"},
    "train": {"checkpoint"},
    "tasks": {"models", "objectives", "generation", "evaluation", "data", "train"},
    "recipes": {"tasks"},
    "serving": {"tasks"},
    "index": {"report"},
    "server": {"index"},
    "demo": {"workflows", "index"},
    "jobs": {"serving"},
    "workflows": {"recipes", "serving", "scenes", "papers"},
    "lab": {"workflows", "report"},
    "report": {"serving", "evaluation", "data"},
}
FREE = {"cli", "__init__", "__main__"}


def reachable(room: str) -> set[str]:
    found, todo = set(), [room]
    while todo:
        for target in ARROWS[todo.pop()] - found:
            found.add(target)
            todo.append(target)
    return found


def imports(path: Path) -> list[tuple[int, str]]:
    """Return (line, room) of each import of the package, wherever in the file it stands."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
            if node.module == "triptych":
                names = [f"triptych.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
        found += [(node.lineno, n.split(".")[1]) for n in names if n.startswith("triptych.")]
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(path for path in PACKAGE.rglob("*.py") if room_of(path) not in FREE)


def test_every_room_is_known():
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")}
    assert rooms == set(ARROWS) | FREE


def test_imports_follow_the_arrows():
    wrong = []
    for path in FILES:
        room = room_of(path)
        may = reachable(room) | {room}
        wrong += [
            f"{path.relative_to(PACKAGE)}:{line}: {room} imports {name}"
            for line, name in imports(path)
            if name == "cli" or (name in ARROWS and name not in may)
        ]
    assert wrong == []


def test_the_checker_sees_a_wrong_import(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from triptych.train import trainer\n    import triptych.data.x\n")
    assert imports(bad) == [(2, "train"), (3, "data")]
    assert "train" not in reachable("nn")
    assert reachable("tasks") >= {"core", "nn", "models"}
