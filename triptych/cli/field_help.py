"""What the fields of a config mean, from the source; and a config as YAML that says so."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from triptych.core.config import to_dict


def field_help(config_class: type) -> dict[str, str]:
    """Return one line of help for each documented field of a config.

    Reads the `Attributes:` section of the class docstring, and strings below fields.
    """
    return _from_section(inspect.getdoc(config_class) or "") | _from_strings(config_class)


def _from_section(docstring: str) -> dict[str, str]:
    """Read `name: text` entries, whose further lines are indented deeper."""
    helps: dict[str, str] = {}
    name, inside = "", False
    for line in docstring.splitlines():
        if not line.startswith(" ") and line:
            inside = line == "Attributes:"
        elif inside and line.startswith("    ") and not line.startswith("     "):
            name, _, text = line.strip().partition(": ")
            helps[name] = text
        elif inside and line.strip():
            helps[name] += " " + line.strip()
    return helps


def _from_strings(config_class: type) -> dict[str, str]:
    """Read the string that follows a field in the class body."""
    try:
        source = textwrap.dedent(inspect.getsource(config_class))
    except OSError:  # no source, as in an interactive session
        return {}
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    helps: dict[str, str] = {}
    for field, below in zip(body.body, body.body[1:]):
        named = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        text = below.value if isinstance(below, ast.Expr) else None
        if named and isinstance(text, ast.Constant) and isinstance(text.value, str):
            assert isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            helps[field.target.id] = " ".join(text.value.split())
    return helps


COLUMNS = 100
STEP = "  "


def documented_yaml(config: Any, header: str) -> str:
    """Return YAML that `core.config.load_yaml` reads back to an equal config.

    Args:
        config: A config dataclass.
        header: First lines, written as a comment.
    """
    comments = [f"# {line}".rstrip() for line in header.splitlines()]
    return "\n".join([*comments, "", *_config_lines(config, to_dict(config), "")]) + "\n"


def _config_lines(config: Any, plain: dict[str, Any], indent: str) -> Iterator[str]:
    names = [field.name for field in dataclasses.fields(config)]
    if "kind" in plain and "kind" not in names:
        yield f"{indent}kind: {plain['kind']}"
    helps = field_help(type(config))
    for number, name in enumerate(names):
        if not indent and number > 0:
            yield ""
        yield from _comment(helps.get(name, ""), indent)
        yield from _value_lines(name, getattr(config, name), plain[name], indent)


def _value_lines(name: str, value: Any, plain: Any, indent: str) -> Iterator[str]:
    if dataclasses.is_dataclass(value):
        yield f"{indent}{name}:"
        yield from _config_lines(value, plain, indent + STEP)
    elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        yield f"{indent}{name}:"
        for number, (item, plain_item) in enumerate(zip(value, plain, strict=True)):
            yield f"{indent}{STEP}-"
            lines = _config_lines(item, plain_item, indent + 2 * STEP)
            yield from (line for line in lines if number == 0 or not _is_comment(line))
    else:
        flow = yaml.safe_dump([plain], default_flow_style=True, allow_unicode=True, width=10_000)
        yield f"{indent}{name}: {flow.strip()[1:-1]}"


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith("#")


def _comment(text: str, indent: str) -> list[str]:
    width = COLUMNS - len(indent) - 2
    return [f"{indent}# {line}" for line in textwrap.wrap(text, width, break_on_hyphens=False)]
