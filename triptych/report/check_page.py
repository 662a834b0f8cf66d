"""The page of `triptych data check --html`: what was found, with examples, in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from triptych.core.files import write_atomic
from triptych.data.check import CheckReport
from triptych.data.records import Record
from triptych.report.html import thumbnail


def write_check_page(path: Path, report: CheckReport) -> None:
    """Write a page with the report and thumbnails of its examples; it loads nothing from anywhere.

    Args:
        path: The HTML file.
        report: What a check found.
    """
    environment = Environment(
        loader=PackageLoader("triptych.report"), autoescape=True, undefined=StrictUndefined
    )
    findings = [
        {
            "what": finding.what,
            "effect": finding.effect,
            "advice": finding.advice,
            "words": finding.words,
            "groups": [[_shown(report.records[row]) for row in rows] for rows in finding.examples],
        }
        for finding in report.findings
    ]
    text = environment.get_template("check.html.j2").render(
        report=report, findings=findings, skipped=report.skipped[:100]
    )
    write_atomic(path, text)


def _shown(record: Record) -> dict[str, Any]:
    image = next(iter(record.all_images()), None)
    text = record.caption or record.question or record.phrase or record.statement or ""
    return {
        "thumbnail": None if image is None else thumbnail(image),
        "name": str(image or record.video or record.record_id),
        "text": text,
    }
