"""What the fields of a config mean, from where each is documented in the source."""

from __future__ import annotations

import ast
import inspect
import textwrap


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
