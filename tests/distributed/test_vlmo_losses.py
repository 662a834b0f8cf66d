"""VLMo's third stage on several gloo processes against one process with the joined batch."""

import pytest
import torch
import torch.distributed as dist

from tests.distributed.averaging import average_gradients
from tests.tasks.pretraining.test_vlmo import build, make_batch
from triptych.core.rng import seed_step
from triptych.distributed.collectives import all_reduce_mean
from triptych.distributed.env import rank, run_processes, world_size
from triptych.tasks.finetuning.retrieval import Retrieval, VLMoRetrievalConfig
from triptych.tasks.pretraining import vlmo

ROWS = 8

GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
SCATTER = GATHER.replace("all_gather", "reduce_scatter").replace("into_", "")
"""Names that torch 2.13 changes."""


ALL = frozenset({"itc", "itm", "mlm"})
CASES = {
    "fused ITC": ("fused_itc", {}, frozenset({"itc"})),
    "relative": ("relative", {}, ALL),
    "absolute": ("absolute", {}, ALL),
    "chunks": ("relative", {"chunk_size": 3}, ALL),
    "retrieval": ("retrieval", {}, ALL),
    "retrieval chunks": ("retrieval", {"chunk_size": 1}, ALL),
}
WHOLE = {"chunks": "relative", "retrieval chunks": "retrieval"}
"""What a case in chunks must equal."""


def _losses_and_gradients(name, settings, active):
    """Return losses and gradients of one step on this process's rows, averaged over processes."""
    if name == "retrieval":
        task = Retrieval(build().model, VLMoRetrievalConfig(**settings))
    else:
        task = build(name, **settings)
    batch = make_batch(ROWS, length=9)
    batch["caption_key"][3] = batch["caption_key"][6]  # a caption of two images, far apart
    share = ROWS // world_size()
    own = slice(rank() * share, (rank() + 1) * share)
    seed_step(0, 2, rank())
    losses = task.losses({key: value[own] for key, value in batch.items()}, active=active)
    torch.stack(list(losses.values())).sum().backward()
    parameters = dict(task.modules.named_parameters())
    average_gradients(list(parameters.values()))
    means = {key: float(all_reduce_mean(loss)) for key, loss in losses.items()}
    return means, {key: p.grad.numpy() for key, p in parameters.items() if p.grad is not None}


def _all_cases(names=tuple(CASES)):
    return {name: _losses_and_gradients(*CASES[name]) for name in names}


@pytest.fixture(scope="module")
def alone():
    return _all_cases()


def _compare(found, expected):
    for name, (losses, gradients) in found.items():
        expected_losses, expected_gradients = expected[WHOLE.get(name, name)]
        assert losses == pytest.approx(expected_losses, rel=1e-5), name
        assert gradients.keys() == expected_gradients.keys()
        for key, gradient in gradients.items():
            torch.testing.assert_close(
                torch.from_numpy(gradient),
                torch.from_numpy(expected_gradients[key]),
                atol=1e-5,
                rtol=1e-3,
                msg=f"{name}: {key}",
            )


def test_chunks_equal_the_whole_batch(alone):
    assert list(alone["chunks"][0]) == ["itc", "itm", "mlm"]
    assert list(alone["retrieval chunks"][0]) == ["itc", "itm"]
    _compare(alone, alone)


def test_processes_equal_the_joined_batch(alone):
    _compare(run_processes(_all_cases, 2), alone)
    _compare(run_processes(_all_cases, 4, ("fused ITC", "absolute")), alone)


def _local_negatives():
    """Return the keys of drawn negatives and the keys of this process's rows."""
    task, batch = build("relative", negatives="local"), make_batch(ROWS)
    own = slice(4 * rank(), 4 * rank() + 4)
    batch = {key: value[own] for key, value in batch.items()}
    embedded = task.embed(
        task.model.image_inputs(batch["image"]),
        task.model.text_inputs(batch["token_ids"]),
        batch["text_mask"],
    )
    found = task.hard_negatives(batch, embedded)
    return len(found.images), int(found.image_index.min()), int(found.image_index.max())


def test_local_negatives_stay_in_the_process():
    fetched, low, high = run_processes(_local_negatives, 2)
    assert fetched == 0
    assert 0 <= low <= high < 4


DRAWN = ([5, 5, 1, 6], [0, 0, 2, 7])
"""Wrong images of the texts of two processes of four rows: 5 and 6 lie on the other one of the
first, 0 and 2 on that of the second; 5 and 0 are drawn twice."""


def _itm_traffic():
    """Return what ITM sends, (collective, rows, numbers a row), and if its images are right."""
    sent, images = [], []
    draws = iter([torch.tensor([(4 * rank() + i + 1) % ROWS for i in range(4)]), DRAWN[rank()]])

    def drawn(queries, *_):
        return torch.as_tensor(next(draws)), torch.ones(len(queries), dtype=torch.bool)

    def spied(name, place):
        original = getattr(dist, name)

        def call(*arguments, **options):
            given = arguments[place]
            if isinstance(given, torch.Tensor):
                rows = len(given) if given.ndim else 1
                sent.append((name, rows, given.numel() // max(rows, 1)))
            return original(*arguments, **options)

        return call

    places = {"all_to_all_single": 1, "all_gather": 1, GATHER: 1}
    places |= {"all_reduce": 0, "broadcast": 0, "all_to_all": 1, SCATTER: 1}
    originals = {name: getattr(dist, name) for name in places}
    for name, place in places.items():
        setattr(dist, name, spied(name, place))
    original_draw, vlmo.sample_hard_negatives = vlmo.sample_hard_negatives, drawn
    task, batch = build("relative"), make_batch(ROWS)
    find = task.hard_negatives

    def kept(own, embedded):
        found = find(own, embedded)
        images.append(torch.cat([own["image"], found.images])[found.image_index])
        return found

    task.hard_negatives = kept
    own = slice(4 * rank(), 4 * rank() + 4)
    losses = task.losses({key: value[own] for key, value in batch.items()}, active={"itm"})
    losses["itm"].backward()
    for name, original in originals.items():
        setattr(dist, name, original)
    vlmo.sample_hard_negatives = original_draw
    right = bool(torch.equal(images[0], batch["image"][DRAWN[rank()]]))
    everything = [None, None]
    dist.all_gather_object(everything, (sent, right))
    return everything


def test_matching_moves_the_chosen_images_alone():
    found = run_processes(_itm_traffic, 2)
    pixels = make_batch(1)["image"].numel()
    assert all(right for _, right in found)
    calls = [call for sent, _ in found for call in sent]
    assert {name for name, _, _ in calls} >= {"all_to_all_single", GATHER}
    images = [rows for _, rows, width in calls if width >= pixels]
    assert [width for _, rows, width in calls if width >= pixels] == [pixels, pixels]
    assert {name for name, _, width in calls if width >= pixels} == {"all_to_all_single"}
    assert images == [2, 2]  # the first sends 0 and 2, the second 5 and 6, each once
