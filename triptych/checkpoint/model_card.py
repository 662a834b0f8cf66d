"""The model card: what a stranger must know before using a model folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from triptych.core.outputs import MetricValue


def build_model_card(
    *,
    title: str,
    summary: str,
    data: Mapping[str, str],
    recipe: str,
    metrics: Sequence[MetricValue],
    commit: str | None,
    usage: str | None = None,
) -> str:
    """Return the Markdown text of a model card.

    Args:
        title: Name of the model, such as "mplug_tiny on the built-in scenes".
        summary: One paragraph: architecture, size, what it was trained for.
        data: What it was trained on: a name and one sentence for each source.
        recipe: The resolved configuration as YAML.
        metrics: Measured numbers with their protocols; may be empty.
        commit: Commit of the code that trained it; None if it is not known.
        usage: Python lines that use the model; None for a general example.
    """
    front = ["---", "library_name: triptych", "tags:", "- vision-language", "---"]
    sources = [f"- **{name}**: {text}" for name, text in data.items()] or ["Not recorded."]
    code = usage or 'import triptych\n\nmodel = triptych.load("path/to/this/folder")'
    return "\n".join(
        [
            *front,
            "",
            f"# {title}",
            "",
            summary,
            "",
            "## Use",
            "",
            "```python",
            code,
            "```",
            "",
            "## Data",
            "",
            *sources,
            "",
            "## Metrics",
            "",
            *_metric_lines(metrics),
            "",
            "## Recipe",
            "",
            f"Code: commit `{commit}`." if commit else "Code: the commit is not known.",
            "",
            "```yaml",
            recipe.rstrip("\n"),
            "```",
            "",
        ]
    )


def _metric_lines(metrics: Sequence[MetricValue]) -> list[str]:
    """Return a table with a row a metric."""
    if not metrics:
        return ["None measured."]
    rows = [
        f"| {metric.name} | {metric.value:.4f} | {metric.low:.4f} to {metric.high:.4f} "
        f"| {metric.num_items} | {metric.protocol.replace('|', '/')} |"
        for metric in metrics
    ]
    return ["| metric | value | 95 % interval | items | protocol |", "|---|---|---|---|---|", *rows]
