"""The figures of docs/efficiency.md, and its tables from stored results.

They show `benchmarks/results/mplug.json` and the outputs of its parts beside it. Next to each
measured ratio is the ratio of floating-point operations, computed here from the sizes of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from benchmarks.pages.efficiency_chart import Bar, Group, draw_groups, format_number
from benchmarks.pages.gather import Part, load_json
from benchmarks.pages.markdown import fill_blocks, make_table
from benchmarks.pages.mplug import MPLUG
from benchmarks.pages.speed import SPEED, loader_block, pieces_block
from benchmarks.speed.beam import MEMORY_TOKENS
from benchmarks.speed.mplug_batch import MAX_TOKENS
from benchmarks.speed.mplug_flops import base_flops, beam_flops, encoder_flops, rerank_flops, spell
from benchmarks.speed.mplug_fusion import CO_ATTENTION, CONNECTED, OURS, RIVALS, STRIDES
from benchmarks.speed.mplug_profile import KINDS
from triptych.core.errors import DataError
from triptych.models.mplug.config import strided_layers
from triptych.models.mplug.family import mplug_base_patch16_256

SHOWN: tuple[Part, ...] = tuple(part for part in MPLUG.parts if part.name != "scst")
PROCESSORS = {"amx": "AMX", "avx512": "AVX512-BF16 without AMX"}
BEAM_TOKENS = 20
"""Tokens that benchmarks/speed/beam.py generates."""

STRIDE_NAMES = tuple(f"skip_connected S={stride}" for stride in STRIDES)
ASYMMETRIC, NONE = "asymmetric_co_attention", "none"
FASTEST_STRIDE, SLOWEST_STRIDE = STRIDE_NAMES[-1], STRIDE_NAMES[0]
LABELS = {
    name: name.replace("skip_connected S=", "skip-connected, S = ") for name in STRIDE_NAMES
} | {
    CONNECTED: "connected-attention",
    CO_ATTENTION: "co-attention",
    ASYMMETRIC: "asymmetric co-attention",
    NONE: "none (late interaction)",
}
READINGS = {
    "released: layer j if j ≠ 0 and j mod S = 0": strided_layers,
    "section 3.2: S asymmetric, then one connected": lambda depth, stride: strided_layers(
        depth, stride, "paper"
    ),
    "S divides the depth: the last of every S layers": lambda depth, stride: range(
        stride - 1, depth, stride
    ),
}
"""Which of six layers are connected, in three readings of a stride S."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What section 5.3 of the paper says of two networks.

    Attributes:
        text: The claim.
        slow: The slower network.
        fast: The faster one.
        said: The paper's ratio, in words.
        limit: The claim holds for a ratio of this or more.
    """

    text: str
    slow: str
    fast: str
    said: str
    limit: float


CLAIMS = (
    Claim("S = 6 over S = 1: 5 times", SLOWEST_STRIDE, FASTEST_STRIDE, "5", 5.0),
    Claim("S = 6 over S = 3: nearly 30 % faster", OURS, FASTEST_STRIDE, "nearly 1.3", 1.25),
    Claim("skip-connected over co-attention: 4 times, S = 3", CO_ATTENTION, OURS, "4", 4.0),
    Claim("the same, S = 6", CO_ATTENTION, FASTEST_STRIDE, "4", 4.0),
    Claim("skip-connected over connected-attention: 4 times, S = 3", CONNECTED, OURS, "4", 4.0),
    Claim("the same, S = 6", CONNECTED, FASTEST_STRIDE, "4", 4.0),
    Claim("asymmetric over skip-connected, S = 3: slightly faster", OURS, ASYMMETRIC, "> 1", 1.0),
)


def letters_of(name: str) -> str:
    """Return the letters of a network that benchmarks/speed/mplug_fusion.py times."""
    depth = mplug_base_patch16_256().fusion_depth
    if name in STRIDE_NAMES:
        return spell(strided_layers(depth, STRIDES[STRIDE_NAMES.index(name)]), depth)
    return {CONNECTED: "C", CO_ATTENTION: "X", ASYMMETRIC: "A", NONE: ""}[name] * depth


@dataclass(frozen=True, slots=True)
class Results:
    """What the benchmark stored.

    Attributes:
        figures: By key: value, command, target, whether it is met.
        parts: By name: machine, commit, command, and the output.
        folder: Where it is stored.
    """

    figures: Mapping[str, Mapping[str, Any]]
    parts: Mapping[str, Mapping[str, Any]]
    folder: Path

    def output(self, part: str) -> Mapping[str, Any]:
        """Return what a part printed."""
        return self.parts[part]["output"]  # type: ignore[no-any-return]


def load_results(folder: Path) -> Results:
    """Read the stored results.

    Raises:
        DataError: A file is missing, or the figures are not those of the parts.
    """
    parts = {part.name: load_json(MPLUG.stored_path(folder, part)) for part in SHOWN}
    figures = load_json(folder / f"{MPLUG.name}.json")["figures"]
    for part in SHOWN:
        for key in part.keys:
            value, printed = figures[key]["value"], parts[part.name]["output"][key]
            if value != printed:
                raise DataError(
                    f"{key} is {value} in {MPLUG.name}.json and {printed} in the file of "
                    f"{part.name!r}: gather the figures again"
                )
    return Results(figures, parts, folder)


@dataclass(frozen=True, slots=True)
class Network:
    """A timed fusion network.

    Attributes:
        name: Its key in the result.
        letters: Its layers.
        forward_ms: Median of the forward pass, a pair.
        both_ms: Median of forward and backward pass, a pair.
        flops: Of the forward pass as it is computed here.
        projected_flops: The same where each memory is projected.
    """

    name: str
    letters: str
    forward_ms: float
    both_ms: float
    flops: float
    projected_flops: float

    @property
    def label(self) -> str:
        """What the page calls it."""
        return LABELS[self.name]

    def over(self, other: Network) -> tuple[float, float, float, float]:
        """Return the ratios to another: forward, forward and backward, FLOPs, projected FLOPs."""
        return (
            self.forward_ms / other.forward_ms,
            self.both_ms / other.both_ms,
            self.flops / other.flops,
            self.projected_flops / other.projected_flops,
        )


def timed_networks(results: Results) -> dict[str, Network]:
    """Return all networks by name."""
    output = results.output("fusion")
    text, image = output["text_tokens"], output["image_tokens"]
    here, projected = base_flops(shortcut=True), base_flops()
    found = {}
    for name in (*STRIDE_NAMES, *RIVALS):
        letters = letters_of(name)
        found[name] = Network(
            name,
            letters,
            output["forward_ms_per_sample"][name],
            output["forward_backward_ms_per_sample"][name],
            here.network(letters, text, image),
            projected.network(letters, text, image),
        )
    return found


def format_ratio(value: float) -> str:
    return f"{value:.2f}"


def compare(networks: Sequence[Network], reference: Network) -> str:
    """Return the table of a figure."""
    head = ["network", "layers", "forward, ms", "forward and backward, ms"]
    head += ["ratio, forward", "forward and backward", "FLOPs", "FLOPs, projected"]
    rows = [
        [
            network.label,
            network.letters or "–",
            format_number(network.forward_ms),
            format_number(network.both_ms),
            *map(format_ratio, network.over(reference)),
        ]
        for network in networks
    ]
    return make_table(head, rows)


def strides_table(results: Results) -> str:
    networks = timed_networks(results)
    return compare([networks[name] for name in STRIDE_NAMES], networks[FASTEST_STRIDE])


def networks_table(results: Results) -> str:
    networks = timed_networks(results)
    order = (CO_ATTENTION, CONNECTED, OURS, FASTEST_STRIDE, ASYMMETRIC, NONE)
    return compare([networks[name] for name in order], networks[OURS])


def floors_table(results: Results) -> str:
    """Return the operations of each network, alone and with both encoders."""
    networks, output = timed_networks(results), results.output("fusion")
    config = mplug_base_patch16_256()
    encoders = encoder_flops(config, output["text_tokens"], output["image_tokens"])
    ours = networks[OURS]
    head = ["network", "layers", "projected, GFLOP", "over S = 3", "here, GFLOP", "over S = 3"]
    head += ["with both encoders, GFLOP", "over S = 3"]
    rows = []
    for network in networks.values():
        row = [network.label, network.letters or "–"]
        for one, other in (
            (network.projected_flops, ours.projected_flops),
            (network.flops, ours.flops),
            (network.flops + encoders, ours.flops + encoders),
        ):
            row += [format_number(one / 1e9), format_ratio(one / other)]
        rows.append(row)
    return make_table(head, rows)


def readings_table(results: Results) -> str:
    """Return the ratios of projected operations in three readings of S."""
    output = results.output("fusion")
    text, image = output["text_tokens"], output["image_tokens"]
    depth, count = mplug_base_patch16_256().fusion_depth, base_flops()
    rivals = {name: count.network(letters_of(name), text, image) for name in RIVALS}
    head = ["which layers are connected", *(f"S = {stride}" for stride in STRIDES)]
    head += ["S = 1 over 6", "S = 3 over 6", "co-attention over S = 3", "connected over S = 3"]
    rows = []
    for reading, choose in READINGS.items():
        letters = [spell(choose(depth, stride), depth) for stride in STRIDES]
        flops = dict(
            zip(STRIDES, (count.network(word, text, image) for word in letters), strict=True)
        )
        ratios = (
            flops[1] / flops[6],
            flops[3] / flops[6],
            rivals[CO_ATTENTION] / flops[3],
            rivals[CONNECTED] / flops[3],
        )
        rows.append([reading, *letters, *map(format_ratio, ratios)])
    return make_table(head, rows)


def claims_table(results: Results) -> str:
    """Return the paper's claims beside what was measured."""
    networks = timed_networks(results)
    head = ["claim", "paper", "forward", "forward and backward", "FLOPs", "FLOPs, projected"]
    rows = []
    for claim in CLAIMS:
        ratios = networks[claim.slow].over(networks[claim.fast])
        holds = tuple(ratio >= claim.limit for ratio in ratios[:2])
        verdict = {
            (True, True): "yes",
            (False, False): "no",
            (True, False): "forward only",
            (False, True): "with the backward pass",
        }[holds]
        rows.append([claim.text, claim.said, *map(format_ratio, ratios), verdict])
    return make_table([*head, "holds here"], rows)


