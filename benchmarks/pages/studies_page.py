"""docs/studies.md: what each built-in study of `triptych compare` found, beside the paper.

Reads `benchmarks/results/studies`, which `benchmarks/lab/studies.py` fills, and the definitions of
the studies; one without a result is listed as not run.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.pages.gather import STUDIES, load_json, main_comparison
from benchmarks.pages.markdown import machine_name, make_table
from triptych.core.config import from_dict
from triptych.core.reading import parse_yaml
from triptych.lab.definition import Comparison, Study, built_in_studies

COST_WORDS = {
    "seconds_per_step": "seconds a step",
    "processor_seconds_per_step": "processor seconds a step",
    "flops_per_sample": "operations a sample",
}

HEAD = """# Studies

Each study trains variants of a run on the same data, in the same order, with the same tokenizer,
budget and evaluation, and asks what a table or a figure of a paper asks. `triptych compare NAME`
runs one ([guide](how-to/compare.md)). These ran on the built-in scenes, from random weights unless
a study says otherwise: `python -m benchmarks.lab.studies` stored them in
[benchmarks/results/studies](../benchmarks/results/studies), and `python -m benchmarks.pages` wrote
this page from there.

A difference is the first variant minus the second with the same seed; its 95 % t interval is over
seeds. An interval without zero tells the two apart. A verdict compares the sign of the difference
with the paper's finding: *agrees* and *disagrees* need an interval without zero; everything else is
*cannot tell*. Models are small, the world is simple, and runs last a minute or two: a verdict says
what holds here, not whether the paper is right.

Recall is the mean of both directions' recall at 1 by the dot product among 500 unseen scenes;
`recall_mean` also averages recall at 5 and at 10. Perplexity is that of their captions, given the
image: lower is better. Processor time is per training step, on one thread; it includes the start of
a run.
"""


def studies_page(folder: Path, _: str = "") -> str:
    """Return docs/studies.md.

    Args:
        folder: Of the results; the studies' are below it.

    Raises:
        DataError: A file is not JSON.
    """
    studies = {n: from_dict(Study, parse_yaml(t)) for n, t in built_in_studies().items()}
    found = {
        name: load_json(path)
        for name in studies
        if (path := folder / STUDIES.name / f"{name}.json").is_file()
    }
    parts = [HEAD.strip(), overview(studies, found)]
    parts += [section(n, s, found[n]) if n in found else not_run(n, s) for n, s in studies.items()]
    return "\n\n".join(parts) + "\n"


def overview(studies: Mapping[str, Study], found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of all studies' main comparisons, and how many tell their sides apart."""
    rows = []
    for name, study in studies.items():
        link = f"[{name}](#{name.replace('.', '')})"
        if name not in found:
            rows.append([link, sides(study.comparisons[0]), "not run", "", ""])
            continue
        main = main_comparison(found[name])
        told = "yes" if main["tells"] else "no"
        rows.append([link, sides(study.comparisons[0]), difference(main), told, verdict(main)])
    apart = sum(bool(main_comparison(result)["tells"]) for result in found.values())
    said = (
        f"{len(found)} of {len(studies)} studies were run; the main comparison of {apart} tells "
        "its sides apart."
    )
    head = ["study", "main comparison", "difference", "told apart", "verdict"]
    return f"{said}\n\n{make_table(head, rows)}"


def sides(pair: Comparison | Mapping[str, Any]) -> str:
    """Return a comparison in words."""
    first, second, score = (
        (pair.first, pair.second, pair.score)
        if isinstance(pair, Comparison)
        else (pair["first"], pair["second"], pair["score"])
    )
    return f"{first} - {second}, {COST_WORDS.get(score, score)}"


def number(value: float) -> str:
    """Return three significant digits."""
    if value == 0:
        return "0"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"


def difference(row: Mapping[str, Any]) -> str:
    """Return a mean difference with its interval."""
    if row["mean"] is None:
        return "not measured"
    text = f"{row['mean']:+.3g}" if abs(row["mean"]) < 1e4 else f"{row['mean']:+.2e}"
    if row["low"] is None or row["low"] == row["high"]:
        return text  # one seed, or a count that no seed changes
    return f"{text} ({number(row['low'])} to {number(row['high'])})"


def verdict(row: Mapping[str, Any]) -> str:
    """Return the verdict of a comparison, if a paper says something."""
    return row["verdict"] or ""


def not_run(name: str, study: Study) -> str:
    """Return the section of a study without a result."""
    papers = [
        f"- {sides(pair)}: {pair.paper.predicts}: {pair.paper.says} ({pair.paper.source})."
        for pair in study.comparisons
        if pair.paper is not None
    ]
    listed = "\n".join(["Not run. What it would test:", "", *map(wrapped, papers)])
    return f"## {name}\n\n{wrapped(f'{study.title}. {study.question}')}\n\n{listed}"


def wrapped(text: str) -> str:
    """Return a paragraph, or an entry of a list, in short lines."""
    return textwrap.fill(text, 100, subsequent_indent="  " if text.startswith("- ") else "")


def section(name: str, study: Study, result: Mapping[str, Any]) -> str:
    """Return what a study found."""
    output = result["output"]
    parts = [f"## {name}", wrapped(f"{study.title}. {study.question}")]
    parts += [variants_table(output), comparisons_table(output)]
    notes = [*study.notes, *(f"Failed: {n}: {why}." for n, why in output["failed"].items())]
    if notes:
        parts.append("\n".join(wrapped(f"- {note}") for note in notes))
    where = f"`{result['command']}`, commit {result['commit'][:9]}"
    parts.append(wrapped(f"{output['protocol']} {where}; {machine_name(result['machine'])}."))
    return "\n\n".join(parts)


def variants_table(result: Mapping[str, Any]) -> str:
    """Return scores and costs of every variant."""
    variants: Mapping[str, Any] = result["variants"]
    scores = list(next(iter(variants.values()))["scores"])
    rows = [
        [name, row["about"], *cells(row, scores), *costs(row["cost"])]
        for name, row in variants.items()
    ]
    return make_table(
        ["variant", "what", *scores, "steps", "operations a sample", "processor ms a step"], rows
    )


def cells(row: Mapping[str, Any], scores: list[str]) -> Iterator[str]:
    """Yield the mean of each score over seeds, with its interval."""
    for name in scores:
        found = row["scores"][name]
        if found is None:
            yield "failed"
            continue
        ends = found["low"] is not None and found["low"] != found["high"]
        interval = f" ({number(found['low'])} to {number(found['high'])})" if ends else ""
        yield f"{number(found['mean'])}{interval}"


def costs(cost: Mapping[str, Any]) -> Iterator[str]:
    """Yield steps, counted operations and processor time of a step.

    The time includes the start of a run; of several processes nobody counts it.
    """
    yield "" if cost["steps"] is None else f"{cost['steps']:,}"
    flops, seconds = cost["flops_per_sample"], cost["processor_seconds_per_step"]
    yield "" if flops is None else number(flops["mean"])
    yield "" if seconds is None else f"{1000 * seconds['mean']:.0f}"


def comparisons_table(result: Mapping[str, Any]) -> str:
    """Return the paper's finding beside ours for every comparison."""
    rows = []
    for row in result["comparisons"]:
        paper = row["paper"]
        says = "" if paper is None else f"{paper['predicts']}: {paper['says']} ({paper['source']})"
        told = "yes" if row["tells"] else "no"
        rows.append([sides(row), says, difference(row), told, verdict(row)])
    head = ["comparison", "the paper", "our difference", "told apart", "verdict"]
    return make_table(head, rows)
