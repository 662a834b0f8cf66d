"""METEOR and SPICE of captions, by their authors' Java programs.

Both need Java and the package pycocoevalcap, which contains the programs (`pip install
triptych[coco]`); its Python code is not run. METEOR 1.5 (Denkowski and Lavie, 2014) aligns words
with the help of WordNet and a table of paraphrases of 60 MB, which only its authors' files hold:
Java aligns, and the score is computed here from its counts, as that of one caption or of many.
SPICE 1.0 (Anderson et al., 2016) parses captions with Stanford CoreNLP 3.6.0, two files that
pycocoevalcap does not contain.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from triptych.core.errors import CapabilityError, DataError
from triptych.core.extras import import_extra

Array = npt.NDArray[np.float64]

NUM_COUNTS = 23
"""Of a METEOR alignment: lengths, matches of each of four kinds, chunks, words matched."""

MATCH_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
METEOR_JAR = Path("meteor") / "meteor-1.5.jar"
SPICE_JAR = Path("spice") / "spice-1.0.jar"
CORENLP = "stanford-corenlp-3.6.0"
CORENLP_URL = "http://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"


def count_meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
    """Align each caption with the reference that suits it best.

    Args:
        candidates: PTB tokens of each caption, joined by spaces.
        references: Those of its references.

    Returns:
        (N, 23) counts, rows of which can be added; see `meteor_from_counts`.

    Raises:
        CapabilityError: Java or pycocoevalcap is missing.
        DataError: The program failed.
    """
    lines = [
        " ||| ".join(["SCORE", *map(_one_field, texts), _one_field(candidate)])
        for candidate, texts in zip(candidates, references, strict=True)
    ]
    jar = _jar(METEOR_JAR, "METEOR")
    command = [_java("METEOR"), "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    return read_meteor(_run(command, "METEOR", "\n".join(lines) + "\n"), len(candidates))


def read_meteor(output: str, number: int) -> Array:
    """Return the counts (N, 23) of the program's output, one line a caption.

    Raises:
        DataError: It has other lines.
    """
    rows = [line.split() for line in output.splitlines()]
    if len(rows) != number or any(len(row) != NUM_COUNTS for row in rows):
        raise DataError(f"METEOR gave {len(rows)} lines for {number} captions: {output[:80]!r}")
    counts = np.array(rows, dtype=np.float64).reshape(number, NUM_COUNTS)
    counts[_is_whole(counts), 20] = 0  # in sums, a caption that equals a reference has no break
    return counts


def meteor_from_counts(counts: Array) -> Array:
    """Return METEOR of each row of counts (R, 23), which may be sums over captions."""
    own_length, length, own_function, function = counts[:, :4].T
    matches = counts[:, 4:20].reshape(
        -1, 4, 4
    )  # kind; own content, content, own function, function
    own = DELTA * matches[:, :, 0] + (1 - DELTA) * matches[:, :, 2]
    theirs = DELTA * matches[:, :, 1] + (1 - DELTA) * matches[:, :, 3]
    own_weight = DELTA * (own_length - own_function) + (1 - DELTA) * own_function
    weight = DELTA * (length - function) + (1 - DELTA) * function
    precision, recall = (
        _ratio(own @ MATCH_WEIGHTS, own_weight),
        _ratio(theirs @ MATCH_WEIGHTS, weight),
    )
    mean = _ratio(precision * recall, ALPHA * precision + (1 - ALPHA) * recall)
    breaks = _ratio(counts[:, 20], (counts[:, 21] + counts[:, 22]) / 2)
    return mean * (1 - GAMMA * breaks**BETA)  # type: ignore[no-any-return]


def check_java(names: Sequence[str]) -> None:
    """Raise a CapabilityError where what METEOR or SPICE needs is missing.

    Args:
        names: Out of "meteor" and "spice".
    """
    for name, jar in (("meteor", METEOR_JAR), ("spice", SPICE_JAR)):
        if name in names:
            _java(name.upper())
            _check_corenlp(_jar(jar, name.upper()))


def compute_spice(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return SPICE of each caption: the F-score of its scene graph's parts.

    Args:
        candidates: PTB tokens of each caption, joined by spaces.
        references: Those of its references.

    Raises:
        CapabilityError: Java, pycocoevalcap or CoreNLP is missing.
        DataError: The program failed.
    """
    jar = _jar(SPICE_JAR, "SPICE")
    _check_corenlp(jar)
    asked = [
        {"image_id": number, "test": candidate, "refs": list(texts)}
        for number, (candidate, texts) in enumerate(zip(candidates, references, strict=True))
    ]
    with tempfile.TemporaryDirectory(prefix="triptych_spice_") as folder:
        given, found = Path(folder) / "in.json", Path(folder) / "out.json"
        given.write_text(json.dumps(asked), encoding="utf-8")
        command = [_java("SPICE"), "-Xmx8G", "-jar", str(jar), str(given), "-out", str(found)]
        _run([*command, "-subset", "-silent"], "SPICE")
        return read_spice(json.loads(found.read_text(encoding="utf-8")), len(candidates))


def read_spice(output: Sequence[Any], number: int) -> list[float]:
    """Return the F-scores of the program's output in the order of the captions; none counts 0.

    Raises:
        DataError: A caption has no score.
    """
    found = {item["image_id"]: item["scores"]["All"]["f"] for item in output}
    missing = [index for index in range(number) if index not in found]
    if missing:
        raise DataError(f"SPICE gave no score for {len(missing)} of {number} captions")
    values = [found[index] for index in range(number)]
    return [0.0 if value is None or value != value else float(value) for value in values]


def _one_field(text: str) -> str:
    """Return a text without what separates fields and lines."""
    return " ".join(text.replace("|||", " ").split())


def _is_whole(counts: Array) -> npt.NDArray[np.bool_]:
    """Return which captions equal a reference word for word."""
    whole = np.all(counts[:, [21, 22]] == counts[:, [0, 1]], axis=1) & (counts[:, 20] == 1)
    return np.asarray(whole, dtype=np.bool_)


def _ratio(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _java(metric: str) -> str:
    java = shutil.which("java")
    if java is None:
        raise CapabilityError(
            f"{metric} is a Java program, and there is no `java`: install Java 8+"
        )
    return java


def _jar(name: Path, metric: str) -> Path:
    """Return a program of pycocoevalcap."""
    package = import_extra("pycocoevalcap", "coco", f"{metric}, a Java program,")
    return Path(package.__path__[0]) / name


def _check_corenlp(jar: Path) -> None:
    """Raise where the parser that SPICE needs is missing."""
    lacking = [
        name
        for name in (f"{CORENLP}.jar", f"{CORENLP}-models.jar")
        if not (jar.parent / "lib" / name).is_file()
    ]
    if lacking and jar.name == SPICE_JAR.name:
        raise CapabilityError(
            f"SPICE needs {' and '.join(lacking)} in {jar.parent / 'lib'}; they come from "
            f"{CORENLP_URL}"
        )


def _run(command: Sequence[str], metric: str, given: str | None = None) -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = " ".join(done.stderr.strip().splitlines()[-3:]) or "it printed nothing"
        raise DataError(f"{metric}: {Path(command[0]).name} ended with {done.returncode}: {last}")
    return done.stdout