def findings_list(results: Results) -> str:
    """Return how the times of forward and backward pass relate to the operations."""
    networks = [network for network in timed_networks(results).values() if network.letters]
    order = " < ".join(
        f"{network.label} ({format_number(network.both_ms)} ms)"
        for network in sorted(networks, key=lambda network: network.both_ms)
    )
    against = [
        f"{one.label} is faster than {other.label} with more operations"
        for one in networks
        for other in networks
        if one.flops > other.flops and one.both_ms < other.both_ms
    ]
    ours = next(network for network in networks if network.name == OURS)
    gaps = {network: network.over(ours) for network in networks}
    far = max(gaps, key=lambda network: abs(gaps[network][1] / gaps[network][2] - 1))
    twins = {network.name: network.both_ms for network in networks}
    noise = abs(twins[ASYMMETRIC] / twins[FASTEST_STRIDE] - 1)
    lines = (
        f"Order by time of forward and backward pass: {order}.",
        "Order by operations: "
        + (f"different, as {'; '.join(against)}." if against else "the same."),
        f"Relative to S = 3, time and operations differ most for {far.label}: "
        f"{format_ratio(gaps[far][1])} and {format_ratio(gaps[far][2])}.",
        "S = 6 and asymmetric co-attention are one network here, timed twice: their times differ "
        f"by {100 * noise:.1f} %.",
    )
    return "\n".join(f"- {line}" for line in lines)


