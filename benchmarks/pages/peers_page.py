"""docs/peers.md: Triptych beside what a user would pick instead, and why a peer wins where it does.

Reads `benchmarks/results/peers.json`, which `python -m benchmarks.peers --write` fills, and the
table of contests; one without a result is listed as not run.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.pages.efficiency_chart import format_number
from benchmarks.pages.gather import load_json
from benchmarks.pages.markdown import machine_name, make_table
from benchmarks.peers import CONTESTS, STORED, Contest

EVEN = 0.02
"""A ratio this close to 1, or one whose range holds 1, has no winner."""

HEAD = """# Triptych and its peers

The same work, done by Triptych and by what a user would pick instead: of equal sizes, with random
weights, in turn in one process, in another order each round. Where a side can compute in several
precisions each is timed, and its better one counts. A ratio is the median over rounds of the peer's
time over ours of the same round, with its lowest and highest: above 1, Triptych is faster. Who wins
is told only where the whole range lies on one side of 1.

Each peer comes from its package and is called as its own documentation says.
`python -m benchmarks.peers --write` measures and stores, and `python -m benchmarks.pages` wrote
this page from `benchmarks/results/peers.json`. Times are of one
machine each: compare ratios.

open_clip and sentence-transformers are installed beside Triptych, into a folder of their own:

```bash
pip install --no-deps --target runs/peers_site -r benchmarks/peers-requirements.txt
PYTHONPATH=runs/peers_site python -m benchmarks.peers --write
```

open_clip imports torchvision for its image transforms. Where torchvision is not installed, the
benchmark lets these names be imported without doing anything; the transforms are not used, and the
model, the loss and the step are open_clip's own."""

WHY: dict[str, str] = {
    "decode_cv2": "it shrinks by means of areas. Ours is Pillow's antialiased bicubic filter, byte "
    "for byte: what evaluation, search and the server see must not depend on the decoder that is "
    "installed. Training takes a faster filter.",
    "search_faiss_1": "one query reads every vector once. Ours compares all in float16, and the "
    "best again in float32; one thread multiplies float16 more slowly here than faiss reads twice "
    "the bytes. With 64 queries, ours converts a tile of vectors once for all of them.",
}
"""By contest that a peer wins: why."""

LIMITS: dict[str, str] = {
    "caption_blip_1": "both sides encode the image with about the same operations, and read every "
    "weight of a decoder of the same size once a token, which memory bounds. We save only what "
    "BLIP spends beside that.",
    "caption_blip_8": "encoding the images is the same work on both sides, and the larger part of "
    "our time. Only decoding is left to be faster at.",
    "itm_blip": "mPLUG's connected layer updates all image tokens for each text. Three quarters "
    "of that layer, nearly half of our products, cannot be shared by the texts of an image.",
    "flava_step": "matrix products of the images, which are the same on both sides, take most of "
    "our step. We save the padding of the texts and what no loss reads.",
}
"""By contest: what keeps the ratio below its target."""


def peers_page(folder: Path, _: str = "") -> str:
    """Return docs/peers.md.

    Args:
        folder: Of the results.

    Raises:
        DataError: The file is not JSON.
    """
    path = folder / STORED.name
    stored = load_json(path) if path.is_file() else {}
    parts = [HEAD]
    if found := {name: stored[name] for name in CONTESTS if name in stored}:
        parts += [overview(found), "## Each contest"]
        parts += [section(name, CONTESTS[name], result) for name, result in found.items()]
    missing = [f"`{name}`" for name in CONTESTS if name not in stored]
    if missing:
        parts.append(textwrap.fill(f"Not run: {', '.join(missing)}.", 100))
    return "\n\n".join(parts) + "\n"


def winner(result: Mapping[str, Any]) -> str:
    """Return who wins: "ours", "peer", or "neither" where the range holds 1 or is close to it."""
    low, high = result["range"]
    if low > 1 + EVEN:
        return "ours"
    return "peer" if high < 1 - EVEN else "neither"


def is_below(name: str, result: Mapping[str, Any]) -> bool:
    """Return whether a contest misses one of its targets."""
    ratios = [(ratio_of(name, result, way), bar) for way, bar in CONTESTS[name].bars.items()]
    return any(ratio is not None and ratio < bar for ratio, bar in ratios)


