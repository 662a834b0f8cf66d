"""Gather how fast training, captions, the loader and search are, beside plain ways and peers.

Writes `benchmarks/results/speed.json`; `gather.py` says how. Figures over peers are taken from
`benchmarks/results/peers.json`, which `python -m benchmarks.peers --write` fills; a peer that was
not run is told as not measured. Targets that are those of a kind of processor have a figure for it,
which other processors do not measure.

    python -m benchmarks.peers --write
    python -m benchmarks.pages.speed
    python -m benchmarks.pages.speed --only decode
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages.gather import (
    Bar,
    Benchmark,
    Figures,
    Part,
    at_least,
    at_most,
    build_parser,
    gather,
    load_json,
    read_json_line,
)
from benchmarks.pages.markdown import machine_name, make_table
from benchmarks.pages.peers_page import ratio_of
from benchmarks.peers import CONTESTS, STORED
from benchmarks.speed.decode import KINDS
from benchmarks.speed.step_pieces import UPDATE, WORTH
from triptych.core.machine import current_commit, describe_machine

OVER_PEERS = {
    "caption_over_blip_1": ("caption_blip_1", "best"),
    "caption_over_blip_8": ("caption_blip_8", "best"),
    "itm_over_blip": ("itm_blip", "best"),
    "itc_step_over_open_clip_fp32": ("itc_step", "fp32"),
    "itc_step_over_open_clip_bf16": ("itc_step", "bf16"),
    "step_bf16_over_transformers": ("flava_step", "bf16"),
}
"""By figure: the contest and the way that gives it."""

ROUNDS = {"flava_step": 5}
"""Of contests that take more than `python -m benchmarks.peers` runs otherwise."""


def under(**names: str) -> Callable[[int, str], dict[str, Any]]:
    """Return a reader that gives figures other names.

    Args:
        names: By name here, that in the program's output.
    """

    def read(code: int, output: str) -> dict[str, Any]:
        found = read_json_line(code, output)
        return found | {new: found[old] for new, old in names.items() if old in found}

    return read


def of_processor(processor: str) -> tuple[Part, Part]:
    """Return the parts of the training step whose targets are those of a kind of processor."""
    step, profile = (f"benchmarks.speed.mplug_{name}" for name in ("step", "profile"))
    over, share = f"step_default_over_plain_fp32_{processor}", f"outside_products_share_{processor}"
    needs = ("--needs", processor)
    return (
        Part(
            f"step_{processor}",
            ("-m", step, *needs),
            (over,),
            under(**{over: "step_default_over_plain_fp32"}),
        ),
        Part(
            f"profile_{processor}",
            ("-m", profile, "--precision", "auto", "--rounds", "1", *needs),
            (share,),
            under(**{share: "step_outside_products"}),
        ),
    )


FUSION = ("fusion_s3_over_coattention", "fusion_s3_over_connected")
SPEED = Benchmark(
    name="speed",
    title="Speed: training step, captions, loader, and peers",
    what={
        "step_default_over_plain_fp32_amx": "speed-up of mPLUG's step in bf16 over plain fp32, AMX",
        "step_default_over_plain_fp32_avx512": "the same, AVX512-BF16 without AMX",
        "outside_products_share_amx": "share of that step outside matrix products, bf16, AMX",
        "outside_products_share_avx512": "the same, AVX512-BF16 without AMX",
        "step_bf16_over_transformers": "speed-up of FLAVA's step over transformers, 8 pairs, bf16",
        "most_saved_by_a_piece": "largest share of a block that a piece done otherwise saves",
        "fusion_s3_over_coattention_bf16": "speed-up of skip-connected fusion over co-attention",
        "fusion_s3_over_connected_bf16": "the same over connected-attention",
        "captions_per_s_batched_over_one_by_one": "captions of 32 images in one call over 32 calls",
        "caption_over_blip_1": "speed-up of captions over BLIP-base, one image",
        "caption_over_blip_8": "the same, eight images",
        "itm_over_blip": "speed-up of matching 64 texts with an image over BLIP-base",
        "itc_step_over_open_clip_fp32": "speed-up of a contrastive step over open_clip, fp32",
        "itc_step_over_open_clip_bf16": "the same in bf16",
        "decode_640x480": "training crops of 640 x 480 over the loader at 1.0",
        "decode_12mp": "the same of 4000 x 3000",
        "decoding_recall_kept": "recall on scenes with it: 95 % interval over whole JPEGs holds 0",
        "host_syncs_per_step": "most waits of a training step for its device, three families",
    },
    prefix="speed_",
    details=(
        *("range", "ranges", "range_fp32", "precision", "by_recipe"),
        *("difference", "recall", "factors", "seeds"),
    ),
    parts=(
        *of_processor("amx"),
        *of_processor("avx512"),
        Part(
            "fusion",
            ("-m", "benchmarks.speed.mplug_fusion", "--precision", "bf16", "--needs", "bf16"),
            tuple(f"{key}_bf16" for key in FUSION),
            under(**{f"{key}_bf16": key for key in FUSION}),
        ),
        Part("step_pieces", ("-m", "benchmarks.speed.step_pieces"), ("most_saved_by_a_piece",)),
        Part(
            "captions",
            ("-m", "benchmarks.speed.captions"),
            ("captions_per_s_batched_over_one_by_one",),
        ),
        Part("decode", ("-m", "benchmarks.speed.decode"), ("decode_640x480", "decode_12mp")),
        Part("decoding_recall", ("-m", "benchmarks.scenes.decoding"), ("decoding_recall_kept",)),
        Part("host_syncs", ("-m", "benchmarks.speed.host_syncs"), ("host_syncs_per_step",)),
    ),
    bars={
        "step_default_over_plain_fp32_amx": at_least("step_default_over_plain_fp32_amx", 4.5),
        "step_default_over_plain_fp32_avx512": at_least("step_default_over_plain_fp32_avx512", 3.2),
        "outside_products_share_amx": at_most("outside_products_share_amx", 0.4),
        "fusion_s3_over_coattention_bf16": at_least("fusion_s3_over_coattention_bf16", 3.4),
        "fusion_s3_over_connected_bf16": at_least("fusion_s3_over_connected_bf16", 2.3),
        "captions_per_s_batched_over_one_by_one": at_least(
            "captions_per_s_batched_over_one_by_one", 2
        ),
        **{key: at_least(key, CONTESTS[name].bars[way]) for key, (name, way) in OVER_PEERS.items()},
        "decode_640x480": at_least("decode_640x480", 1.25),
        "decode_12mp": at_least("decode_12mp", 2.5),
        "decoding_recall_kept": Bar("yes", lambda values: values["decoding_recall_kept"] == "yes"),
        "host_syncs_per_step": at_most("host_syncs_per_step", 1),
    },
)


def over_peers() -> Figures:
    """Return the figures that the stored contests with peers give."""
    stored = load_json(STORED) if STORED.exists() else {}
    here = {"commit": current_commit(), "machine": describe_machine()}
    figures: Figures = {}
    for key, (name, way) in OVER_PEERS.items():
        result = stored.get(name)
        rounds = ROUNDS.get(name, 3) if result is None else result["rounds"]
        command = f"python -m benchmarks.peers --only {name} --rounds {rounds} --write"
        figures[key] = {"value": None, "command": command, **here}
        if result is None:
            figures[key]["not_measured"] = "this contest was not run yet"
            continue
        value = ratio_of(name, result, way)
        figures[key] |= {"value": value} | {origin: result[origin] for origin in here}
        if value is None:
            figures[key]["not_measured"] = f"this processor has no instructions for {way}"
            continue
        limits = result["range"] if way == "best" else result["same_way"][way]["range"]
        figures[key] |= {"range": limits, "peer": result["peer"]}
    return figures


def loader_block(folder: Path) -> str:
    """Return what the loader of training makes a second, and the recall that models reach with it.

    Raises:
        DataError: Decoding was not measured.
    """
    parts = {part.name: part for part in SPEED.parts}
    stored = load_json(SPEED.stored_path(folder, parts["decode"]))
    output = stored["output"]
    rows = []
    for kind in KINDS:
        key = kind.name
        found, bar = output[f"{key}_training"], SPEED.bars[key]
        met = "met" if bar.is_reached(output) else "**not met**"
        rows.append(
            [
                f"{kind.width} x {kind.height}",
                f"{output[f'{key}_bits_per_pixel']:.1f}",
                *(f"{found[side]:.0f}" for side in ("before_per_s", "now_per_s")),
                f"{found['ratio']:.2f}, {found['lowest']:.2f} to {found['highest']:.2f}",
                f"{bar.text} {met}",
            ]
        )
    head = ["JPEG", "bits a pixel", "before, images/s", "now, images/s"]
    lines = [
        make_table([*head, "ratio, lowest to highest", "target"], rows),
        f"`{stored['command']}`, commit `{stored['commit'][:12]}`; "
        f"{machine_name(stored['machine'])}.",
    ]
    recall = SPEED.stored_path(folder, parts["decoding_recall"])
    if recall.is_file():
        lines.append(recall_line(load_json(recall)))
    return "\n\n".join(lines)


def pieces_block(folder: Path) -> str:
    """Return what other ways of a block's pieces save in bf16, as measured.

    Raises:
        DataError: They were not measured.
    """
    part = next(part for part in SPEED.parts if part.name == "step_pieces")
    stored = load_json(SPEED.stored_path(folder, part))
    output = stored["output"]
    origin = (
        f"`{stored['command']}`, commit `{stored['commit'][:12]}`; "
        f"{machine_name(stored['machine'])}."
    )
    if "not_measured" in output:
        return f"Not measured: {output['not_measured']}.\n\n{origin}"
    rows = []
    for piece in output["pieces"].values():
        low, high = piece["range"]
        saved, of_block = piece["saved"], piece["whole"] != UPDATE
        rows.append(
            [
                piece["text"],
                f"{piece['today_ms']:.1f}",
                f"{piece['tried_ms']:.1f}",
                f"{piece['ratio']:.2f}, {low:.2f} to {high:.2f}",
                f"{round(saved, 3) + 0.0:+.1%} of the {piece['whole'] or 'same'}",
                "yes" if of_block and saved >= WORTH and low > 1 else "no",
            ]
        )
    head = ["piece, forward and backward", "library, ms", "tried, ms", "ratio, lowest to highest"]
    head += ["saved", f"worth it, {WORTH:.0%} or more"]
    copies, errors = output["head_copies"], output["stream_errors"]
    wholes = ", ".join(f"{name} {ms:.0f} ms" for name, ms in output["wholes_ms"].items())
    image = next(ms for name, ms in output["wholes_ms"].items() if name.startswith("image"))
    gradients = ", ".join(f"{gap:.0%} in the {n}" for n, gap in errors["norm_gradients"].items())
    facts = [
        f"Whole blocks: {wholes}.",
        f"An image block copies states of heads {copies['count']} times, {copies['ms']:.1f} ms or "
        f"{copies['ms'] / image:.1%} of its time.",
        f"States in bf16: after a stack of image blocks they are {errors['bf16']:.2%} from fp32, "
        f"{errors['fp32']:.2%} with states in fp32. Gradients of the norms' parameters, which "
        f"torch sums up in the type of the states, are as far apart as {gradients} block.",
        "" if output["compiled"] else "torch.compile: not measured, g++ is missing.",
    ]
    lines = "\n".join(f"- {fact}" for fact in facts if fact)
    return "\n\n".join([make_table(head, rows), lines, origin])


def recall_line(stored: Mapping[str, Any]) -> str:
    """Return what reduced decoding does to recall."""
    output = stored["output"]
    scores = ", ".join(f"{name} {row['mean']:.3f}" for name, row in output["recall"].items())
    divided = ", ".join(f"{share:.0%} by {factor}" for factor, share in output["factors"].items())
    low, mean, high = (output["difference"][end] for end in ("low", "mean", "high"))
    said = (
        f"Recall: {output['protocol']}; sides are divided for {divided} of the crops. Mean recall "
        f"over {output['seeds']} seeds: {scores}; reduced minus whole {mean:+.3f}, 95 % interval "
        f"{low:+.3f} to {high:+.3f}. `{stored['command']}`, commit `{stored['commit'][:12]}`."
    )
    return textwrap.fill(said, 100, break_on_hyphens=False)


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser(SPEED, __doc__).parse_args(arguments)
    return gather(SPEED, options, over_peers)


if __name__ == "__main__":
    sys.exit(main())