def speed_table(results: Results) -> str:
    """Return the figures that have bars, each a median of paired runs."""
    fusion, step = results.output("fusion"), results.output("step")
    rerank, beam = results.output("rerank"), results.output("beam")
    both_ms, step_ms = fusion["forward_backward_ms_per_sample"], step["median_ms"]
    default = results.output("step_default")
    chosen, default_ms = default["precision"], default["median_ms"]
    config = mplug_base_patch16_256()
    networks = timed_networks(results)

    def beams(*, cached: bool) -> float:
        size = beam["num_beams"], BEAM_TOKENS, MEMORY_TOKENS
        return beam_flops(config, *size, cached=cached)

    def texts(tokens: float, *, fast: bool) -> float:
        image = 1 + config.vision.num_patches
        return rerank_flops(config, rerank["texts_per_image"], tokens, image, fast=fast)

    rows = (
        (
            "fusion_s3_over_coattention",
            "co-attention vs. skip-connected, S = 3, per pair",
            (both_ms[CO_ATTENTION], both_ms[OURS], fusion["ranges"][CO_ATTENTION]),
            networks[CO_ATTENTION].over(networks[OURS])[2],
        ),
        (
            "fusion_s3_over_connected",
            "connected-attention vs. the same",
            (both_ms[CONNECTED], both_ms[OURS], fusion["ranges"][CONNECTED]),
            networks[CONNECTED].over(networks[OURS])[2],
        ),
        (
            "step_fast_over_plain",
            "training step in fp32: one pass per objective vs. the fast path",
            (step_ms["plain fp32"], step_ms["fast fp32"], step["range"]),
            None,
        ),
        (
            "step_default_over_plain_fp32",
            f"the same, plain in fp32 vs. the fast path in our default precision, {chosen}",
            (default_ms["plain fp32"], default_ms[f"fast {chosen}"], default["range_fp32"]),
            None,
        ),
        (
            "beam10_over_uncached",
            "beam search, without vs. with caches",
            (1000 * beam["uncached_s"], 1000 * beam["cached_s"], None),
            beams(cached=False) / beams(cached=True),
        ),
        (
            "rerank_over_plain",
            "ITM of many texts per image, released code vs. ours",
            (rerank["median_ms"]["plain"], rerank["median_ms"]["fast"], rerank["range"]),
            texts(MAX_TOKENS, fast=False) / texts(rerank["mean_tokens"], fast=True),
        ),
    )
    head = ["figure", "slow vs. fast", "slow, ms", "fast, ms", "measured", "lowest to highest"]
    lines = []
    for key, text, (slow, fast, limits), flops in rows:
        found = results.figures[key]
        lines.append(
            [
                f"`{key}`",
                text,
                format_number(slow),
                format_number(fast),
                f"**{found['value']:g}**",
                " to ".join(map(format_ratio, limits)) if limits else "",
                format_ratio(flops) if flops else "",
                f"{found['bar']}, {'met' if found['reached'] else 'not met'}",
            ]
        )
    return make_table([*head, "FLOPs", "target"], lines)