def overview(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of all contests, and who won how many."""
    names = {"ours": "Triptych", "peer": "**the peer**", "neither": "neither"}
    rows = []
    for name, result in found.items():
        contest, ms = CONTESTS[name], result["median_ms"]
        link = f"[{contest.title}](#{name.replace('_', '-')})"
        sides = [f"{format_number(ms[result['best'][side]])} ms" for side in ("ours", "peer")]
        ways = [result["best"][side].split(" ", 1)[1] for side in ("ours", "peer")]
        cells = [f"{took}, {way}" for took, way in zip(sides, ways, strict=True)]
        ratio = f"**{result[contest.key]:.2f}** ({spread(result['range'])})"
        rows.append([link, result["peer"], *cells, ratio, targets(name, result)])
        rows[-1].append(names[winner(result)])
    won = [winner(result) for result in found.values()]
    said = (
        f"Of {len(found)} contests, Triptych wins {won.count('ours')}, the peer wins "
        f"{won.count('peer')}, and {won.count('neither')} are open."
    )
    head = ["work", "peer", "Triptych", "the peer", "ratio", "target", "winner"]
    return f"{said}\n\n{make_table(head, rows)}"


def spread(limits: list[float]) -> str:
    """Return a range."""
    return f"{limits[0]:.2f} to {limits[1]:.2f}"


def targets(name: str, result: Mapping[str, Any]) -> str:
    """Return each target of a contest, and whether it is met."""
    found = []
    for way, bar in CONTESTS[name].bars.items():
        ratio = ratio_of(name, result, way)
        own = "" if way == "best" else f"{way} "
        verdict = "not measured" if ratio is None else "met" if ratio >= bar else "**not met**"
        found.append(f"{own}>= {bar:g}: {verdict}")
    return "; ".join(found)


def ratio_of(name: str, result: Mapping[str, Any], way: str) -> float | None:
    """Return the ratio of a contest's figure: its best ways', or that of one way of both sides."""
    if way == "best":
        return float(result[CONTESTS[name].key])
    found = result["same_way"].get(way)
    return None if found is None else float(found["ratio"])


def section(name: str, contest: Contest, result: Mapping[str, Any]) -> str:
    """Return what a reader must know of a contest."""
    parts = [f"### {name.replace('_', ' ')}"]
    parts.append(wrapped(f"{contest.title[0].upper()}{contest.title[1:]}. {contest.called}"))
    if len(result["same_way"]) > 1:
        ms = result["median_ms"]
        rows = [
            [
                way,
                *(format_number(ms[f"{side} {way}"]) for side in ("ours", "peer")),
                f"{both['ratio']:.2f} ({spread(both['range'])})",
            ]
            for way, both in result["same_way"].items()
        ]
        parts.append(make_table(["", "Triptych, ms", "the peer, ms", "ratio"], rows))
    parts.append("\n".join(wrapped(f"- {line}") for line in notes(name, result)))
    return "\n\n".join(parts)


FACTS = {
    "images": "images",
    "pairs": "pairs",
    "texts": "texts",
    "tokens": "tokens",
    "mean_tokens": "tokens of a text on average",
    "pixels": "pixels",
    "vectors": "vectors",
    "queries": "queries",
    "parameters": "parameters, millions",
    "flops": "operations of matrix products, billions",
    "largest_gap": "largest difference of the results in fp32",
    "apart_grey_levels": "grey levels between the results on average",
    "same_share": "share of equal results",
}
"""What a contest tells of its sizes and results, in words."""

KINDS = {
    "products": "matrix products take",
    "copies": "copies",
    "element_wise": "everything else",
}
"""Of the operations of a profile, in words."""


def notes(name: str, result: Mapping[str, Any]) -> list[str]:
    """Return sizes, why the peer wins or a target is missed, and how to measure again."""
    told = [f"{words}: {fact(key, result[key])}" for key, words in FACTS.items() if key in result]
    lines = [f"{'; '.join(told)}."]
    if "flops" in result:
        ours, peer = (result["flops"][side] for side in ("ours", "peer"))
        rates = [
            f"{both['ratio'] * ours / peer:.2f} in {way}"
            for way, both in result["same_way"].items()
        ]
        lines.append(f"Per operation, the ratio is {', '.join(rates)}.")
    if "shares" in result:
        parts = [f"{KINDS[kind]} {share:.0%}" for kind, share in result["shares"].items()]
        lines.append(
            f"Of our time, {', '.join(parts)}. If products alone took time, the ratio would be "
            f"{result['limit']:.2f}."
        )
    if winner(result) == "peer":
        lines.append(f"Why the peer wins: {WHY.get(name, 'not known yet')}")
    if name in LIMITS and is_below(name, result):
        lines.append(f"Why it is below its target: {LIMITS[name]}")
    command = f"`python -m benchmarks.peers --only {name} --rounds {result['rounds']} --write`"
    clock = ", processor time" if result["clock"] == "cpu" else ""
    lines.append(
        f"{command}, threads: {result['num_threads']}{clock}, commit {result['commit'][:9]}; "
        f"{machine_name(result['machine'])}."
    )
    return lines


def fact(key: str, value: Any) -> str:
    """Return a fact, of both sides where it has two."""
    if not isinstance(value, Mapping):
        return f"{value:,}" if isinstance(value, int) else str(value)
    scale = 1e9 if key == "flops" else 1e6
    words = {"ours": "Triptych", "peer": "the peer"}
    return ", ".join(f"{words[side]} {number / scale:,.0f}" for side, number in value.items())


def wrapped(text: str) -> str:
    """Return a paragraph, or an entry of a list, in short lines."""
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(
        text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
