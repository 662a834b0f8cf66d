"""Batch jobs in one process: rows, resuming after kills, what cannot be used, what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import triptych
from tests.serving.tiny_folder import write_tiny_folder, write_tiny_vlmo
from triptych.cli.main import main
from triptych.core.errors import ConfigError, DataError
from triptych.data.entries import ENTAILMENT_LABELS
from triptych.data.source import DataSourceConfig
from triptych.jobs.inputs import Input, read_ahead
from triptych.jobs.job import BatchJob, table_of
from triptych.jobs.run import run_job
from triptych.serving.verbs import VERBS
from triptych.tasks.finetuning.image_text_classification import ImageTextClassificationConfig
from triptych.tasks.finetuning.nlvr2 import NLVR2Config
from triptych.tasks.finetuning.segmentation import SegmentationConfig

NUM_IMAGES = 11


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    entails = ImageTextClassificationConfig(labels=ENTAILMENT_LABELS)
    segments = SegmentationConfig(classes=("sky", "sea"), head="linear")
    return {
        **{n: write_tiny_folder(root / n, n) for n in ("captioning", "vqa", "grounding")},
        "vlmo": write_tiny_vlmo(root / "vlmo"),
        "entailment": write_tiny_vlmo(root / "entailment", task=entails),
        "segmentation": write_tiny_vlmo(root / "segmentation", task=segments),
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A manifest with every text that a verb asks about; image 3 is missing, line 5 is none."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = []
    for number in range(NUM_IMAGES):
        path = root / f"{number}.png"
        if number != 3:
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(path)
        record = {"image": path.name, "id": f"r{number}", "question": "what color is the star?"}
        record |= {"phrase": "the star", "caption": "a red circle", "ocr_words": ["a", "red"]}
        record |= {"hypothesis": "a star", "premise": "a red circle", "label": "neutral"}
        lines.append(json.dumps(record))
    lines.insert(5, "{not json")
    manifest = root / "my.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def job(folder, data, out, verb="caption", **more):
    more.setdefault("part_rows", 4)
    return BatchJob(
        verb=verb,
        model=folder,
        source=DataSourceConfig(path=str(data)),
        out=out,
        batch_size=more.pop("batch_size", 3),
        precision="fp32",
        **more,
    )


def rows_of(out):
    """Return all rows, part by part, as any reader of a folder of parquet gives them."""
    return pq.read_table(out).sort_by("row").to_pylist()


def image_of(data, number):
    return str(data.parent / f"{number}.png")


def test_rows_are_what_the_engine_says_and_errors_have_a_column(folders, data, tmp_path):
    seen = []
    done = job(folders["captioning"], data, tmp_path / "out", options={"num_beams": 2})
    report = run_job(done, progress=lambda n, total: seen.append((n, total)))
    rows = rows_of(tmp_path / "out")
    assert [row["row"] for row in rows] == list(range(NUM_IMAGES + 1))
    assert [row["id"] for row in rows[:NUM_IMAGES]] == [f"r{k}" for k in range(NUM_IMAGES)]
    engine = triptych.load(folders["captioning"], precision="fp32")
    for number in (0, 4, 10):
        image = image_of(data, number)
        assert rows[number]["image"] == image and rows[number]["error"] is None
        assert rows[number]["caption"] == engine.caption(image, num_beams=2)
    assert rows[3]["caption"] is None and "there is no such file" in rows[3]["error"]
    assert rows[-1]["caption"] is None and "my.jsonl:6" in rows[-1]["error"]
    assert (report.num_rows, report.num_errors, report.num_before) == (12, 2, 0)
    assert seen == [(0, 12), (4, 12), (8, 12), (12, 12)]
    names = sorted(path.name for path in (tmp_path / "out").glob("[!.]*"))
    assert names == ["_job.json", *(f"part-{k:06d}.parquet" for k in range(3))]


@pytest.mark.parametrize(
    ("model", "verb", "options", "columns"),
    [
        ("vqa", "answer", {}, {"question": pa.string(), "answer": pa.string()}),
        ("grounding", "ground", {}, {"box_xyxy": pa.list_(pa.float64())}),
        ("vlmo", "match", {}, {"text": pa.string(), "probability": pa.float64()}),
        ("vlmo", "embed", {}, {"embedding": pa.list_(pa.float32())}),
        ("vlmo", "embed_text", {}, {"embedding": pa.list_(pa.float32())}),
        ("vlmo", "classify", {"labels": ["star", "circle"]}, {"labels": None}),
        ("entailment", "entail", {}, {"label": pa.string(), "probabilities": None}),
        ("segmentation", "segment", {"mask": True}, {"mask_png": pa.binary(), "shares": None}),
    ],
)
def test_every_verb_has_its_columns(folders, data, tmp_path, model, verb, options, columns):
    run_job(job(folders[model], data, tmp_path, verb, options=options, limit=3))
    table = pq.read_table(tmp_path)
    assert table.num_rows == 3 and table.column("error").null_count == 3
    for name, kind in columns.items():
        assert table.column(name).null_count == 0
        if kind is not None:
            assert table.schema.field(name).type.equals(kind)
    engine, row = triptych.load(folders[model], precision="fp32"), table.to_pylist()[1]
    image = image_of(data, 1)
    if verb == "answer":
        assert row["answer"] == engine.answer(image, row["question"], ocr_words="a red")
    if verb == "match":
        expected = engine.match(image, "a red circle")
        assert row["probability"] == pytest.approx(expected, abs=1e-5)
    if verb == "embed":
        np.testing.assert_allclose(row["embedding"], engine.embed_images(image), atol=1e-5)
    if verb == "classify":
        shares = engine.classify(image, ["star", "circle"])
        assert {one["name"]: one["value"] for one in row["labels"]} == pytest.approx(
            shares, abs=1e-5
        )


def test_drawn_captions_do_not_depend_on_parts_or_batches(folders, data, tmp_path):
    options = {"top_p": 0.9, "temperature": 3.0, "seed": 5}
    for name, sizes in {"a": (4, 3), "b": (5, 2), "c": (64, 32)}.items():
        part_rows, batch_size = sizes
        more = {"part_rows": part_rows, "batch_size": batch_size, "options": options}
        run_job(job(folders["captioning"], data, tmp_path / name, **more))
    first, *others = (rows_of(tmp_path / name) for name in "abc")
    assert all(other == first for other in others)
    assert len({row["caption"] for row in first}) > 5


def test_a_killed_job_does_the_rest_and_no_row_twice(folders, data, tmp_path):
    """Killed twice as soon as one more part is there; the rest of a part's file is removed."""
    whole, killed = (
        job(folders["captioning"], data, tmp_path / name, part_rows=2) for name in ("a", "b")
    )
    run_job(whole)
    command = [sys.executable, "-m", "triptych", "batch", "caption", str(folders["captioning"])]
    command += [str(data), "--out", str(killed.out), "--part-rows", "2", "--batch-size", "3"]
    command += ["--precision", "fp32", "--index", "never"]
    killed = replace(killed, source=replace(killed.source, index="never"))
    for _ in range(2):
        before = len(list(killed.out.glob("part-*")))
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            while len(list(killed.out.glob("part-*"))) <= before and process.poll() is None:
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
        (killed.out / ".part-000005.parquet.tmp1").write_bytes(b"PAR1")
    kept = {path.name: path.stat().st_mtime_ns for path in killed.out.glob("part-*")}
    report = run_job(killed)
    assert report.num_before == min(2 * len(kept), 12) >= 4
    assert rows_of(killed.out) == rows_of(whole.out)
    assert not list(killed.out.glob(".part-*"))
    now = {path.name: path.stat().st_mtime_ns for path in killed.out.glob("part-*")}
    assert kept.items() <= now.items()


