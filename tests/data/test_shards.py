"""Shards hold what the source held, are the same however they are written, and tell damage."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import cv2
import numpy as np
import pytest
import webdataset
from PIL import Image

from tests.data.flaky_server import flaky_server
from triptych.cli.main import main
from triptych.core.errors import ConfigError, DataError
from triptych.data import shards as module
from triptych.data.images import decode_image
from triptych.data.manifest import DataSourceConfig, read_records
from triptych.data.readers.webdataset import read_index
from triptych.data.shards import ShardOptions, shrink, verify_shards, write_shards


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def manifest(tmp_path):
    """23 images, every third with two captions in lines far apart, and some with a box."""
    rng = np.random.default_rng(0)
    lines, later = [], []
    for i in range(23):
        suffix = "png" if i % 5 == 0 else "jpg"
        pixels = rng.integers(0, 256, (40 + i, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.{suffix}")
        line = {"image": f"{i}.{suffix}", "image_id": f"i{i}", "caption": f"caption of {i}"}
        if i % 4 == 1:
            line |= {"phrase": "it", "box": [6.0, 3.0, 30.0, 12.0]}
        if i % 4 == 2:
            line |= {"question": "what?", "answers": ["it"], "answers_weight": 0.5}
            line |= {"domain": "near-domain"}
        lines.append(line)
        if i % 3 == 0:
            later.append(line | {"caption": f"another of {i}"})
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines + later))
    return path


def write(manifest, out, *, num_workers=1, **options):
    source = DataSourceConfig(path=str(manifest))
    return write_shards(source, out, ShardOptions(**options), num_workers=num_workers)


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.tar")}


def known(record):
    texts = (record.image_id, record.caption, record.phrase, record.question, record.answers)
    return (*texts, record.box, record.domain, record.answers_weight)


def test_shards_hold_what_the_source_held_in_another_order(tmp_path, manifest):
    given = read_records(DataSourceConfig(path=str(manifest))).records
    found = write(manifest, tmp_path / "s", samples_per_shard=5)
    assert (found.num_shards, found.num_images, found.num_records) == (5, 23, len(given))
    records = read_records(DataSourceConfig(path=str(tmp_path / "s"))).records
    assert sorted(map(known, records), key=repr) == sorted(map(known, given), key=repr)
    bytes_of = {record.image_id: record.image.read() for record in given}
    assert all(record.image.read() == bytes_of[record.image_id] for record in records)
    order = list(dict.fromkeys(record.image_id for record in records))
    assert order != sorted(order) and len(order) == 23
    alone = [r for r in records if r.caption.startswith("caption") and int(r.image_id[1:]) % 3]
    ids = {known(r): r.record_id for r in given}
    assert alone and all(record.record_id == ids[known(record)] for record in alone)


@pytest.mark.filterwarnings("ignore")  # the library leaves shards open
def test_the_index_says_what_the_shard_says(tmp_path, manifest):
    write(manifest, tmp_path / "s", samples_per_shard=6)
    source = DataSourceConfig(path=str(tmp_path / "s"))
    by_index = read_records(source).records
    for path in (tmp_path / "s").glob("*.index"):
        path.unlink()
    assert read_records(source).records == by_index
    pipeline = webdataset.WebDataset(
        [str(p) for p in sorted((tmp_path / "s").glob("*.tar"))], shardshuffle=False
    )
    assert sum(1 for _ in pipeline) == 23  # the library reads them too


def test_an_index_of_another_shard_is_not_read(tmp_path, manifest):
    write(manifest, tmp_path / "s", samples_per_shard=12)
    (tmp_path / "s/000001.tar.index").replace(tmp_path / "s/000000.tar.index")
    assert read_index(str(tmp_path / "s/000000.tar")) is None
    assert len(read_records(DataSourceConfig(path=str(tmp_path / "s"))).records) == 31


def test_seed_and_options_decide_and_nothing_else(tmp_path, manifest):
    write(manifest, tmp_path / "a", samples_per_shard=4)
    write(manifest, tmp_path / "b", samples_per_shard=4, num_workers=3)
    write(manifest, tmp_path / "c", samples_per_shard=4, seed=1)
    assert digests(tmp_path / "a") == digests(tmp_path / "b") != digests(tmp_path / "c")


def test_the_same_command_goes_on(tmp_path, manifest, monkeypatch):
    write(manifest, tmp_path / "whole", samples_per_shard=4)
    wrote = []

    def stop(job, number):
        if len(wrote) == 2:
            raise KeyboardInterrupt
        wrote.append(number)
        real(job, number)

    real = module._write_shard
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_write_shard", stop)
        write(manifest, tmp_path / "s", samples_per_shard=4)
    assert not (tmp_path / "s/shards.json").exists()
    found = write(manifest, tmp_path / "s", samples_per_shard=4)
    assert (found.num_shards, found.num_kept, found.num_images) == (6, 2, 23)
    assert digests(tmp_path / "s") == digests(tmp_path / "whole")
    listing = json.loads((tmp_path / "s/shards.json").read_text())
    assert {s["name"]: s["sha256"] for s in listing["shards"]} == digests(tmp_path / "s")
    assert write(manifest, tmp_path / "s", samples_per_shard=4).num_kept == 6


def test_a_kill_leaves_what_the_next_call_goes_on_with(tmp_path, manifest):
    code = (
        "import sys, time; from triptych.data import shards as m; from pathlib import Path;"
        "from triptych.data.source import DataSourceConfig as C; real = m._write_shard;"
        "m._write_shard = lambda *a: (real(*a), time.sleep(0.3));"
        "m.write_shards(C(path=sys.argv[1]), Path(sys.argv[2]),"
        "               m.ShardOptions(samples_per_shard=2), num_workers=1)"
    )
    out = tmp_path / "s"
    process = subprocess.Popen([sys.executable, "-c", code, str(manifest), str(out)])
    while len(list(out.glob("*.index"))) < 2 and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    found = write(manifest, out, samples_per_shard=2)
    assert found.num_kept >= 2 and found.num_images == 23
    write(manifest, tmp_path / "whole", samples_per_shard=2)
    assert digests(out) == digests(tmp_path / "whole")


@pytest.mark.parametrize("change", ["seed", "data"])
def test_other_data_or_options_need_another_folder(tmp_path, manifest, change):
    write(manifest, tmp_path / "s", samples_per_shard=9)
    if change == "data":
        manifest.write_text(manifest.read_text() + '{"image": "0.png", "caption": "more"}\n')
    with pytest.raises(DataError, match=r"shards of other data or options.*plan\.json"):
        write(manifest, tmp_path / "s", samples_per_shard=9, seed=int(change == "seed"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    with pytest.raises(DataError, match="is not empty"):
        write(manifest, tmp_path / "full")


def test_large_images_shrink_and_boxes_with_them(tmp_path, manifest):
    write(manifest, tmp_path / "s", max_side=30)
    records = read_records(DataSourceConfig(path=str(tmp_path / "s"))).records
    given = {r.image_id: r for r in read_records(DataSourceConfig(path=str(manifest))).records}
    for record in records:
        before, after = decode_image(given[record.image_id].image), decode_image(record.image)
        assert max(after.shape[:2]) == 30
        scale = 30 / max(before.shape[:2])
        assert after.shape[0] == round(before.shape[0] * scale)
        if record.box is not None:
            np.testing.assert_allclose(record.box, np.array([6, 3, 30, 12]) * scale)


def test_shrinking_keeps_small_images_and_averages_large_ones():
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None], 100, axis=0)
    data = cv2.imencode(".png", ramp)[1].tobytes()
    assert shrink(data, 200) == (data, 1.0)
    small, scale = shrink(data, 50)
    assert scale == 0.25
    expected = np.repeat(ramp.reshape(100, 50, 4).mean(2)[:25, :, None], 3, axis=2)
    np.testing.assert_allclose(decode_image(small), expected, atol=3)


def test_damage_is_found(tmp_path, manifest, capsys):
    out = tmp_path / "s"
    write(manifest, out, samples_per_shard=6)
    assert verify_shards(str(out)) == (4, [])
    assert main(["data", "check", str(out)]) == 0
    assert "4 of 4 shards are as written" in capsys.readouterr().out
    flipped = bytearray((out / "000001.tar").read_bytes())
    flipped[600] ^= 1
    (out / "000001.tar").write_bytes(flipped)
    (out / "000002.tar").unlink()
    with (out / "000003.tar").open("ab") as file:
        file.write(b"\0" * 10240)
    number, problems = verify_shards(str(out))
    messages = {p.where.rpartition("/")[2]: p.message for p in problems}
    assert number == 4 and sorted(messages) == ["000001.tar", "000002.tar", "000003.tar"]
    assert "changed since" in messages["000001.tar"] and "is missing" in messages["000002.tar"]
    assert "bytes, and had" in messages["000003.tar"]
    assert main(["data", "check", str(out), "--max-bad-share", "1"]) == 1
    captured = capsys.readouterr()
    assert "3 shards are damaged or missing" in captured.err
    assert "1 of 4 shards are as written" in captured.out


def test_images_that_cannot_be_read_are_listed(tmp_path, manifest, capsys):
    (tmp_path / "3.jpg").unlink()
    arguments = ["data", "shard", str(manifest), "--out", str(tmp_path / "s")]
    assert main([*arguments, "--max-bad-share", "0.2", "--num-workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "wrote 22 images of 29 records to 1 shards" in said and "2 could not be used" in said
    listed = [json.loads(line) for line in (tmp_path / "s/skipped.jsonl").read_text().splitlines()]
    assert [entry["where"] for entry in listed] == [str(tmp_path / "3.jpg")]
    assert main([*arguments, "--max-bad-share", "0"]) == 2
    assert "2 of 31 samples are bad" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"text": "words alone"}, "record 1 has no image"),
        ({"images": ["a", "b"], "statement": "s"}, "record 1 has several images"),
        ({"image": "0.png", "text": "x"}, "has a text beside its image"),
    ],
)
def test_what_a_shard_cannot_hold_is_refused(tmp_path, manifest, line, message):
    (tmp_path / "a").touch()
    path = tmp_path / "other.jsonl"
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(DataError, match=message):
        write(path, tmp_path / "s")
    with pytest.raises(ConfigError, match="samples_per_shard"):
        ShardOptions(samples_per_shard=0)


def test_shards_over_http_are_read_by_their_indices(tmp_path, manifest):
    out = tmp_path / "s"
    write(manifest, out, samples_per_shard=12)
    with flaky_server(out) as server:
        far = read_records(DataSourceConfig(path=f"{server.url}/{{000000..000001}}.tar")).records
        assert {path for path, _, _ in server.ranges} == {
            "/000000.tar.index",
            "/000001.tar.index",
        }
        near = read_records(DataSourceConfig(path=str(out))).records
        assert [known(r) for r in far] == [known(r) for r in near]
        assert far[5].image.read() == near[5].image.read()
        (out / "000001.tar.index").unlink()  # as in shards that others wrote
        other = read_records(DataSourceConfig(path=f"{server.url}/{{000000..000001}}.tar"))
        assert [known(r) for r in other.records] == [known(r) for r in near]


def test_members_have_no_time_and_no_owner(tmp_path, manifest):
    write(manifest, tmp_path / "s")
    with tarfile.open(tmp_path / "s/000000.tar") as tar:
        assert {(m.mtime, m.uid, m.uname) for m in tar} == {(0, 0, "")}