def memory_table(results: Results) -> str:
    """Return memory and time of a step with activation checkpointing and without."""
    output = results.output("checkpointing")
    ratio = results.figures["checkpointing_memory_ratio"]["value"]
    rows = [
        ["peak memory of the process, MiB", output["peak_mib"], ratio],
        ["time of a step, s", output["step_s"], output["time_ratio"]],
    ]
    cells = [
        [text, format_number(both["without"]), format_number(both["with"]), format_ratio(over)]
        for text, both, over in rows
    ]
    equal = "bitwise equal" if output["losses_bitwise_equal"] else "different"
    return make_table(
        ["", "without", "with checkpointing", "ratio"], [*cells, ["losses", "", "", equal]]
    )


def profile_table(results: Results) -> str:
    """Return where the time of a step goes, by kind of operation."""
    output = results.output("profile")
    names = {"products": "matrix products, convolutions, attention kernels"}
    names |= {
        "copies": "copies, gathers, concatenations, fills",
        "element_wise": "the rest of both passes",
    }
    names |= {"update": "clipping, AdamW, momentum encoders, queue"}
    fast, plain = output["seconds"]["fast"], output["seconds"]["plain"]

    def cell(seconds: dict[str, float], kind: str) -> str:
        return f"{seconds[kind]:.1f} s, {seconds[kind] / sum(seconds.values()):.0%}"

    rows = [[text, cell(plain, kind), cell(fast, kind)] for kind, text in names.items()]
    rows.append(["total", f"{sum(plain.values()):.1f} s", f"{sum(fast.values()):.1f} s"])
    return make_table(["", "one pass per objective", "fast path"], rows)


