"""One word for one thing: finds the phrases that docs/glossary.md says not to write.

`python -m tests.glossary [PATH...]` prints each offender as `path:line: phrase: text`. It reads
prose: docstrings, comments and sentences in string literals of Python files, and Markdown
outside of code and of quotation marks.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
GLOSSARY = ROOT / "docs" / "glossary.md"
READ = ("triptych/**/*.py", "benchmarks/**/*.py", "*.md", "docs/**/*.md", "benchmarks/*.md")
DATA = {
    "triptych/evaluation/zero_shot.py": {"picture*"},
    "triptych/papers/benchmarks.py": {"picture*"},
    "triptych/scenes/language.py": {"picture*"},
    "triptych/scenes/questions.py": {"picture*"},
}
"""Files with sentences that are data, and what these may say."""

CODE = re.compile(r"```.*?^\s*```|``[^`]+``|`[^`]*`", flags=re.DOTALL | re.MULTILINE)
FENCE = re.compile(r"^[ ]*```.*?^[ ]*```", flags=re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"<!--.*?-->", flags=re.DOTALL)
QUOTED = re.compile(r'"[^"\n]{1,80}"|“[^”\n]{1,80}”')
TARGET = re.compile(r"\]\([^)]*\)")


@cache
def forbidden() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Return each phrase of the glossary's last column, with its pattern.

    A phrase matches as whole words, whatever its case; `*` stands for the end of a word.
    """
    rows = [line for line in GLOSSARY.read_text("utf-8").splitlines() if line.startswith("| ")]
    found = []
    for row in rows[1:]:
        for phrase in re.findall(r"`([^`]+)`", row.strip().strip("|").rsplit("|", 1)[1]):
            words = r"\s+".join(re.escape(w).replace(r"\*", r"\w*") for w in phrase.split())
            found.append((phrase, re.compile(rf"(?<![\w-]){words}(?![\w])", re.IGNORECASE)))
    return tuple(found)


def blanked(pattern: re.Pattern[str], text: str) -> str:
    """Replace what `pattern` finds by blanks, and keep the line breaks."""
    return pattern.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)


def prose(text: str) -> str:
    """Return a text without its code, quotations and link targets, line by line."""
    for pattern in (FENCE, COMMENT, CODE, QUOTED, TARGET):
        text = blanked(pattern, text)
    return text


def of_markdown(path: Path) -> Iterator[tuple[int, str]]:
    """Yield a page's prose; of the glossary, only what it says to write."""
    text = path.read_text("utf-8")
    if path == GLOSSARY:
        text = "\n".join(
            line.strip().strip("|").rsplit("|", 1)[0] if line.startswith("| ") else line
            for line in text.splitlines()
        )
    yield 1, prose(text)


def of_python(path: Path) -> Iterator[tuple[int, str]]:
    """Yield docstrings, comments, and string literals that have more than one word."""
    text = path.read_text("utf-8")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], prose(token.string)
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if len(node.value.split()) > 1:
            yield node.lineno, prose(node.value)


def offenders(path: Path) -> list[str]:
    """Return what a file should not say, one line an occurrence."""
    name = path.relative_to(ROOT).as_posix()
    allowed = DATA.get(name, set())
    found = []
    for first, text in of_python(path) if path.suffix == ".py" else of_markdown(path):
        for phrase, pattern in forbidden():
            if phrase in allowed:
                continue
            for match in pattern.finditer(text):
                before = text[: match.start()]
                line = first + before.count("\n")
                start = before.rfind("\n") + 1
                sentence = text[start:].split("\n", 1)[0].strip()
                found.append((line, f"{name}:{line}: {phrase}: {sentence[:100]}"))
    return [text for _, text in sorted(set(found))]


def files() -> list[Path]:
    """Return every file that is read."""
    return sorted({path for pattern in READ for path in ROOT.glob(pattern)})


if __name__ == "__main__":
    wanted = [Path(name).resolve() for name in sys.argv[1:]] or files()
    paths = [p for w in wanted for p in ([w] if w.is_file() else sorted(w.rglob("*.py")))]
    lines = [line for path in paths for line in offenders(path)]
    print("\n".join(lines))
    sys.exit(bool(lines))
