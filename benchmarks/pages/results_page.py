"""docs/results.md, and the table of README: figures and their targets.

The page says command, commit and machine of each figure that the gatherers leave in
`benchmarks/results`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.pages.engine import ENGINE
from benchmarks.pages.flava import FLAVA
from benchmarks.pages.foundation import FOUNDATION
from benchmarks.pages.gather import Benchmark, load_json
from benchmarks.pages.markdown import fill_blocks, format_value, make_row, make_table
from benchmarks.pages.mplug import MPLUG
from benchmarks.pages.tasks import TASKS
from benchmarks.pages.vlmo import VLMO

SMALL_DEMO = "demo_small.json"
VERDICTS = {True: "met", False: "**not met**", None: "not measured"}
TITLES = {
    "foundation": "The demo, and what all models share",
    "small": "The longer demo: twice the images and steps",
    "mplug": "mPLUG",
    "vlmo": "VLMo",
    "flava": "FLAVA",
    "engine": "Several processes, checkpoints and large data",
    "tasks": "Fine-tuned models on the scenes, and the papers' protocols",
}
WHAT = {
    "foundation": {
        "demo_minutes": "`make demo` on two cores, without installation, minutes",
        "i2t_r1": "image-to-text recall at 1 among 500 unseen scenes, by ITC",
        "t2i_r1": "text-to-image, the same",
        "i2t_r1_itm": "image-to-text, re-ranked by ITM",
        "t2i_r1_itm": "text-to-image, re-ranked by ITM",
        "caption_objects": "objects that captions name with the right size, colour and shape",
        "vqa": "VQA accuracy",
        "vqa_blind": "VQA accuracy of the majority answer per question type",
        "grounding": "boxes with an IoU of at least 0.5",
        "bf16_speedup": "speed-up of the demo's training step, bf16 over fp32 with torch's SDPA",
        "beam_cache_speedup": "speed-up of beam search by caches, 5 beams, 20 tokens, base size",
        "scenes_per_s": "scenes generated per second, 64 px, one core",
        "resume_kills": "runs of 10 that resume bitwise equal after kill -9",
        "own_data": "200 mixed files, 3 of them corrupt, work from check to caption",
    },
    "mplug": {
        "fusion_s3_over_coattention": "speed-up of skip-connected fusion, S = 3, over co-attention",
        "fusion_s3_over_connected": "the same over connected-attention",
        "step_fast_over_plain": "speed-up of a base pre-training step, one pass over several",
        "step_default_over_plain_fp32": "the same in the default precision over plain fp32",
        "step_outside_products": "share of that step, fast path, outside matrix products",
        "beam10_over_uncached": "speed-up of base captioning by caches, 10 beams, 20 tokens",
        "rerank_over_plain": "speed-up of ITM on 64 texts per image, S = 6",
        "checkpointing_memory_ratio": "peak memory with activation checkpointing over without",
        "scst_cider_before": "CIDEr of captions before SCST",
        "scst_cider_after": "CIDEr after SCST",
    },
    "vlmo": {
        "golden_max_error": "largest difference from the released code's outputs and losses",
        "stagewise_minutes": "all stages on the scenes, two cores, minutes",
        "i2t_r1": "image-to-text recall at 1 among 500 unseen scenes, dot product",
        "t2i_r1": "text-to-image, the same",
        "i2t_r1_dual": "image-to-text recall at 1 on a subset of them, dot product",
        "t2i_r1_dual": "text-to-image, the same",
        "i2t_r1_itm": "image-to-text on the same subset, ITM on all pairs",
        "t2i_r1_itm": "text-to-image, the same",
        "vqa": "VQA accuracy by classification",
        "step_fast_over_plain": "speed-up of a third-stage step, base, over the plain one",
        "stagewise_gain": "gain from the first two stages, with an equally long third stage",
        "multiway_gain": "gain from experts over one FFN for all",
        "global_negatives_gain": "gain from ITM negatives of both processes, recall after ITM",
        "dual_over_fusion_speed": "speed-up of dot products over ITM, 5,000 images x 25,000 texts",
    },
    "flava": {
        "parity_max_error": "largest difference from transformers, 3 sizes, 3 kinds of batches",
        "grad_norm_step0": "norm of the first gradient, released size, random weights",
        "step_fp32_over_transformers": "speed-up over transformers, 8 pairs, released size, fp32",
        "step_bf16_over_transformers": "the same in bf16",
        "memory_over_transformers": "peak memory of that step relative to transformers",
        "masking_speedup": "speed-up of block masks of 256 images over transformers' loop",
        "speedup_over_plain_loop": "the same over our own plain Python loop",
        "joint_minutes": "all stages on the scenes, two cores, minutes",
        "i2t_r1": "image-to-text recall at 1 among 500 unseen scenes, zero-shot",
        "t2i_r1": "text-to-image, the same",
        "probe_shape": "linear probe of the image encoder, shape of one object",
        "probe_shape_compositional": "the same, on colour-shape pairs never seen in training",
        "shape_supervised": "the same encoder, trained on shape labels from random weights",
        "shape_supervised_compositional": "the same, on colour-shape pairs without labels",
        "joint_gain": "gain from adding images and texts, equal number of steps",
        "global_contrastive_gain": "gain from the global contrastive gradient",
    },
    "engine": {
        "equality_cells": "ways to share the work that equal one process to 1e-5",
        "equality_total": "ways tried: family, parallelism, ranks, accumulation, recomputation",
        "rank_kills": "runs of 10 under torchrun that end equal after one of two ranks is killed",
        "save_kills": "saves of 20, killed by SIGKILL, that leave a usable checkpoint",
        "elastic_wrong_steps": "steps with wrong samples, 2-1-4-2 ranks in an epoch of a mixture",
        "elastic_loss_gap": "largest difference of its losses from an uninterrupted run",
        "static_memory_ratio_2": "weights, gradients, optimizer, teacher: FSDP on 2 over one",
        "static_memory_ratio_4": "the same, on 4 processes",
        "step_during_save": "step while a checkpoint is written over a quiet one, base size",
        "save_blocks_s_ratio": "seconds for which a save blocks, over format 1, base size",
        "ddp_over_today": "step of mplug_small on 2 ranks, DDP over one plain all-reduce",
        "record_bytes": "private bytes of a record, 14 M records",
        "second_start_s": "seconds to open their index again",
        "workers_memory": "private memory of 4 loader workers over that of one",
        "shard_samples_per_s": "samples per second from tar shards over webdataset, one process",
        "remote_resume": "samples lost over HTTP when 5 % of the requests fail",
        "contrastive_memory": "peak memory of ITC, 1,024 of 32,768 pairs, tiles over matrices",
        "table6_rungs": "rungs of mPLUG's table 6 measured at mplug_small; the file has the table",
    },
    "tasks": {
        "matrix_cells": "pairs of a family and a task that are possible, all tested",
        "nlvr2_mplug": "statements about two images judged rightly, mPLUG (chance 0.5)",
        "nlvr2_vlmo": "the same, VLMo",
        "nlvr2_flava": "the same, FLAVA",
        "snli_ve_mplug": "entailment in three classes, mPLUG (chance 0.33)",
        "snli_ve_vlmo": "the same, VLMo",
        "snli_ve_flava": "the same, FLAVA",
        "nlvr2_mplug_compositional": "statements about colour-shape pairs never seen, mPLUG",
        "nlvr2_vlmo_compositional": "the same, VLMo",
        "nlvr2_flava_compositional": "the same, FLAVA",
        "snli_ve_mplug_compositional": "entailment, colour-shape pairs never seen, mPLUG",
        "snli_ve_vlmo_compositional": "the same, VLMo",
        "snli_ve_flava_compositional": "the same, FLAVA",
        "grounding": "boxes with an IoU of at least 0.5, mPLUG",
        "grounding_compositional": "the same, on colour-shape pairs never seen",
        "caption_objects": "objects that captions name rightly after fine-tuning, mPLUG",
        "caption_objects_compositional": "the same, on colour-shape pairs never seen",
        "vqa": "VQA accuracy, generated answers, mPLUG",
        "vqa_compositional": "the same, on colour-shape pairs never seen",
        "image_classification_mplug": "class of one object, fine-tuned, mPLUG",
        "image_classification_vlmo": "the same, VLMo",
        "image_classification_flava": "the same, FLAVA",
        "image_classification_mplug_compositional": "on colour-shape pairs never seen, mPLUG",
        "image_classification_vlmo_compositional": "the same, VLMo",
        "image_classification_flava_compositional": "the same, FLAVA",
        "segmentation_miou": "mean IoU of semantic segmentation, VLMo, linear head",
        "segmentation_miou_upernet": "the same with the UPerNet-style head",
        "segmentation_blind": "mean IoU of the most frequent class everywhere",
        "video_retrieval_r1": "recall at 1 among 200 clips, zero-shot, image model",
        "video_qa": "accuracy of answers about clips, image model",
        "video_qa_blind": "accuracy of the majority answer per question type",
        "two_stage_over_plain": "speed-up of re-ranking 1,000 x 1,000, k = 64, over a plain loop",
        "best_over_last": "gain of the best model by validation over the last, 600 images",
    },
}
"""What each figure is, in the order of the page; other figures are only in the files."""

README_ROWS = (
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
"""The figures that README shows, in its words."""

HEAD = """# Results

