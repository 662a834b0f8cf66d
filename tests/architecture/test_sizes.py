"""House rules on size: files under 600 lines, functions of at most 80."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "triptych").rglob("*.py")) + sorted((ROOT / "benchmarks").rglob("*.py"))


def too_long(text):
    """Return what is too long in the source of a file."""
    lines = len(text.splitlines())
    found = [f"{lines} lines"] if lines >= 600 else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = node.end_lineno - node.lineno + 1
            if size > 80:
                found.append(f"{node.name} has {size} lines")
    return found


def test_no_file_and_no_function_is_too_long():
    found = {str(path.relative_to(ROOT)): too_long(path.read_text("utf-8")) for path in FILES}
    assert {path: long for path, long in found.items() if long} == {}


def test_the_checker_sees_long_files_and_functions():
    body = "\n    x = 1" * 80
    assert too_long(f"def f():{body}") == ["f has 81 lines"]
    assert too_long("x = 1\n" * 600) == ["600 lines"]
    assert too_long("x = 1\n" * 599) == []