def test_indexed_records_and_shards_give_the_same_rows(capsys, folders, data, tmp_path):
    """Of large data, records are rows of files on disk; of shards, images are slices of them."""
    plain, indexed = (job(folders["captioning"], data, tmp_path / name) for name in "ab")
    run_job(plain)
    run_job(replace(indexed, source=replace(indexed.source, index="always")))
    assert rows_of(indexed.out) == rows_of(plain.out)
    lines = data.read_text().splitlines()
    whole = data.with_name("whole.jsonl")
    whole.write_text("\n".join(line for line in lines if "{not" not in line and "r3" not in line))
    assert main(["data", "shard", str(whole), "--out", str(tmp_path / "shards")]) == 0
    capsys.readouterr()
    run_job(job(folders["captioning"], tmp_path / "shards", tmp_path / "c"))
    found = {row["id"]: row["caption"] for row in rows_of(tmp_path / "c")}
    expected = {row["id"]: row["caption"] for row in rows_of(plain.out) if row["error"] is None}
    assert sorted(found.values()) == sorted(expected.values())


def test_names_that_are_no_utf_8_are_written_as_escapes():
    """Such as those below a folder whose name is none: parquet holds no lone surrogates."""
    path = os.fsdecode(b"caf\xe9/a.png")
    table = table_of(VERBS["caption"], [Input(0, "a", (path,))], [{"error": f"{path}: is empty"}])
    assert table.column("image").to_pylist() == ["caf\\udce9/a.png"]
    assert table.column("error").to_pylist() == ["caf\\udce9/a.png: is empty"]


