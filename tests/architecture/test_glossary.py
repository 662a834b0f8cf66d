"""Nothing says what docs/glossary.md says not to write."""

import pytest

from tests import glossary


def test_docstrings_messages_comments_and_pages_keep_to_the_glossary():
    assert [line for path in glossary.files() for line in glossary.offenders(path)] == []


def test_the_lint_sees_prose_and_not_code(tmp_path, monkeypatch):
    monkeypatch.setattr(glossary, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text('An image.\n`left out` and "left out".\n\nIt is\nleft out.\n')
    assert [line.split(": ")[:2] for line in glossary.offenders(page)] == [
        ["page.md:5", "left out"]
    ]
    code = tmp_path / "code.py"
    code.write_text(
        '"""A\n\nPicture."""\nleft_out = "picture"  # shall\nraise ValueError("is left out")\n'
    )
    found = [line.split(": ")[0:2] for line in glossary.offenders(code)]
    assert found == [["code.py:3", "picture*"], ["code.py:4", "shall"], ["code.py:5", "left out"]]


@pytest.mark.parametrize("phrase", ["picture*", "fresh weights", "shall", "left out"])
def test_the_glossary_has_the_phrases_that_began_it(phrase):
    assert phrase in dict(glossary.forbidden())
