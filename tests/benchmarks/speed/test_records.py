"""The benchmark of large data counts what is lost, and both readers see the same samples."""

import pytest

from benchmarks.speed import records
from triptych.data import storage


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 1e-4)
    (tmp_path / "shards").mkdir()
    records.write_shards(tmp_path / "shards", 3, 32, 16)


def test_nothing_is_lost_over_http(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "FAILS", 0.2)
    found = records.remote(str(tmp_path / "shards"))
    assert found["lost"] == 0 and found["failed"] > 0 and found["samples"] == 192


def test_a_sample_that_is_skipped_is_lost(tmp_path):
    path = tmp_path / "shards/000001.tar"
    data = bytearray(path.read_bytes())
    data[512:520] = bytes(8)  # the head of the first image
    path.write_bytes(data)
    assert records.remote(str(tmp_path / "shards"))["lost"] > 0


@pytest.mark.filterwarnings("ignore")  # webdataset leaves shards open
def test_both_readers_decode_the_same(tmp_path):
    ours = list(records.ours(str(tmp_path / "shards")))
    assert sorted(ours) == sorted(records.theirs(str(tmp_path / "shards"))) and len(ours) == 96
