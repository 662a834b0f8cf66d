"""GLUE's files as its authors publish them: columns, quirks, and what is wrong in them."""

import pytest

from triptych.core.errors import DataError
from triptych.data.manifest import read_records
from triptych.data.readers.glue import read_glue
from triptych.data.skips import SkipKind
from triptych.data.source import DataSourceConfig

MNLI_TRAIN = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
    "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label"
)
MNLI_DEV = MNLI_TRAIN.replace("label1\t", "label1\tlabel2\tlabel3\tlabel4\tlabel5\t")
MRPC = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
STS = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"

# Task, lines, and (id, first text, second text, label) of each record.
FILES = [
    (
        "CoLA train and dev, without a header",
        ["x04\t1\t\tA bird sang.", "x04\t0\t*\tA bird of sang."],
        [("1", "A bird sang.", None, "1"), ("2", "A bird of sang.", None, "0")],
    ),
    (
        "CoLA and SST-2 test",
        ["index\tsentence", "0\tIt went by."],
        [("0", "It went by.", None, None)],
    ),
    (
        "SST-2: a quotation mark is a character",
        ["sentence\tlabel", 'a " small ( thing \t1', '" never ends\t0'],
        [("2", 'a " small ( thing', None, "1"), ("3", '" never ends', None, "0")],
    ),
    (
        "MRPC, with a byte order mark and DOS line ends",
        [f"\ufeff{MRPC}\r", '1\t70\t71\tHe said "no\tShe did\r'],
        [("2", 'He said "no', "She did", "1")],
    ),
    (
        "MRPC test",
        ["index\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t70\t71\tOne\tTwo"],
        [("0", "One", "Two", None)],
    ),
    (
        "QQP",
        ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "133\t7\t8\tHow?\tWhy?\t0"],
        [("133", "How?", "Why?", "0")],
    ),
    ("QQP test", ["id\tquestion1\tquestion2", "0\tHow?\tWhy?"], [("0", "How?", "Why?", None)]),
    (
        "STS-B",
        [STS, "5\tmain\tMSRvid\t2012\t12\tnone\tnone\tA man plays.\tA man rests.\t2.500"],
        [("5", "A man plays.", "A man rests.", 2.5)],
    ),
    (
        "STS-B test",
        [STS.removesuffix("\tscore"), "5\tmain\tMSRvid\t2012\t12\tnone\tnone\tOne\tTwo"],
        [("5", "One", "Two", None)],
    ),
    (
        "MNLI train",
        [MNLI_TRAIN, "0\t31n\t31n\tslate\t(\t)\tA\tB\tIt rains.\tDry.\tneutral\tcontradiction"],
        [("0", "It rains.", "Dry.", "contradiction")],
    ),
    (
        "MNLI dev, matched or mismatched: five annotators",
        [MNLI_DEV, "0\t3\t3n\tslate\t(\t)\tA\tB\tIt rains.\tWet.\tneutral\t\t\t\t\tentailment"],
        [("0", "It rains.", "Wet.", "entailment")],
    ),
    (
        "QNLI",
        ["index\tquestion\tsentence\tlabel", "7\tWho?\tHe did.\tnot_entailment"],
        [("7", "Who?", "He did.", "not_entailment")],
    ),
    (
        "RTE",
        ["index\tsentence1\tsentence2\tlabel", "7\tIt rains.\tWet.\tentailment"],
        [("7", "It rains.", "Wet.", "entailment")],
    ),
]  # fmt: skip


def write(tmp_path, lines):
    path = tmp_path / "dev.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    return DataSourceConfig(path=str(path))


@pytest.mark.parametrize(("lines", "expected"), [f[1:] for f in FILES], ids=[f[0] for f in FILES])
def test_files_of_each_task(tmp_path, lines, expected):
    found = read_records(write(tmp_path, lines))  # recognised by its first line
    assert found.skipped == []
    records = found.records
    assert [(r.record_id, r.text or r.premise, r.hypothesis, r.label) for r in records] == expected
    assert all((r.text is None) == (r.hypothesis is not None) for r in records)
    assert [type(r.label) for r in records] == [type(label) for *_, label in expected]


def test_bad_lines_are_named(tmp_path):
    lines = [
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "1\t7\t8\tHow?\tWhy?\t1",
        "2\t7\t8\tcut",
        "3\t7\t8\t \tWhy?\t1",
        "4\t7\t8\tHow?\tWhy?\t2",
    ]
    source = write(tmp_path, lines)
    found = read_glue(source)
    assert [record.record_id for record in found.records] == ["1"]
    assert [(s.kind, s.where) for s in found.skipped] == [
        (SkipKind.BAD_RECORD, f"{source.path}:3"),
        (SkipKind.BAD_RECORD, f"{source.path}:4"),
        (SkipKind.BAD_LABEL, f"{source.path}:5"),
    ]
    assert "has 4 cells, a line of QQP has 6" in found.skipped[0].message


@pytest.mark.parametrize("score", ["six", "5.5", "-1", "nan"])
def test_a_score_is_a_number_from_0_to_5(tmp_path, score):
    row = f"5\tmain\tMSRvid\t2012\t12\tnone\tnone\tOne\tTwo\t{score}"
    (skipped,) = read_glue(write(tmp_path, [STS, row])).skipped
    assert skipped.kind is SkipKind.BAD_LABEL
    assert f"score '{score}' is no number from 0 to 5" in skipped.message


def test_other_tables_are_left_to_their_reader(tmp_path):
    path = tmp_path / "mine.tsv"
    path.write_text("text\tlabel\nIt rains.\twet\n")
    (record,) = read_records(DataSourceConfig(path=str(path))).records
    assert (record.text, record.label) == ("It rains.", "wet")
    with pytest.raises(DataError, match=r"mine.tsv:1: .* is of none of CoLA, MNLI"):
        read_glue(DataSourceConfig(path=str(path)))