def profile_bf16(results: Results) -> str:
    """Return where the time of the fast step goes in bf16, and what that bounds, by processor."""
    parts = {part.name: SPEED.stored_path(results.folder, part) for part in SPEED.parts}
    outputs = {n: load_json(path)["output"] for n, path in parts.items() if path.exists()}
    missing = {"not_measured": "not run yet"}
    rows, lines = [], []
    for key, name in PROCESSORS.items():
        output, step = (outputs.get(f"{n}_{key}", missing) for n in ("profile", "step"))
        if "not_measured" in output:
            rows.append([name, f"not measured: {output['not_measured']}", *[""] * len(KINDS)])
            continue
        seconds = output["seconds"]["fast"]
        total = sum(seconds.values())
        cells = [f"{seconds[kind]:.1f} s, {seconds[kind] / total:.0%}" for kind in KINDS]
        rows.append([name, *cells, f"{total:.1f} s"])
        if ratio := step.get("step_default_over_plain_fp32"):
            lines.append(
                f"- {name}: the step is {ratio:.2f} times as fast as the plain one in fp32. If its "
                f"products alone took time, it would be {ratio * total / seconds['products']:.2f}."
            )
    emulated = "not measured: bf16 would be emulated, so that `auto` takes fp32, as above"
    rows.append(["AVX2 alone", emulated, *[""] * len(KINDS)])
    head = ["bf16 on", "products", "copies", "the rest of both passes", "update", "total"]
    table = make_table(head, rows)
    return "\n".join([table, "", *lines]) if lines else table


def outside_list(results: Results) -> str:
    """Return what the profile says of the ratio that bf16 reaches."""
    output, default = results.output("profile"), results.output("step_default")
    fast, ms = output["seconds"]["fast"], default["median_ms"]
    all_s = sum(fast.values())
    outside_s = all_s - fast["products"]
    default_s, plain_s = ms[f"fast {default['precision']}"] / 1000, ms["plain fp32"] / 1000
    bar = float(MPLUG.bars["step_default_over_plain_fp32"].text.split()[-1])
    taken, wanted = default_s - outside_s, plain_s / bar - outside_s
    lines = (
        f"Of the fast path, {outside_s / all_s * 100:.0f} % is not matrix products; "
        f"{fast['update'] / all_s * 100:.0f} % is clipping, AdamW, momentum encoders and queue.",
        f"In {default['precision']}, on the processor of `step_default_over_plain_fp32`, a step "
        f"took {default_s:.1f} s, and the plain one in fp32 {plain_s:.1f} s. If everything but the "
        f"products took as long there as here ({outside_s:.1f} s), the products took {taken:.1f} "
        f"s; the target of {bar:g} needs {wanted:.1f} s.",
    )
    return "\n".join(f"- {line}" for line in lines)


