"""docs/efficiency.md: its tables and figures hold what was stored, and operations are right."""

import json
import re
import shutil
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.pages.efficiency_chart import BAR_HEIGHT, format_number
from benchmarks.pages.efficiency_page import (
    STRIDE_NAMES,
    TABLES,
    drawing,
    efficiency_page,
    letters_of,
    load_results,
    timed_networks,
)
from benchmarks.pages.gather import RESULTS, ROOT
from benchmarks.pages.mplug import MPLUG
from benchmarks.pages.speed import SPEED
from benchmarks.speed.beam import search
from benchmarks.speed.mplug_flops import Flops, base_flops, beam_flops, encoder_flops, rerank_flops
from benchmarks.speed.plain import without_shortcuts
from triptych.core.errors import DataError
from triptych.models.mplug.config import MPLUGConfig
from triptych.models.mplug.family import mplug_base_patch16_256
from triptych.models.mplug.fusion import build_fusion
from triptych.nn.decoder import TextDecoder
from triptych.nn.encoder import TextConfig
from triptych.nn.packing import PACKED_FROM
from triptych.nn.vision import VisionConfig

MACHINE = {"cores": "2", "CPU": "Some CPU", "bf16": "avx512_bf16", "torch": "9.9"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FORWARD = {
    "skip_connected S=1": 40.25,
    "skip_connected S=2": 25.5,
    "skip_connected S=3": 20.125,
    "skip_connected S=6": 16.1,
    "connected_attention": 48.3,
    "co_attention": 68.425,
    "asymmetric_co_attention": 16.0,
    "none": 0.0,
}
OUTPUTS = {
    "fusion": {
        "fusion_s3_over_coattention": 3.412,
        "fusion_s3_over_connected": 2.298,
        "ranges": {"co_attention": [3.301, 3.555], "connected_attention": [2.2, 2.4]},
        "forward_ms_per_sample": FORWARD,
        "forward_backward_ms_per_sample": {name: 3 * ms for name, ms in FORWARD.items()},
        "batch_size": 4,
        "image_tokens": 257,
        "text_tokens": 30,
        "precision": "bf16",
        "rounds": 9,
        "num_threads": 2,
        "clock": "wall",
    },
    "step": {
        "step_fast_over_plain": 1.377,
        "range": [1.311, 1.444],
        "median_ms": {"fast fp32": 5009.0, "plain fp32": 6899.0},
        "precision": "fp32",
        "micro_batch": 8,
        "accumulate": 2,
        "distill": True,
        "rounds": 3,
        "num_threads": 2,
    },
    "step_default": {
        "step_fast_over_plain": 1.2,
        "range": [1.1, 1.3],
        "step_default_over_plain_fp32": 4.188,
        "range_fp32": [4.011, 4.222],
        "median_ms": {"fast bf16": 5010.1, "plain bf16": 6899.0, "plain fp32": 20980.0},
        "precision": "bf16",
        "micro_batch": 8,
        "accumulate": 2,
        "distill": False,
        "rounds": 3,
        "num_threads": 2,
    },
    "profile": {
        "step_outside_products": 0.4,
        "limit_over_plain": 3.5,
        "seconds": {
            "fast": {"products": 6.0, "copies": 1.0, "element_wise": 2.0, "update": 1.0},
            "plain": {"products": 9.0, "copies": 1.0, "element_wise": 3.0, "update": 1.0},
        },
        "precision": "fp32",
        "micro_batch": 8,
        "accumulate": 2,
        "distill": True,
        "rounds": 3,
        "num_threads": 2,
    },
    "beam": {
        "beam10_over_uncached": 11.27,
        "cached_s": 2.125,
        "uncached_s": 23.95,
        "num_beams": 10,
        "num_threads": 1,
        "pairs": 3,
    },
    "rerank": {
        "rerank_over_plain": 4.633,
        "range": [4.444, 4.777],
        "median_ms": {"plain": 1390.0, "fast": 300.0},
        "precision": "bf16",
        "images": 2,
        "texts_per_image": 64,
        "mean_tokens": 13.8,
        "rounds": 5,
        "num_threads": 2,
    },
    "checkpointing": {
        "checkpointing_memory_ratio": 0.612,
        "time_ratio": 1.28,
        "losses_bitwise_equal": True,
        "peak_mib": {"without": 12345.6, "with": 7555.5},
        "step_s": {"without": 4.321, "with": 5.531},
        "micro_batch": 8,
        "steps": 2,
        "precision": "bf16",
        "num_threads": 2,
    },
}
SMALL = MPLUGConfig(
    vision=VisionConfig(image_size=64, patch_size=16, embed_dim=24, depth=2, num_heads=2),
    text=TextConfig(vocab_size=50, embed_dim=24, num_heads=2, max_positions=32),
    text_depth=2,
    fusion_depth=3,
    connected_layers=(1,),
    decoder_depth=2,
    proj_dim=8,
)
TEXT, IMAGE = 5, 17


def write_results(folder, *, commit=COMMIT):
    figures = {}
    for part in MPLUG.parts:
        if part.name not in OUTPUTS:
            continue
        stored = {"machine": MACHINE, "commit": commit, "command": part.command}
        stored["output"] = OUTPUTS[part.name]
        MPLUG.stored_path(folder, part).write_text(json.dumps(stored))
        for key in part.keys:
            bar = MPLUG.bars.get(key)
            values = {key: OUTPUTS[part.name][key]}
            figures[key] = {
                "value": values[key],
                "command": part.command,
                "bar": bar.text if bar else None,
                "reached": bar.is_reached(values) if bar else None,
            }
    result = {"machine": MACHINE, "commit": commit, "figures": figures}
    (folder / "mplug.json").write_text(json.dumps(result))
    return load_results(folder)


@pytest.fixture
def results(tmp_path):
    return write_results(tmp_path)


def rows(table):
    """Return the cells of each row by the first cell."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()]
    return {line[0]: line[1:] for line in lines[2:]}


def test_tables_of_both_figures_hold_times_and_ratios(results):
    strides = rows(TABLES["strides"](results))
    assert strides["skip-connected, S = 1"][:5] == ["ACCCCC", "40.2", "121", "2.50", "2.50"]
    assert strides["skip-connected, S = 6"][3:] == ["1.00"] * 4
    networks = rows(TABLES["networks"](results))
    assert networks["co-attention"][:5] == ["XXXXXX", "68.4", "205", "3.40", "3.40"]
    assert networks["none (late interaction)"][:3] == ["–", "0", "0"]
    # 34.0 / 10.0 GFLOP, worked by hand from 32 n D² + 4 n² D and the formulas of the other layers
    assert networks["co-attention"][6] == "3.42"
    assert networks["connected-attention"][6] == "2.60"


def test_claims_are_judged_by_both_passes(results):
    claims = rows(TABLES["claims"](results))
    verdicts = {text: cells[-1] for text, cells in claims.items()}
    assert verdicts["S = 6 over S = 1: 5 times"] == "no"
    assert verdicts["S = 6 over S = 3: nearly 30 % faster"] == "yes"  # 20.125 / 16.1 = 1.25
    assert claims["skip-connected over co-attention: 4 times, S = 3"][1:3] == ["3.40", "3.40"]
    slower = dict(OUTPUTS["fusion"]["forward_backward_ms_per_sample"])
    slower["skip_connected S=1"] = 5 * slower["skip_connected S=6"]
    output = OUTPUTS["fusion"] | {"forward_backward_ms_per_sample": slower}
    parts = {**results.parts, "fusion": {**results.parts["fusion"], "output": output}}
    claims = rows(TABLES["claims"](replace(results, parts=parts)))
    assert claims["S = 6 over S = 1: 5 times"][-1] == "with the backward pass"


def test_findings_say_where_times_do_not_follow_operations(results):
    text = TABLES["findings"](results)
    assert "Order by operations: the same." in text
    assert "differ by 0.6 %" in text  # 16.0 and 16.1
    output = OUTPUTS["fusion"]
    times = output["forward_backward_ms_per_sample"] | {"skip_connected S=1": 30.0}
    output = output | {"forward_backward_ms_per_sample": times}
    parts = {**results.parts, "fusion": {**results.parts["fusion"], "output": output}}
    text = TABLES["findings"](replace(results, parts=parts))
    words = "skip-connected, S = 1 is faster than skip-connected, S = 3 with more operations"
    assert words in text
    assert "time and operations differ most for skip-connected, S = 1: 0.50 and" in text


def test_speed_figures_have_times_ranges_and_bars(results):
    speed = rows(TABLES["speed"](results))
    assert speed["`fusion_s3_over_connected`"][3:5] == ["**2.298**", "2.20 to 2.40"]
    assert speed["`fusion_s3_over_connected`"][-1] == ">= 2.3, not met"
    assert speed["`step_fast_over_plain`"][1:4] == ["6,899", "5,009", "**1.377**"]
    step = speed["`step_default_over_plain_fp32`"]
    assert step[1:] == ["20,980", "5,010", "**4.188**", "4.01 to 4.22", "", ">= 3.5, met"]
    assert speed["`beam10_over_uncached`"][1:5] == ["23,950", "2,125", "**11.27**", ""]
    memory = rows(TABLES["memory"](results))
    assert memory["peak memory of the process, MiB"] == ["12,346", "7,556", "0.61"]
    assert memory["time of a step, s"] == ["4.32", "5.53", "1.28"]


def test_the_time_of_a_step_is_split(results):
    split = rows(TABLES["profile"](results))
    assert split["matrix products, convolutions, attention kernels"] == ["9.0 s, 64%", "6.0 s, 60%"]
    assert split["total"] == ["14.0 s", "10.0 s"]
    said = TABLES["outside"](results)
    # default 5.01 s, plain fp32 20.98 s, a bar of 3.5; 4 s of the profile are no product
    assert "Of the fast path, 40 % is not matrix products; 10 % is clipping, AdamW" in said
    assert "the products took 1.0 s; the target of 3.5 needs 2.0 s" in said


def test_runs_name_command_commit_and_machine(results, tmp_path):
    runs = TABLES["runs"](results)
    assert (
        "| `python -m benchmarks.speed.mplug_fusion` | bf16, batches of 4 pairs, 257 image" in runs
    )
    assert runs.count("`0123456789ab` | 2 cores of Some CPU (bf16: avx512_bf16), torch 9.9 |") == 7
    dirty = write_results(tmp_path, commit=f"{COMMIT}-dirty")
    assert TABLES["runs"](dirty).count("`0123456789ab`, changed") == 7


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01, "0.0100"), (12, "12.0"), (123.4, "123"), (999.7, "1,000"), (20980, "20,980")],
)
def test_numbers_have_three_digits_that_count(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize("name", ["fusion_strides.svg", "fusion_networks.svg"])
def test_figures_hold_times_ratios_and_axis(results, tmp_path, name):
    root = ElementTree.fromstring(drawing(name, tmp_path))
    space = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in root.iter(f"{space}text")]
    networks = timed_networks(results)
    reference = networks["skip_connected S=6" if "strides" in name else "skip_connected S=3"]
    shown = STRIDE_NAMES
    if "networks" in name:
        shown = ("co_attention", "connected_attention", reference.name, "asymmetric_co_attention")
    for network in (networks[name] for name in shown):
        forward, both, flops, _ = network.over(reference)
        assert network.label in texts
        for time, ratio in ((network.forward_ms, forward), (network.both_ms, both)):
            assert f"{format_number(time)} ms, {ratio:.2f}× (FLOPs {flops:.2f}×)" in texts
    assert "median time of a pair, ms" in texts
    bars = {
        kind: [float(bar.get("width")) for bar in root.iter(f"{space}rect") if is_bar(bar, kind)]
        for kind in ("forward", "both")
    }
    assert len(bars["forward"]) == len(bars["both"]) == 4
    for forward, both in zip(bars["forward"], bars["both"], strict=True):
        assert both == pytest.approx(3 * forward, abs=0.05)
    left, top, width, height = map(float, root.get("viewBox").split())
    for place in root.iter():
        assert left <= float(place.get("x", 0)) <= width
        assert top <= float(place.get("y", 0)) <= height


def is_bar(element, kind):
    """Tell a bar from its key in the legend."""
    return element.get("class") == kind and float(element.get("height")) == BAR_HEIGHT


def test_the_profile_in_bf16_says_where_it_was_measured(results):
    seconds = {"products": 6.0, "copies": 1.0, "element_wise": 2.0, "update": 1.0}
    parts = {part.name: part for part in SPEED.parts}
    for name, output in {
        "profile_avx512": {"seconds": {"fast": seconds}},
        "step_avx512": {"step_default_over_plain_fp32": 2.4},
        "profile_amx": {"not_measured": "needs AMX"},
    }.items():
        path = SPEED.stored_path(results.folder, parts[name])
        path.write_text(json.dumps({"output": output}))
    text = TABLES["profile_bf16"](results)
    found = rows(text.split("\n\n")[0])
    assert found["AVX512-BF16 without AMX"] == [
        *("6.0 s, 60%", "1.0 s, 10%", "2.0 s, 20%", "1.0 s, 10%", "10.0 s")
    ]
    assert found["AMX"][0] == "not measured: needs AMX"
    assert "AVX512-BF16 without AMX: the step is 2.40 times" in text
    assert "it would be 4.00" in text  # 2.4 · 10 / 6


def test_every_table_of_the_page_is_written(results, tmp_path):
    names = [*TABLES, "loader", "pieces"]
    old = "".join(f"<!-- {name} -->\nSTALE\n<!-- /{name} -->\n\nsaid\n" for name in names)
    for name in ("speed_decode.json", "speed_step_pieces.json"):
        shutil.copy(RESULTS / name, tmp_path)
    text = efficiency_page(tmp_path, old)
    assert "STALE" not in text
    assert text.count("said") == len(names)
    assert TABLES["claims"](results) in text
    assert efficiency_page(tmp_path, text) == text


def test_figures_of_another_run_than_the_parts_are_an_error(results, tmp_path):
    path = tmp_path / "mplug.json"
    path.write_text(path.read_text().replace("4.633", "4.7"))
    with pytest.raises(DataError, match=r"rerank_over_plain is 4.7 in mplug.json and 4.633"):
        load_results(tmp_path)
    MPLUG.stored_path(tmp_path, MPLUG.parts[0]).unlink()
    with pytest.raises(DataError, match=r"mplug_fusion.json does not exist"):
        load_results(tmp_path)


def test_layers_worked_by_hand():
    # D = 2, H = 1, T = 3, I = 5: 28·3·4 + 4·5·4 + 4·9·2 + 4·3·5·2 and so on
    count = Flops(2, 1)
    assert count.layer("A", 3, 5) == 336 + 80 + 72 + 120
    assert count.layer("C", 3, 5) == 24 * 8 * 4 + 4 * 64 * 2
    assert count.layer("X", 3, 5) == 32 * 8 * 4 + 4 * 64 * 2
    base = base_flops()
    found = {name: base.network(letters_of(name), 30, 257) / 1e9 for name in FORWARD}
    assert found["none"] == 0
    assert found["co_attention"] == pytest.approx(34.02, abs=0.01)
    assert found["connected_attention"] == pytest.approx(25.89, abs=0.01)
    assert found["skip_connected S=6"] == found["asymmetric_co_attention"]
    assert found["skip_connected S=6"] == pytest.approx(6.77, abs=0.01)
    assert encoder_flops(mplug_base_patch16_256(), 30, 257) / 1e9 == pytest.approx(49.0, abs=0.1)


@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize(
    ("fusion", "letters"),
    [
        ("skip_connected", "ACA"),
        ("connected_attention", "CCC"),
        ("co_attention", "XXX"),
        ("asymmetric_co_attention", "AAA"),
    ],
)
def test_networks_have_the_operations_that_torch_counts(fusion, letters, shortcut):
    network = build_fusion(replace(SMALL, fusion=fusion)).train()  # no fused kernel with dropout
    inputs = torch.randn(1, IMAGE, 24), torch.randn(1, TEXT, 24), torch.ones(1, TEXT).bool()
    if shortcut:
        counted = operations(lambda: network(*inputs))
    else:
        with without_shortcuts():
            counted = operations(lambda: network(*inputs))
    assert counted == Flops(24, 2, shortcut).network(letters, TEXT, IMAGE)


@pytest.mark.parametrize("cached", [False, True])
def test_beam_search_has_the_operations_that_torch_counts(cached):
    decoder = TextDecoder(replace(SMALL.text, vocab_size=200), SMALL.decoder_depth).eval()
    memory = torch.randn(1, IMAGE, 24)
    with without_shortcuts():  # torch does not count oneDNN's product of prepacked weights
        counted = operations(lambda: search(decoder, memory, cached=cached, num_beams=3))
    config = replace(SMALL, text=decoder.config)
    assert counted == beam_flops(config, 3, 20, IMAGE, cached=cached)


@pytest.mark.parametrize("fast", [False, True])
def test_reranking_has_the_operations_that_torch_counts(fast):
    wide = replace(SMALL.text, embed_dim=PACKED_FROM, num_heads=6)
    config = replace(SMALL, text=wide, fusion="asymmetric_co_attention")
    network = build_fusion(config).train()
    image, text = torch.randn(1, IMAGE, PACKED_FROM), torch.randn(4, TEXT, PACKED_FROM)
    mask, index = torch.ones(4, TEXT).bool(), torch.zeros(4, dtype=torch.int64)
    first = torch.zeros_like(mask)
    first[:, 0] = True
    if fast:
        counted = operations(lambda: network(image, text, mask, index, first))
    else:
        with without_shortcuts():
            counted = operations(lambda: network(image.expand(4, -1, -1), text, mask))
    assert counted == rerank_flops(config, 4, TEXT, IMAGE, fast=fast)


def operations(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_no_sentence_of_the_page_states_what_is_measured():
    page = (ROOT / "docs" / "efficiency.md").read_text(encoding="utf-8")
    blocks = re.compile(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", flags=re.DOTALL)
    assert {match[1] for match in blocks.finditer(page)} == {*TABLES, "loader", "pieces"}
    rest = blocks.sub("", page)
    assert re.findall(r"[\d.,]+ ?(?:ms|s|MiB|GiB|GFLOP|×)\b", rest) == []