def test_a_finished_job_is_left_as_it_is(folders, data, tmp_path):
    done = job(folders["captioning"], data, tmp_path)
    run_job(done)
    before = {path: path.read_bytes() for path in tmp_path.glob("part-*")}
    notes = []
    report = run_job(done, tell=notes.append)
    assert report.num_before == report.num_rows == 12
    assert notes == ["12 of 12 rows are there from an earlier run"]
    assert before == {path: path.read_bytes() for path in tmp_path.glob("part-*")}


def test_a_changed_job_is_refused_with_what_changed(folders, data, tmp_path):
    own = tmp_path / "own.jsonl"
    lines = [json.loads(line) for line in data.read_text().splitlines()[:3]]
    content = [json.dumps(one | {"image": str(data.parent / one["image"])}) for one in lines]
    own.write_text("\n".join(content))
    first = job(folders["captioning"], own, tmp_path / "out", options={"num_beams": 2})
    run_job(first)
    vqa = {"model": folders["vqa"], "verb": "answer", "options": {}}
    for changed, message in (
        ({"options": {"num_beams": 3}}, "option num_beams was 2 and is 3"),
        ({"part_rows": 5}, "part_rows was 4 and is 5"),
        ({"limit": 2}, "limit was None and is 2; num_rows was 3 and is 2"),
        ({"source": DataSourceConfig(path=str(data))}, "my.jsonl is new"),
        (vqa, "the model .*captioning was another one.*verb was 'caption' and is 'answer'"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_job(replace(first, **changed))
    own.write_text("\n".join(content) + "\n")
    with pytest.raises(ConfigError, match=r"own\.jsonl was changed"):
        run_job(first)


def test_what_would_be_wrong_with_every_row_is_said_first(folders, data, tmp_path):
    judge = write_tiny_vlmo(tmp_path / "nlvr2", task=NLVR2Config())
    with pytest.raises(DataError, match="holds nothing to judge: 11 records, none with two images"):
        run_job(job(judge, data, tmp_path / "a", "judge"))
    with pytest.raises(DataError, match="no classes of its own"):
        run_job(job(folders["vlmo"], data, tmp_path / "b", "classify"))
    with pytest.raises(ConfigError, match="there is no verb 'captoin'; did you mean 'caption'"):
        job(folders["vlmo"], data, tmp_path, "captoin")
    other = tmp_path / "other"
    other.mkdir()
    pq.write_table(pa.table({"a": [1]}), other / "a.parquet")
    with pytest.raises(ConfigError, match=r"holds other files and no job"):
        run_job(job(folders["captioning"], data, other))


def test_the_command_prints_what_it_did(capsys, folders, data, tmp_path):
    arguments = ["batch", "caption", str(folders["captioning"]), str(data), "--out"]
    assert main([*arguments, str(tmp_path), "--part-rows", "8"]) == 0
    captured = capsys.readouterr()
    assert captured.out == (
        f"{tmp_path}: 12 rows (12 new)\n2 inputs could not be used: the column error says why\n"
    )
    assert "12 of 12 rows" in captured.err and "left" in captured.err
    assert main([*arguments, str(tmp_path), "--part-rows", "8", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"out": str(tmp_path), "num_rows": 12, "num_errors": 2, "num_before": 12}
    for more, message in (
        (["--labels", "a,b"], "--labels: `triptych batch caption` has no such option"),
        (["--ray-workers", "2"], "there is no --ray to run them on"),
        (["--part-rows", "0"], "part_rows = 0: must be at least 1"),
        (["--num-beams", "1000"], "num_beams = 1000: must be at most 256"),
    ):
        assert main([*arguments, str(tmp_path / "x"), *more]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("num_threads", [0, 3])
def test_reading_ahead_keeps_the_order_and_its_bound(num_threads):
    started = []

    def read(row):
        started.append(row)
        return row * row

    found = read_ahead(range(100), read, num_threads, 4)
    assert [next(found) for _ in range(10)] == [n * n for n in range(10)]
    assert len(started) <= 10 + 5
    found.close()
    assert len(started) <= 10 + 5
