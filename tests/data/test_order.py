import numpy as np
import pytest

from triptych.data.order import SampleOrder


def order(num_samples=10, size=4, train=True, seed=0, **ranks):
    return SampleOrder(num_samples, size, seed, train, **ranks)


def drawn(source, num_steps, first=0):
    return [sample for step in range(first, first + num_steps) for sample in source.batch(step)]


@pytest.mark.parametrize(("num_samples", "size"), [(10, 4), (3, 8), (1, 5), (4, 4)])
def test_every_epoch_holds_every_sample_once(num_samples, size):
    found = drawn(order(num_samples, size), 30)
    epochs = [epoch for epoch, _ in found]
    assert epochs == [i // num_samples for i in range(30 * size)]
    for epoch in range(30 * size // num_samples):
        assert sorted(i for e, i in found if e == epoch) == list(range(num_samples))


def test_epochs_and_seeds_have_their_own_permutations():
    first = [i for _, i in drawn(order(50, 50), 3)]
    assert first[:50] != first[50:100] != first[100:150]
    assert first[:50] != list(range(50))
    assert first[:50] != [i for _, i in order(50, 50, seed=1).batch(0)]


def test_a_step_does_not_depend_on_the_steps_before():
    whole = drawn(order(), 20)
    source = order()
    for step in [13, 2, 19, 0, 7]:
        assert source.batch(step) == whole[step * 4 : step * 4 + 4]


def test_permutations_are_uniform():
    # each sample comes first in a fifth of 2,000 epochs: standard deviation 0.009
    first = [order(5, 1, seed=3).batch(5 * epoch)[0][1] for epoch in range(2000)]
    np.testing.assert_allclose(np.bincount(first, minlength=5) / 2000, 0.2, atol=0.035)


@pytest.mark.parametrize("train", [True, False])
def test_ranks_share_the_samples_out(train):
    alone = order(12, 6, train=train)
    ranks = [order(12, 3, train=train, rank=rank, world_size=2) for rank in range(2)]
    for step in range(2):
        joined = [sample for rank in ranks for sample in rank.batch(step)]
        assert sorted(joined) == sorted(alone.batch(step))


def test_evaluation_gives_each_sample_once_in_order():
    source = order(train=False)
    assert source.num_batches == 3
    assert drawn(source, 3) == [(0, i) for i in range(10)]
    assert len(source.batch(2)) == 2
    assert order().num_batches is None


def test_epochs_beyond_24_bits_are_no_error():
    (sample,) = order(1, 1).batch(2**24 + 5)
    assert sample == (5, 0)


def test_orders_on_disk_are_those_in_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path))
    whole = drawn(order(50, 7, seed=3), 30)
    monkeypatch.setattr("triptych.data.order.MAPPED_FROM", 16)
    source = order(50, 7, seed=3)
    assert drawn(source, 30) == whole
    assert all(isinstance(p, np.memmap) for p in source._permutations.values())
    kept = {path.name.split("-numpy")[0] for path in (tmp_path / "orders").glob("*.npy")}
    assert kept == {"50-3-3", "50-3-4"}  # this epoch, and the one before for whoever is behind
    assert drawn(order(50, 7, seed=3), 30) == whole
    assert drawn(order(50, 7, seed=4), 30) != whole


def test_an_order_without_a_place_on_disk_stays_in_memory(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    whole = drawn(order(50, 7), 5)
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("triptych.data.order.MAPPED_FROM", 16)
    assert drawn(order(50, 7), 5) == whole
    assert "stays in memory" in caplog.text
