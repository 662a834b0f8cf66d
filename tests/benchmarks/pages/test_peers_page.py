"""docs/peers.md: who wins each contest, by how much, and why a peer wins where it does."""

import json

import pytest

from benchmarks.pages.gather import RESULTS
from benchmarks.pages.peers_page import LIMITS, WHY, is_below, peers_page, winner
from benchmarks.peers import CONTESTS

STORED = RESULTS / "peers.json"


def result(ratio, limits, **more):
    return {
        "itc_step_over_open_clip": ratio,
        "range": limits,
        "same_way": {
            "fp32": {"ratio": 0.9, "range": [0.85, 0.95]},
            "bf16": {"ratio": 1.4, "range": [1.3, 1.5]},
        },
        "best": {"ours": "ours bf16", "peer": "peer fp32"},
        "median_ms": {
            **{"ours fp32": 3000.0, "ours bf16": 1500.0},
            **{"peer fp32": 2700.0, "peer bf16": 2800.0},
        },
        "peer": "open_clip_torch 3.3.0",
        "pairs": 8,
        "parameters": {"ours": 149_887_489, "peer": 149_620_737},
        "flops": {"ours": 9e11, "peer": 1e12},
        "shares": {"products": 0.8, "copies": 0.05, "element_wise": 0.15},
        "limit": 2.25,
        "rounds": 3,
        "num_threads": 1,
        "clock": "wall",
        "commit": "a" * 40,
        "machine": {"CPU": "one", "torch": "2.13"},
    } | more


def page(folder, found):
    (folder / "peers.json").write_text(json.dumps({"itc_step": found}))
    return peers_page(folder)


def test_a_contest_has_a_row_and_a_section(tmp_path):
    text = page(tmp_path, result(1.8, [1.7, 1.9]))
    row = "| open_clip_torch 3.3.0 | 1,500 ms, bf16 | 2,700 ms, fp32 | **1.80** (1.70 to 1.90) "
    assert f"{row}| fp32 >= 1: **not met**; bf16 >= 1.3: met | Triptych |" in text
    assert "Of 1 contests, Triptych wins 1, the peer wins 0, and 0 are open." in text
    assert "| fp32 | 3,000 | 2,700 | 0.90 (0.85 to 0.95) |" in text
    assert "parameters, millions: Triptych 150, the peer 150" in text
    assert "matrix products take 80%, copies 5%, everything else 15%." in text
    assert "If products alone took time, the ratio would be 2.25." in " ".join(text.split())
    assert "Per operation, the ratio is 0.81 in fp32, 1.26 in bf16." in text  # 0.9 times each
    assert "- `python -m benchmarks.peers --only itc_step --rounds 3 --write`, threads: 1," in text
    assert "Why the peer wins" not in text
    assert "`itc_step`" not in text.split("Not run: ")[1] and "`itm_blip`" in text


def test_where_the_peer_wins_the_page_says_why(tmp_path, monkeypatch):
    monkeypatch.setitem(WHY, "itc_step", "it skips work.")
    text = page(tmp_path, result(0.8, [0.7, 0.9]))
    assert "| **the peer** |" in text and "- Why the peer wins: it skips work." in text


def test_below_a_target_the_page_says_what_limits(tmp_path, monkeypatch):
    monkeypatch.setitem(LIMITS, "itc_step", "the rest is the same work.")
    told = "- Why it is below its target: the rest is the same work."
    found = result(1.2, [1.1, 1.3])
    for ratio, is_told in ((0.9, True), (1.1, False)):
        found["same_way"]["fp32"]["ratio"] = ratio
        assert (told in page(tmp_path, found)) == is_told


@pytest.mark.parametrize(("limits", "who"), [
    ([1.1, 1.3], "ours"), ([0.5, 0.9], "peer"), ([0.9, 1.3], "neither"), ([1.01, 1.3], "neither"),
])  # fmt: skip
def test_a_winner_wins_in_every_round(limits, who):
    assert winner({"range": limits}) == who


def test_without_results_every_contest_is_listed_as_not_run(tmp_path):
    text = peers_page(tmp_path)
    assert all(f"`{name}`" in text for name in CONTESTS)
    assert "| work |" not in text


def test_each_stored_contest_that_a_peer_wins_says_why():
    stored = json.loads(STORED.read_text())
    assert stored.keys() <= CONTESTS.keys()
    assert {name for name, found in stored.items() if winner(found) == "peer"} <= WHY.keys()
    assert {name for name, found in stored.items() if is_below(name, found)} <= LIMITS.keys()
