"""Bytes of local files and of URLs: slices, open files, and servers that fail."""

import os
import threading
from pathlib import Path

import pytest

from tests.data.flaky_server import flaky_server
from tests.data.readers.test_webdataset import jpeg, write_shard
from triptych.core.errors import DataError
from triptych.data import storage
from triptych.data.manifest import DataSourceConfig, read_records
from triptych.data.records import ImageSource
from triptych.data.skips import ImageProblem, SkipKind
from triptych.data.storage import (
    RemoteError,
    ShardCache,
    UrlFile,
    is_url,
    read_slice,
    read_whole,
    url_facts,
)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 1e-4)
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def served(tmp_path):
    (tmp_path / "served").mkdir()
    return tmp_path / "served"


def shards(folder, number=2, samples=6):
    for shard in range(number):
        members = []
        for sample in range(samples):
            shade = shard * samples + sample
            members += [(f"{shade}.jpg", jpeg(shade)), (f"{shade}.txt", f"shade {shade}".encode())]
        write_shard(folder / f"{shard:06d}.tar", members)


def test_urls_are_told_from_paths():
    assert all(map(is_url, ("s3://b/k.tar", "https://h/x.tar", "hf://datasets/a/b.tar")))
    assert not any(map(is_url, ("a.tar", "/a/b.tar", "C:\\a.tar", "a:b")))


def test_local_files_stay_open_and_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "MAX_OPEN", 3)
    files = storage._OpenFiles()
    for number in range(5):
        (tmp_path / str(number)).write_bytes(bytes([number]) * 10)
    for number in (0, 1, 2, 3, 4, 0, 4):
        assert files.read(str(tmp_path / str(number)), 2, 3) == bytes([number]) * 3
    assert [Path(p).name for p in files._files] == ["3", "0", "4"]
    assert files.read(str(tmp_path / "4"), 8, 9) == b"\4\4"


def test_a_file_that_takes_the_name_of_an_open_one_is_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    assert read_slice(str(path), 0, 3) == b"old"
    (tmp_path / "b").write_bytes(b"new")
    (tmp_path / "b").replace(path)
    assert read_slice(str(path), 0, 3) == b"new"
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_slice(str(path), 0, 3)


def test_slices_of_urls_are_ranges(served):
    (served / "x").write_bytes(bytes(range(200)))
    with flaky_server(served) as server:
        assert read_slice(f"{server.url}/x", 10, 5) == bytes(range(10, 15))
        assert server.ranges == [("/x", 10, 15)]
        assert read_whole(f"{server.url}/x") == bytes(range(200))
        assert url_facts(f"{server.url}/x")[0] == 200
        assert url_facts(f"{server.url}/absent") == (-1, "")
        with pytest.raises(ImageProblem) as caught:
            ImageSource(f"{server.url}/absent", 0, 5, "a.jpg").read()
        assert caught.value.kind is SkipKind.MISSING_FILE


def test_a_url_as_a_file(served, monkeypatch):
    monkeypatch.setattr(storage, "BLOCK_BYTES", 16)
    data = os.urandom(100)
    (served / "x").write_bytes(data)
    with flaky_server(served) as server:
        with storage.open_file(f"{server.url}/x") as file:
            assert file.read(20) == data[:20]
            assert (file.seek(-30, os.SEEK_END), file.read()) == (70, data[70:])
            assert (file.seek(33), file.read(3), file.tell()) == (33, data[33:36], 36)
        with pytest.raises(DataError, match="there is no such file"):
            UrlFile(f"{server.url}/absent")


def test_a_failing_server_loses_nothing(served):
    data = os.urandom(5000)
    (served / "x").write_bytes(data)
    with flaky_server(served, fails=0.2, seed=1) as server:
        found = [read_slice(f"{server.url}/x", 50 * i, 50) for i in range(100)]
        assert server.num_failed > 10
    assert b"".join(found) == data


def test_a_dead_server_is_named_after_the_last_try(served, monkeypatch, caplog):
    (served / "x").write_bytes(b"data")
    monkeypatch.setattr(storage, "NUM_TRIES", 3)
    with flaky_server(served) as server:
        server.is_down = True
        with pytest.raises(RemoteError, match=rf"{server.url}/x: failed 3 times.*then resume"):
            ImageSource(f"{server.url}/x", 0, 4, "a.jpg").read()
        assert caplog.text.count("/x: try") == 2
        server.is_down, server.knows_ranges = False, False
        with pytest.raises(DataError, match="ignores byte ranges"):
            read_slice(f"{server.url}/x", 1, 2)


def test_a_protocol_without_a_library_says_so():
    with pytest.raises(DataError, match="nosuch://x: cannot be read"):
        read_slice("nosuch://x", 0, 1)


def test_shards_behind_a_failing_server_are_those_on_disk(served):
    shards(served)
    local = read_records(DataSourceConfig(path=str(served))).records
    with flaky_server(served, fails=0.2) as server:
        pattern = f"{server.url}/{{000000..000001}}.tar"
        for _ in range(2):  # the second time from the index
            far = read_records(DataSourceConfig(path=pattern, index="always")).records
            assert [r.caption for r in far] == [r.caption for r in local]
            assert [r.record_id for r in far] == [r.record_id for r in local]
        assert [r.image.read() for r in far] == [r.image.read() for r in local]
        assert str(far[0].image) == f"{server.url}/000000.tar::0.jpg"
        (served / "000001.tar").unlink()
        with pytest.raises(DataError, match=r"000001\.tar: there is no such file"):
            read_records(DataSourceConfig(path=pattern, index="always"))


@pytest.mark.parametrize("name", ["s.tar.gz", "https://h/{0..3}.tgz", "s.tar.zst"])
def test_compressed_shards_are_refused_by_name(name):
    with pytest.raises(DataError, match=r"is compressed; .*Unpack it to a plain \.tar"):
        read_records(DataSourceConfig(path=name))


def test_other_files_behind_urls_are_refused():
    with pytest.raises(DataError, match="tar shards and parquet tables are read"):
        read_records(DataSourceConfig(path="https://h/data.jsonl"))


def test_fetched_shards_are_read_from_disk_and_bounded(served, tmp_path):
    shards(served, number=6)
    cache = ShardCache()
    with flaky_server(served, fails=0.1) as server:
        urls = [f"{server.url}/{i:06d}.tar" for i in range(6)]
        for first in range(0, 6, 2):
            cache.fetch(urls[first : first + 2])
            cache._thread.join(timeout=30)
        assert [cache.local(url) is not None for url in urls] == [False, False, *[True] * 4]
    kept = sorted((tmp_path / "cache/shards").glob("*.tar"))
    assert len(kept) == 4
    for url in urls[2:]:
        name = url.rpartition("/")[2]
        assert (served / name).read_bytes() == Path(cache.local(url)).read_bytes()


def test_threads_share_open_files(tmp_path):
    (tmp_path / "x").write_bytes(bytes(range(256)) * 100)
    found = [None] * 8

    def work(number):
        found[number] = [read_slice(str(tmp_path / "x"), i, 1)[0] for i in range(number, 2000)]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[n] == [i % 256 for i in range(n, 2000)] for n in range(8))
