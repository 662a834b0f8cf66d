"""METEOR's counts and scores in tests/data/meteor.json are those of its authors' program."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from triptych.core.errors import CapabilityError, DataError
from triptych.core.outputs import Predictions
from triptych.evaluation import java_metrics
from triptych.evaluation.metrics import CaptionMetric, usable_java_metrics

OFFICIAL = json.loads((Path(__file__).parents[1] / "data" / "meteor.json").read_text())
COUNTED = "\n".join(OFFICIAL["counts"])


def test_meteor_of_captions_and_of_the_corpus_equals_the_official_one():
    counts = java_metrics.read_meteor(COUNTED, 20)
    scores = java_metrics.meteor_from_counts(counts)
    np.testing.assert_allclose(scores, OFFICIAL["scores"], rtol=0, atol=1e-12)
    corpus = java_metrics.meteor_from_counts(counts.sum(0)[None])[0]
    assert corpus == pytest.approx(OFFICIAL["corpus"], abs=1e-12)
    assert {0.0, 1.0} <= set(scores.tolist())


def test_no_caption_is_no_meteor():
    assert java_metrics.meteor_from_counts(np.zeros((1, 23))).tolist() == [0.0]
    assert java_metrics.read_meteor("", 0).shape == (0, 23)
    with pytest.raises(DataError, match="1 lines for 2 captions"):
        java_metrics.read_meteor(OFFICIAL["counts"][0], 2)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A package with programs and a `java` that answers what the real one answered."""
    package = tmp_path / "packages" / "pycocoevalcap"
    (package / "spice" / "lib").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "pycocoevalcap", raising=False)
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    log = tmp_path / "asked.txt"
    scored = [{"image_id": n, "scores": {"All": {"f": f}}} for n, f in ((1, 0.5), (0, None))]
    java.write_text(
        f"""#!{sys.executable}
import json, sys
if "-stdio" in sys.argv:
    open({str(log)!r}, "w").write(sys.stdin.read())
    print({COUNTED!r})
else:
    given = [word for word in sys.argv if word.endswith("in.json")][0]
    open({str(log)!r}, "w").write(open(given).read())
    open(sys.argv[sys.argv.index("-out") + 1], "w").write({json.dumps(scored)!r})
"""
    )
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(java.parent))
    return package, java, log


def test_meteor_asks_the_program_for_one_line_a_caption(programs):
    references = dict(enumerate(OFFICIAL["references"]))
    metric = CaptionMetric(references, java=("meteor",))
    metric.update(Predictions(index=list(range(20)), texts=OFFICIAL["candidates"]))
    values = {value.name: value for value in metric.compute()}
    assert values["meteor"].value == pytest.approx(OFFICIAL["corpus"], abs=1e-12)
    assert values["meteor"].low < values["meteor"].value < values["meteor"].high
    assert "through Java" in values["meteor"].protocol
    asked = programs[2].read_text().splitlines()
    assert len(asked) == 20
    assert asked[0] == (
        "SCORE ||| the cat is on a mat ||| a kitten sat on the mat ||| a cat sits on the mat"
    )
    java_metrics.count_meteor(["a |||\n b"] * 20, [["c"]] * 20)
    assert programs[2].read_text().splitlines() == ["SCORE ||| c ||| a b"] * 20


def test_spice_is_the_mean_over_captions_in_their_order(programs):
    package, _, log = programs
    with pytest.raises(CapabilityError, match=r"stanford-corenlp-3\.6\.0\.jar"):
        java_metrics.compute_spice(["a"], [["b"]])
    for name in ("", "-models"):
        (package / "spice" / "lib" / f"stanford-corenlp-3.6.0{name}.jar").touch()
    assert java_metrics.compute_spice(["a dog", "a cat"], [["b"], ["c", "d"]]) == [0.0, 0.5]
    assert json.loads(log.read_text())[1] == {"image_id": 1, "test": "a cat", "refs": ["c", "d"]}
    with pytest.raises(DataError, match="no score for 1 of 3"):
        java_metrics.compute_spice(["a", "b", "c"], [["b"], ["c"], ["d"]])


def test_what_is_missing_is_named(programs, monkeypatch, tmp_path):
    _, java, _ = programs
    java.write_text("#!/bin/sh\necho 'Error: no memory' >&2\nexit 3\n")
    with pytest.raises(DataError, match="java ended with 3: Error: no memory"):
        java_metrics.count_meteor(["a"], [["b"]])
    java.unlink()
    with pytest.raises(CapabilityError, match="there is no `java`"):
        java_metrics.count_meteor(["a"], [["b"]])
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(CapabilityError, match=r"pip install 'triptych\[coco\]'"):
        java_metrics.compute_spice(["a"], [["b"]])


def test_what_can_be_computed_here(programs):
    package, java, _ = programs
    assert usable_java_metrics() == ("meteor",)
    for name in ("", "-models"):
        (package / "spice" / "lib" / f"stanford-corenlp-3.6.0{name}.jar").touch()
    assert usable_java_metrics() == ("meteor", "spice")
    java.unlink()
    assert usable_java_metrics() == ()