def runs_table(results: Results) -> str:
    """Return what it takes to measure each part again."""
    output = {name: results.output(name) for name in results.parts}
    rerank, beam = output["rerank"], output["beam"]
    settings = {
        "fusion": "{precision}, batches of {batch_size} pairs, {image_tokens} image tokens, "
        "{text_tokens} text tokens, rounds: {rounds}".format(**output["fusion"]),
        **{
            name: "{precision}, {accumulate} micro-batches of {micro_batch} pairs, "
            "rounds: {rounds}".format(**output[name])
            + (", MLM and PrefixLM learn from the teacher" if output[name]["distill"] else "")
            for name in ("step", "step_default", "profile")
        },
        "beam": f"fp32, {beam['num_beams']} beams, {BEAM_TOKENS} tokens, {MEMORY_TOKENS} memory "
        f"tokens, rounds: {beam['pairs']}",
        "rerank": f"{rerank['precision']}, {rerank['images']} images with "
        f"{rerank['texts_per_image']} texts of {rerank['mean_tokens']} tokens on average, padded "
        f"to {MAX_TOKENS} in the released way, rounds: {rerank['rounds']}",
        "checkpointing": "{precision}, {micro_batch} pairs, the last of {steps} steps".format(
            **output["checkpointing"]
        ),
    }
    rows = []
    for name, text in settings.items():
        part = results.parts[name]
        machine, dirty = part["machine"], part["commit"].endswith("-dirty")
        rows.append(
            [
                f"`{part['command']}`",
                f"{text}, threads: {output[name]['num_threads']}",
                f"`{part['commit'][:12]}`{', changed' if dirty else ''}",
                f"{machine['cores']} cores of {machine['CPU']} (bf16: {machine['bf16']}), "
                f"torch {machine['torch']}",
            ]
        )
    return make_table(["command", "setting", "commit", "machine"], rows)


TABLES = {
    "runs": runs_table,
    "strides": strides_table,
    "networks": networks_table,
    "floors": floors_table,
    "readings": readings_table,
    "claims": claims_table,
    "findings": findings_list,
    "speed": speed_table,
    "profile": profile_table,
    "profile_bf16": profile_bf16,
    "outside": outside_list,
    "memory": memory_table,
}


def efficiency_page(folder: Path, old: str) -> str:
    """Return docs/efficiency.md with the tables of the results in a folder between its markers.

    Raises:
        DataError: A file is missing or of another run, or a table has no block.
    """
    results = load_results(folder)
    blocks = {name: build(results) for name, build in TABLES.items()}
    speed = {"loader": loader_block(folder), "pieces": pieces_block(folder)}
    return fill_blocks(old, blocks | speed)


def draw_networks(title: str, networks: Sequence[Network], reference: Network) -> Markup:
    """Return the bar chart of some networks."""
    groups = []
    for network in networks:
        forward, both, flops, _ = network.over(reference)
        groups.append(
            Group(
                network.label,
                network.letters,
                Bar(network.forward_ms, forward, flops, flops * reference.forward_ms),
                Bar(network.both_ms, both, flops, flops * reference.both_ms),
            )
        )
    legend = "layers: A asymmetric, C connected, X co-attention"
    return draw_groups(title, groups, reference.label, legend)


DRAWINGS = {
    "fusion_strides.svg": (
        "Skip-connected fusion network by stride S",
        STRIDE_NAMES,
        FASTEST_STRIDE,
    ),
    "fusion_networks.svg": (
        "Four fusion networks of six layers",
        (CO_ATTENTION, CONNECTED, OURS, ASYMMETRIC),
        OURS,
    ),
}
"""By file name: title, networks, and the one that the others are compared with."""


def drawing(name: str, folder: Path, _: str = "") -> Markup:
    """Return a figure of the page by its file name.

    Raises:
        DataError: A file is missing, or of another run.
    """
    title, names, reference = DRAWINGS[name]
    networks = timed_networks(load_results(folder))
    return draw_networks(title, [networks[name] for name in names], networks[reference])
