"""Official forms against examples written by hand after the servers' own pages and scripts."""

import json
import random

import pytest

from triptych.core.errors import ConfigError, DataError
from triptych.evaluation.submissions import (
    FORMS,
    GLUE_FILES,
    OWN,
    SubmissionForm,
    find_form,
    recognise_form,
    register_form,
)

# Form, file name, rows, what the official page or script shows.
EXAMPLES = [
    (
        "vqa",  # visualqa.org/evaluation.html: results = [result], {"question_id": int, "answer"}
        "results.json",
        [("409380", "yes"), ("1", 'the "red" ball')],
        '[{"question_id": 409380, "answer": "yes"}, '
        '{"question_id": 1, "answer": "the \\"red\\" ball"}]',
    ),
    (
        "coco",  # cocodataset.org/#format-results: [{"image_id": int, "caption": str}]
        "captions_val2014_fakecap_results.json",
        [("404464", "black and white photo of a man"), ("380932", "café")],
        '[{"image_id": 404464, "caption": "black and white photo of a man"}, '
        '{"image_id": 380932, "caption": "café"}]',
    ),
    (
        "nlvr2",  # lil-lab/nlvr, nlvr2/eval/metrics.py: IDENTIFIER,PREDICTION, no header
        "predictions.csv",
        [("dev-850-0-0", "true"), ("test1-0-1-1", "false")],
        "dev-850-0-0,True\ntest1-0-1-1,False\n",
    ),
    (
        "glue",  # gluebenchmark.com/faq: "index\tprediction", one file a task
        "RTE.tsv",
        [("1", "entailment"), ("0", "not_entailment")],
        "index\tprediction\n0\tnot_entailment\n1\tentailment\n",
    ),
    (
        "snli_ve",  # MultiNLI's competitions on Kaggle: pairID,gold_label
        "results.csv",
        [("4804607632.jpg#0r1e", "entailment"), ("a,b", "neutral")],
        'pairID,gold_label\n4804607632.jpg#0r1e,entailment\n"a,b",neutral\n',
    ),
    (
        "csv",
        "labels.csv",
        [("n01/1.png", "a dog"), ("n01/2.png", "cat")],
        "id,label\nn01/1.png,a dog\nn01/2.png,cat\n",
    ),
    (
        "hateful_memes",  # drivendata.org, Hateful Memes: Phase 2, submission format
        "submission.csv",
        [("16395", 0.25), ("37405", 0.75)],
        "id,proba,label\n16395,0.25,0\n37405,0.75,1\n",
    ),
    (
        "refcoco",
        "boxes.json",
        [("12", [1.0, 2.0, 4.0, 8.0]), ("12#1", [0.0, 0.0, 0.5, 0.25])],
        '[{"sent_id": 12, "pred_box": [1.0, 2.0, 3.0, 6.0]}, '
        '{"sent_id": "12#1", "pred_box": [0.0, 0.0, 0.5, 0.25]}]',
    ),
    (
        "trec",  # trec_eval: query Q0 document rank score run
        "run one.txt",
        [("i2t:7", [["c1", 0.5], ["c2", 0.25]]), ("t2i:c1", [["7", -1.0]])],
        "i2t:7 Q0 c1 1 0.5 run_one\ni2t:7 Q0 c2 2 0.25 run_one\nt2i:c1 Q0 7 1 -1.0 run_one\n",
    ),
]


@pytest.mark.parametrize(("name", "file", "rows", "text"), EXAMPLES, ids=[e[0] for e in EXAMPLES])
def test_a_form_is_written_as_shown_recognised_and_read_back(name, file, rows, text, tmp_path):
    form = FORMS.get(name)
    assert form.write(rows, file) == text
    assert recognise_form(text) is form
    (tmp_path / file).write_text(f"\ufeff{text}".replace("\n", "\r\n"), encoding="utf-8")
    read = dict(form.read(tmp_path / file))
    if name == "hateful_memes":
        read = {key: value["positive"] for key, value in read.items()}
    assert read == dict(rows)


def test_every_form_has_an_example():
    assert [example[0] for example in EXAMPLES if example[0] in FORMS] and {
        example[0] for example in EXAMPLES
    } == set(FORMS.names())


def nlvr2_script(predictions, labeled_examples):
    """What the official script reports, after its own steps."""
    found = {}
    for line in predictions.splitlines():
        splits = line.strip().split(",")
        found[splits[0]] = splits[1]
    right = [found[e["identifier"]].lower() == e["label"].lower() for e in labeled_examples]
    return sum(right) / len(right)


def test_nlvr2_is_read_by_the_official_script():
    labelled = [
        {"identifier": f"dev-{n}-0-0", "label": random.Random(n).choice(["True", "False"])}
        for n in range(9)
    ]
    said = [(e["identifier"], ("true", "false")[n % 2]) for n, e in enumerate(labelled)]
    right = sum(label == e["label"].lower() for (_, label), e in zip(said, labelled, strict=True))
    assert nlvr2_script(FORMS.get("nlvr2").write(said, "p.csv"), labelled) == right / 9


