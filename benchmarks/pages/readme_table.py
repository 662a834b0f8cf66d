"""Put the figures of `benchmarks/results/foundation.json` into README, between its markers.

python -m benchmarks.pages.readme_table
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"<!-- results -->\n.*?<!-- /results -->", flags=re.DOTALL)
VERDICTS = {True: "met", False: "not met", None: "not measured"}
ROWS = (
    ("demo_minutes", "`make demo`, without installation, minutes"),
    ("i2t_r1", "image-to-text recall at 1 among 500 unseen scenes, ITC alone"),
    ("t2i_r1", "text-to-image, the same"),
    ("i2t_r1_itm", "image-to-text, re-ranked by ITM"),
    ("t2i_r1_itm", "text-to-image, re-ranked by ITM"),
    ("caption_objects", "objects that captions name with the right size, colour and shape"),
    ("vqa", "VQA accuracy"),
    ("grounding", "boxes with an IoU of at least 0.5"),
    ("bf16_speedup", "speed-up of a training step, bf16 over fp32 with torch's SDPA"),
    ("beam_cache_speedup", "speed-up of beam search by caches, 5 beams, 20 tokens, base size"),
    ("scenes_per_s", "scenes generated per second, 64 px, one core"),
    ("resume_kills", "runs of 10 that resume bitwise equal after kill -9"),
)


def table(results: Mapping[str, Any]) -> str:
    """Return the Markdown block of a results file, markers included."""
    figures = results["figures"]
    lines = [
        "<!-- results -->",
        "| what | measured | compositional | chance | blind | target |",
        "|---|---|---|---|---|---|",
    ]
    for key, text in ROWS:
        entry = figures[key]
        cells = [
            _number(entry["value"]),
            _number(figures.get(f"compositional_{key}", {}).get("value")),
            _number(entry.get("chance")),
            _number(entry.get("blind")),
            f"{entry['bar']} {VERDICTS[entry['reached']]}",
        ]
        lines.append(f"| {text} | {' | '.join(cells)} |")
    demo = figures["demo_minutes"]
    machine, commit = (demo.get(name, results[name]) for name in ("machine", "commit"))
    lines += [
        "",
        f"The demo ran on {machine['cores']} cores of {machine['CPU']} without a GPU, at commit "
        f"`{commit[:12]}`; [docs/results.md](docs/results.md) lists commit and machine of each "
        "figure, and `benchmarks/results/foundation.json` "
        "its interval and protocol. Chance draws a training answer, box or caption at random; "
        "blind is the majority answer of the question type, the mean box, or the most frequent "
        "caption. Each scene of the compositional split shows at least one pair of colour and "
        "shape that never occurs in training.",
        "<!-- /results -->",
    ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def main() -> None:
    """Rewrite the block."""
    results = json.loads((ROOT / "benchmarks" / "results" / "foundation.json").read_text())
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(BLOCK.sub(lambda _: table(results), text), encoding="utf-8")


if __name__ == "__main__":
    main()