Every measured figure, with its target: met or not met. `python -m benchmarks.pages` writes this
page from [benchmarks/results](../benchmarks/results), which also has each figure's interval and
protocol; [benchmarks/README.md](../benchmarks/README.md) says how to measure again. Gains are
differences in recall at 1 over three seeds, with 95 % intervals. Machines have two cores and no
GPU; their letters are explained at the end. The commit is the one that was measured.
"""


def machine_name(machine: Mapping[str, str]) -> str:
    """Return processor, bf16 and torch of a machine."""
    bf16 = machine.get("bf16") or "unknown"
    return f"{machine['CPU']}, bf16: {bf16}; torch {machine['torch']}"


def section(benchmark: Benchmark, result: Mapping[str, Any], machines: dict[str, str]) -> str:
    """Return the table of one benchmark.

    Args:
        benchmark: Has the targets.
        result: Content of its file.
        machines: Letters of machines by name; new ones are added.
    """
    rows = []
    for key, what in WHAT[benchmark.name].items():
        figure = result["figures"][key]
        name = machine_name(figure.get("machine", result["machine"]))
        letter = machines.setdefault(name, chr(ord("A") + len(machines)))
        bar = figure["bar"]
        command = f"`{figure['command']}`"
        commit = figure.get("commit", result["commit"])[:9]
        verdict = f"{bar}: {VERDICTS[figure['reached']]}" if bar else ""
        if "precision" in figure:
            what += f", {figure['precision']}"
        rows.append([what, format_value(figure), verdict, command, f"{commit} {letter}"])
    head = ["what", "value", "target", "command", "commit, machine"]
    return f"## {TITLES[benchmark.name]}\n\n{make_table(head, rows)}"


def small_demo(path: Path, machines: dict[str, str]) -> str:
    """Return the table of the longer demo, from its `results.json` without the configs.

    Args:
        path: That, with a "note" on how it was run.
        machines: Letters of machines by name; new ones are added.
    """
    found = load_json(path)
    letter = machines.setdefault(machine_name(found["machine"]), chr(ord("A") + len(machines)))
    figures = found["figures"]
    rows = [
        [what, format_value(figures[key]), format_value(figures[f"compositional_{key}"])]
        for key, what in WHAT["foundation"].items()
        if f"compositional_{key}" in figures
    ]
    command = figures["demo_minutes"]["command"]
    head = f"`{command}`, {found['commit'][:9]} {letter}: {found['note']}"
    table = make_table(["what", "value", "compositional"], rows)
    return f"## {TITLES['small']}\n\n{head}\n\n{table}"


def results_page(folder: Path, _: str = "") -> str:
    """Return docs/results.md; a benchmark without a file in the folder is said to have none.

    Raises:
        DataError: A file is not JSON.
    """
    machines: dict[str, str] = {}
    parts = [HEAD.strip()]
    for benchmark in (FOUNDATION, MPLUG, VLMO, FLAVA, ENGINE, TASKS):
        path = folder / f"{benchmark.name}.json"
        if path.is_file():
            parts.append(section(benchmark, load_json(path), machines))
        else:
            parts.append(f"## {TITLES[benchmark.name]}\n\nNot measured yet.")
        small = folder / SMALL_DEMO
        if benchmark is FOUNDATION and small.is_file():
            parts.append(small_demo(small, machines))
    letters = "\n".join(f"- {letter}: {name}" for name, letter in machines.items())
    return "\n\n".join([*parts, f"## Machines\n\n{letters}"]) + "\n"


def readme(folder: Path, old: str) -> str:
    """Return README with the figures of a folder's `foundation.json` between its markers.

    Raises:
        DataError: The file is missing, or README has no block for the table.
    """
    return fill_blocks(old, {"results": readme_table(load_json(folder / "foundation.json"))})


def readme_table(result: Mapping[str, Any]) -> str:
    """Return the table of README, and what it says below it."""
    figures = result["figures"]

    def cell(value: float | None) -> str:
        return "" if value is None else format_value({"value": value})

    lines = ["| what | measured | compositional | chance | blind | target |", "|---" * 6 + "|"]
    for key, text in README_ROWS:
        figure, other = figures[key], figures.get(f"compositional_{key}", {})
        values = (figure["value"], other.get("value"), figure.get("chance"), figure.get("blind"))
        target = f"{figure['bar']} {VERDICTS[figure['reached']].strip('*')}"
        lines.append(make_row([text, *map(cell, values), target]))
    demo = figures["demo_minutes"]
    machine, commit = (demo.get(name, result[name]) for name in ("machine", "commit"))
    below = (
        f"The demo ran on {machine['cores']} cores of {machine['CPU']} without a GPU, at commit "
        f"`{commit[:12]}`; [docs/results.md](docs/results.md) lists commit and machine of each "
        "figure, and `benchmarks/results/foundation.json` "
        "its interval and protocol. Chance draws a training answer, box or caption at random; "
        "blind is the majority answer of the question type, the mean box, or the most frequent "
        "caption. Each scene of the compositional split shows at least one pair of colour and "
        "shape that never occurs in training."
    )
    return "\n".join([*lines, "", below])
