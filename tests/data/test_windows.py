"""Windows of shards: an exact order, and remote shards through a loader."""

import numpy as np
import pytest

from tests.data.flaky_server import flaky_server
from tests.data.readers.test_webdataset import jpeg, write_shard
from tests.data.test_stream import assert_same, take
from triptych.core.errors import ConfigError
from triptych.data import storage
from triptych.data.collate import PretrainingCollator
from triptych.data.manifest import DataSourceConfig, read_records
from triptych.data.mixture import MixtureSource, build_mixture
from triptych.data.order import SampleOrder
from triptych.data.records import Record
from triptych.data.skips import SkipLog
from triptych.data.stream import build_loader
from triptych.data.transforms.pipeline import ImageTransform, ImageTransformConfig
from triptych.data.windows import ShardWindows, check_windows
from triptych.text import Tokenizer

SIZES = (5, 1, 7, 3, 4)
NUM = sum(SIZES)
SHARD_OF = np.repeat(np.arange(len(SIZES)), SIZES)


def order(window=2, seed=0, size=4, **ranks):
    return SampleOrder(NUM, size, seed, True, windows=ShardWindows(SIZES, window), **ranks)


def drawn(source, steps):
    return [pair for step in steps for pair in source.batch(step)]


@pytest.mark.parametrize("window", [1, 2, 5, 100])
def test_every_epoch_holds_every_sample_once(window):
    found = drawn(order(window), range(4 * NUM))
    for epoch in range(16):
        own = [index for e, index in found if e == epoch]
        assert sorted(own) == list(range(NUM))


def test_a_window_mixes_the_samples_of_its_shards():
    source = order(window=2)
    orders = []
    for epoch in range(6):
        indices = [source.windows.index(0, epoch, offset) for offset in range(NUM)]
        shards = SHARD_OF[indices]
        visited = list(dict.fromkeys(shards))
        # windows of two shards each, and the last one of the fifth
        first, second, last = ({*visited[0:2]}, {*visited[2:4]}, {visited[4]})
        sizes = [sum(SIZES[s] for s in group) for group in (first, second, last)]
        ends = np.cumsum(sizes)
        assert set(shards[: ends[0]]) == first and set(shards[ends[0] : ends[1]]) == second
        assert indices != sorted(indices)
        orders.append(tuple(indices))
    assert len(set(orders)) == 6


def test_a_step_does_not_depend_on_the_steps_before():
    whole = drawn(order(), range(60))
    source = order()
    for step in (57, 3, 31, 0, 12, 58):
        assert source.batch(step) == whole[4 * step : 4 * step + 4]
    assert drawn(order(seed=1), range(60)) != whole
    assert drawn(order(window=3), range(60)) != whole


@pytest.mark.parametrize("world", [2, 3])
def test_more_processes_than_shards_share_the_samples_out(world):
    alone = drawn(order(size=2 * world), range(10))
    ranks = [order(size=2, rank=rank, world_size=world) for rank in range(world)]
    assert [p for step in range(10) for rank in ranks for p in rank.batch(step)] == alone


def test_the_shards_that_come_are_announced():
    said = []
    source = ShardWindows(SIZES, 2, said.append)
    for offset in range(NUM):
        source.index(0, 0, offset)
    assert [len(shards) for shards in said] == [4, 3, 1]
    assert said[0][2:] == said[1][:2] and {*said[0], *said[2]} == set(range(5))


def test_windows_need_shards():
    texts = [Record(record_id="1", text="x")]
    with pytest.raises(ConfigError, match="no source is of tar shards or parquet"):
        check_windows([texts], 2)
    check_windows([texts], None)
    with pytest.raises(ConfigError, match="shuffle_window"):
        ShardWindows(SIZES, 0)


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 1e-4)
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()
    number = 0
    for shard, size in enumerate((4, 7, 5)):
        members = []
        for _ in range(size):
            members += [(f"{number}.jpg", jpeg(10 * number)), (f"{number}.txt", b"a cat")]
            number += 1
        write_shard(folder / f"{shard}.tar", members)
    return folder


def loader(records, window, log=None, **settings):
    config = ImageTransformConfig(image_size=8)
    collator = PretrainingCollator(Tokenizer.train(["a", "cat"], vocab_size=200))
    return build_loader(
        records,
        collator,
        ImageTransform(config, train=True),
        seed=3,
        local_batch_size=3,
        train=True,
        shuffle_window=window,
        skip_log=log,
        **settings,
    )


@pytest.mark.parametrize(("window", "num_workers"), [(2, 0), (2, 2), (None, 2)])
def test_a_failing_server_loses_no_sample_and_a_resumed_run_goes_on_exactly(
    served, window, num_workers
):
    local = read_records(DataSourceConfig(path=str(served))).records
    with flaky_server(served, fails=0.15, seed=5) as server:
        source = DataSourceConfig(path=f"{server.url}/{{0..2}}.tar")
        far = read_records(source).records
        log = SkipLog(None, len(far), 0.0)
        whole = take(loader(far, window, log, num_workers=num_workers), 16)  # three epochs
        assert server.num_failed > 5 and log.num_bad == 0
        resumed = take(loader(far, window, log, num_workers=num_workers, start_step=9), 7)
    assert_same(whole[9:], resumed)
    on_disk = take(loader(local, window), 16)
    for batch in (*whole, *on_disk):
        del batch["image_key"]  # of the image's name, which is a URL or a path
    assert_same(whole, on_disk)
    seen = sorted(int(i) for batch in whole for i in batch["index"])
    assert seen == sorted([*range(16)] * 3)


def test_a_mixture_of_windows_and_others_is_exact(served):
    records = read_records(DataSourceConfig(path=str(served))).records
    config = ImageTransform(ImageTransformConfig(image_size=8), train=True)
    collator = PretrainingCollator(Tokenizer.train(["a", "cat"], vocab_size=200))
    shared = {"collator": collator, "transform": config}
    sources = [
        MixtureSource(name="shards", records=records, ratio=2.0, **shared),
        MixtureSource(
            name="files",
            records=read_records(DataSourceConfig(path=str(served / "1.tar"))).records[:5],
            **shared,
        ),
    ]
    settings = {"seed": 0, "local_batch_size": 4, "shuffle_window": 2}
    whole = take(build_mixture(sources, **settings), 24)
    assert_same(whole, take(build_mixture(sources, num_workers=3, **settings), 24))
    assert_same(whole[17:], take(build_mixture(sources, start_step=17, **settings), 7))
    of_first = [int(i) for batch in whole if int(batch["source"]) == 0 for i in batch["index"]]
    for epoch in range(len(of_first) // 16):
        assert sorted(of_first[16 * epoch : 16 * epoch + 16]) == list(range(16))
    assert len(of_first) >= 32
