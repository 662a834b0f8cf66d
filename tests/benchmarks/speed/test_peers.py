"""Contests with peers: both sides do the same work, and the better way of each counts."""

import json

import pytest
import torch
from torch.nn import functional

from benchmarks import peers
from benchmarks.speed import captions, peers_blip

SMALL = peers_blip.Sizes(depth=2, width=64, image_size=32, vocab_size=2000)


def test_the_best_way_of_each_side_counts(monkeypatch, capsys, tmp_path):
    clock = [0.0]

    def takes(seconds):
        return lambda: clock.__setitem__(0, clock[0] + seconds)

    work = peers.Work(
        {"fp32": takes(3.0), "bf16": takes(1.0)}, {"fp32": takes(4.0), "bf16": takes(9.0)}, {"n": 2}
    )
    monkeypatch.setattr(peers.Contest, "work", lambda self: work)
    monkeypatch.setitem(peers.CLOCKS, "wall", lambda: clock[0])
    monkeypatch.setattr(peers, "STORED", tmp_path / "peers.json")
    monkeypatch.setattr(peers, "explain", lambda best: {"shares": {"products": 0.8}})
    (tmp_path / "peers.json").write_text('{"other": 1}')
    peers.main(["--only", "itm_blip", "--write"])
    told = json.loads(capsys.readouterr().out)
    assert told["itm_over_blip"] == 4.0 and told["n"] == 2
    assert told["best"] == {"ours": "ours bf16", "peer": "peer fp32"}
    assert told["limit"] == 5.0
    assert told["peer"].startswith("transformers ")
    stored = json.loads((tmp_path / "peers.json").read_text())
    assert stored["other"] == 1 and stored["itm_blip"]["itm_over_blip"] == 4.0


@pytest.mark.parametrize("contest", peers.CONTESTS.values(), ids=peers.CONTESTS)
def test_each_contest_names_a_function_that_builds_it(contest):
    module, name = contest.build.split(":")
    assert callable(getattr(__import__(module, fromlist=["_"]), name))


@pytest.mark.parametrize("build", [lambda: peers_blip.captions(2, SMALL),
                                   lambda: peers_blip.matching(SMALL)])  # fmt: skip
def test_both_sides_do_the_work(build):
    work = build()
    assert set(work.ours) == set(work.peer)
    for run in (*work.ours.values(), *work.peer.values()):
        run()


def test_operations_and_time_are_those_of_the_run():
    x, weight = torch.randn(6, 32), torch.randn(16, 32)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)

    def run():
        torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        with torch.inference_mode():
            return (x @ weight.T).softmax(-1).clone()

    best = {"ours": run, "peer": lambda: functional.linear(x, weight)}
    found = peers.explain(best)
    assert found["flops"] == {"ours": 2 * 2 * 6 * 16 * 32, "peer": 2 * 6 * 16 * 32}
    assert set(found["shares"]) == {"products", "copies", "element_wise"}
    assert all(share > 0 for share in found["shares"].values())
    assert sum(found["shares"].values()) == pytest.approx(1, abs=0.01)


def test_captions_together_are_those_of_one_image_at_a_time(monkeypatch):
    monkeypatch.setattr(captions, "Sizes", lambda: SMALL)
    found = captions.on_random_weights(14, 1, "cpu")
    assert found["captions_per_s_batched_over_one_by_one"] > 0
    assert found["fp32"]["equal_texts"] == "14 of 14"
    assert found["fp32"]["tokens"] == {"mean": 20.0, "range": [20, 20]}
    shortest, longest = found["varied"]["tokens"]["range"]
    assert 3 <= shortest < longest <= 20