@pytest.mark.parametrize(
    ("name", "labels"),
    [(name, labels or ("0.0", "5.0")) for name, labels in GLUE_FILES.items()],
)
def test_each_file_of_glue_takes_its_own_labels(name, labels):
    rows = [(str(i), float(x) if name == "STS-B.tsv" else x) for i, x in enumerate(labels)]
    text = FORMS.get("glue").write(rows, name)
    assert text.splitlines()[0] == "index\tprediction" and len(text.splitlines()) == len(rows) + 1
    with pytest.raises(DataError, match=r"fine-tuned on another|numbers from 0 to 5"):
        FORMS.get("glue").write([("0", "maybe")], name)


def test_similarities_stay_between_0_and_5():
    text = FORMS.get("glue").write([("0", -0.3), ("1", 7.5), ("2", 3.14159)], "STS-B.tsv")
    assert text == "index\tprediction\n0\t0.000\n1\t5.000\n2\t3.142\n"


@pytest.mark.parametrize(
    ("name", "file", "rows", "error", "match"),
    [
        ("vqa", "a.json", [("q7", "a")], DataError, "'q7' is no whole number"),
        ("coco", "a.json", [("007", "a")], DataError, "'007' is no whole number"),
        ("glue", "rte.tsv", [("0", "entailment")], ConfigError, "'rte.tsv' is none of them"),
        ("glue", "RTE.tsv", [("x", "entailment")], DataError, "'x' is no whole number"),
        ("trec", "run", [("a b", [["1", 1.0]])], DataError, "'a b' holds a space"),
    ],
)
def test_what_a_form_cannot_hold_is_refused(name, file, rows, error, match):
    form = FORMS.get(name)
    with pytest.raises(error, match=match):
        form.write(rows, file)
    with pytest.raises(error, match=match):  # before anything is predicted
        form.check([key for key, _ in rows], file)


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("vqa", '{"question_id": 1}', "holds a dict, not a list"),
        ("vqa", '[{"question_id": 1}]', r"entry \[0\] has no 'answer'"),
        ("vqa", '[{"question_id": 1, "answer": "a"},\n{"question_id": 2, "ans', "line 2, column"),
        ("vqa", '[{"question_id": 1, "answer": 3}]', "3 is no text"),
        ("vqa", '[{"question_id": true, "answer": "a"}]', "True is no id"),
        ("vqa", "[]", "holds no prediction"),
        ("coco", '["a"]', r"entry \[0\] has no 'image_id'"),
        ("refcoco", '[{"sent_id": 1, "pred_box": [1, 2, 3]}]', "is not \\[x, y, width, height\\]"),
        ("refcoco", '[{"sent_id": 1, "pred_box": [1, 2, 3, NaN]}]', "is not \\[x, y"),
        ("nlvr2", "dev-0-0-0,True\ndev-0-0-1;False\n", "line 2: 'dev-0-0-1;False'"),
        ("nlvr2", "identifier,prediction\n", "line 1"),
        ("glue", "id\tprediction\n0\t1\n", "line 1 is not 'index\\\\tprediction'"),
        ("glue", "index\tprediction\n0\t1\t2\n", "line 2"),
        ("csv", "id,label\n1,\n", "line 2"),
        ("csv", 'id,label\n1,"a\n', "line 2|line 3"),
        ("hateful_memes", "id,proba,label\n1,2.0,1\n", "line 2: '1,2.0,1' is not id,proba,label"),
        ("hateful_memes", "id,proba,label\n1,0.5\n", "line 2"),
        ("trec", "q Q0 c one 1.0 r\n", "line 1"),
        ("trec", "q Q0 c 1 1.0 r\nq Q0 c 2 0.5 r\n", "comes twice"),
    ],
)
def test_broken_files_are_errors_that_say_where(name, text, match, tmp_path):
    path = tmp_path / "p"
    path.write_text(text)
    with pytest.raises(DataError, match=match):
        FORMS.get(name).read(path)


def test_a_file_that_is_no_text_or_absent_is_named(tmp_path):
    (tmp_path / "p").write_bytes(b"\xff\xfe\x00")
    for name, match in (("p", "is UTF-16 text"), ("absent", "there is no such file")):
        with pytest.raises(DataError, match=match):
            FORMS.get("csv").read(tmp_path / name)


def test_other_json_is_of_no_form():
    assert recognise_form(json.dumps([{"image": "a.jpg", "caption": "b"}])) is None
    assert recognise_form("") is None


def test_a_form_that_a_task_does_not_have_is_an_error_that_lists_those_it_has():
    assert find_form("vqa", ("vqa",), "vqa") is FORMS.get("vqa")
    with pytest.raises(ConfigError, match=r"none of those of vqa; did you mean 'vqa'\?: jsonl"):
        find_form("vqaa", ("vqa",), "vqa")


def test_a_form_of_ones_own_is_registered_once(monkeypatch):
    monkeypatch.setattr(FORMS, "_entries", dict(FORMS.entries()))
    mine = SubmissionForm(
        "mine", "me", "id", ("text",), lambda rows, _: str(rows), eval, lambda head: "('" in head
    )
    register_form(mine)
    assert recognise_form(mine.write([("1", "a")], "f")) is mine
    with pytest.raises(ConfigError, match="registered twice"):
        register_form(mine)
    assert OWN not in FORMS
