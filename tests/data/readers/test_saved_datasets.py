"""Files of Hugging Face's datasets, each against what the library itself reads from it."""

import io
import json
import shutil

import datasets
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from triptych.cli.main import main
from triptych.core.errors import DataError
from triptych.data.formats import recognise
from triptych.data.manifest import DataSourceConfig, read_records
from triptych.data.records import shard_sizes
from triptych.data.tables import open_table

CLASSES = ("cat", "dog", "a fish")
ROWS = 10


def read(path, **fields):
    return read_records(DataSourceConfig(path=str(path), **fields))


def noise(number, mode="RGB"):
    shape = (24, 32) if mode == "L" else (24, 32, 3)
    return Image.fromarray(np.random.default_rng(number).integers(0, 9, shape, dtype=np.uint8))


def pixels(source):
    return np.asarray(Image.open(io.BytesIO(source.read())))


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """Images as values and as files, lists of captions, classes, masks: some of them empty."""
    datasets.disable_progress_bars()
    image = tmp_path_factory.mktemp("images") / "three.png"
    noise(3).save(image)
    features = datasets.Features(
        image=datasets.Image(),
        caption=datasets.List(datasets.Value("string")),
        label=datasets.ClassLabel(names=list(CLASSES)),
        mask=datasets.Image(),
        question=datasets.Value("string"),
        box=datasets.List(datasets.Value("float32"), length=4),
        phrase=datasets.Value("string"),
        photographer=datasets.Value("string"),
    )
    columns = {
        "image": [str(image) if i == 3 else noise(i) for i in range(ROWS)],
        "caption": [[f"caption {i}.{n}" for n in range(1 + i % 2)] for i in range(ROWS)],
        "label": [i % 3 for i in range(ROWS)],
        "mask": [None if i == 4 else noise(i, "L") for i in range(ROWS)],
        "question": [None if i % 2 else f"what is {i}?" for i in range(ROWS)],
        "box": [[1.0, 2.0, 3.0, 4.0 + i] for i in range(ROWS)],
        "phrase": [f"the thing {i}" for i in range(ROWS)],
        "photographer": ["me"] * ROWS,
    }
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture(scope="module")
def saved(pets, tmp_path_factory):
    """All forms of one dataset by name: how it was written, and how datasets reads it back."""
    folder = tmp_path_factory.mktemp("saved")
    pets.to_parquet(folder / "pets.parquet", batch_size=3)
    pets.save_to_disk(folder / "one")
    pets.save_to_disk(folder / "three", num_shards=3)
    parts = datasets.DatasetDict(train=pets.select([7, 1, 2, 5]), test=pets.select(range(3)))
    parts.save_to_disk(folder / "splits", num_shards={"train": 2, "test": 1})
    for name, part in parts.items():  # as push_to_hub names them
        part.to_parquet(folder / f"hub/data/{name}-00000-of-00001.parquet")
    return folder


def expected(rows):
    """Return (caption, class, image, mask, question, box) of each caption of datasets' rows."""
    for row in rows:
        mask = None if row["mask"] is None else np.asarray(row["mask"])
        for caption in row["caption"]:
            image = np.asarray(row["image"])
            yield caption, CLASSES[row["label"]], image, mask, row["question"], tuple(row["box"])


def assert_same(records, rows):
    wanted = list(expected(rows))
    assert len(records) == len(wanted)
    for record, (caption, label, image, mask, question, box) in zip(records, wanted, strict=True):
        assert (record.caption, record.label) == (caption, label)
        assert (record.question, record.box) == (question, box)
        assert np.array_equal(pixels(record.image), image)
        assert (record.mask is None) == (mask is None)
        assert mask is None or np.array_equal(pixels(record.mask), mask)


@pytest.mark.parametrize("name", ["pets.parquet", "one", "three"])
@pytest.mark.parametrize("index", ["never", "always"])
def test_records_are_what_datasets_reads(saved, name, index):
    is_table = name.endswith("parquet")
    loaded = (
        datasets.Dataset.from_parquet(str(saved / name), cache_dir=str(saved / "cache"))
        if is_table
        else datasets.load_from_disk(saved / name)
    )
    source = DataSourceConfig(path=str(saved / name))
    assert recognise(source)[0].name == ("parquet" if is_table else "saved_dataset")
    found = read(saved / name, index=index)
    assert_same(found.records, loaded)
    assert len({record.record_id for record in found.records}) == len(found.records)
    assert len({record.image_id for record in found.records}) == ROWS and not found.skipped


@pytest.mark.parametrize("name", ["splits", "hub", "hub/data"])
def test_splits_are_chosen_by_name(saved, name):
    rows = datasets.load_from_disk(saved / "splits")
    for split in ("train", "test"):
        assert_same(read(saved / name, split=split).records, rows[split])
    whole = read(saved / name)
    assert len(whole.records) == sum(len(list(expected(rows[split]))) for split in rows)
    assert whole.parts == ("test", "train")
    with pytest.raises(DataError, match="no split 'tests'; did you mean 'test'"):
        read(saved / name, split="tests")


def test_a_dataset_may_know_its_split_and_paths_may_stand_for_bytes(pets, tmp_path):
    noise(5).save(tmp_path / "five.png")
    rows = [{"image": str(tmp_path / "five.png"), "caption": "five"}] * 2
    features = datasets.Features(image=datasets.Image(), caption=datasets.Value("string"))
    made = datasets.Dataset.from_list(rows, features=features, split="validation")
    made.save_to_disk(tmp_path / "one")  # bytes
    assert np.array_equal(
        pixels(read(tmp_path / "one", split="validation").records[0].image), np.asarray(noise(5))
    )
    with pytest.raises(DataError, match="no split 'test'"):
        read(tmp_path / "one", split="test")
    path, schema = tmp_path / "paths.arrow", made.data.table.schema  # as the cache keeps them
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as file:
        file.write_table(made.data.table)
    for record in read(path).records:
        assert record.image.path == str(tmp_path / "five.png") and record.image.member is None


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_lists_of_images_are_a_statements(tmp_path, form):
    features = datasets.Features(
        images=datasets.List(datasets.Image()),
        statement=datasets.Value("string"),
        label=datasets.ClassLabel(names=["False", "True"]),
    )
    images = [[noise(1), noise(2)], [], [noise(3), noise(4), noise(5)]]
    columns = {"images": images, "statement": ["one", "none", "two"], "label": [1, 0, 0]}
    made = datasets.Dataset.from_dict(columns, features=features)
    path = tmp_path / {"parquet": "a.parquet", "saved": "a"}[form]
    made.to_parquet(path) if form == "parquet" else made.save_to_disk(path)
    found = read(path)
    assert [(r.statement, r.label) for r in found.records] == [("one", True), ("two", False)]
    assert [s.message for s in found.skipped] == ["statement needs 'images', a list of two or more"]
    for record, number in zip(found.records, (0, 2), strict=True):
        assert len(record.images) == len(images[number])
        for image, known in zip(record.images, images[number], strict=True):
            assert np.array_equal(pixels(image), np.asarray(known))


def test_groups_are_record_batches_and_both_formats_of_arrow_are_read(saved, tmp_path):
    made = datasets.load_from_disk(saved / "three")
    sizes = shard_sizes(read(saved / "three").records)
    assert len(sizes) == 3 and sum(sizes) == len(list(expected(made)))
    path = tmp_path / "a.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, made.data.table.schema) as file:
        file.write_table(made.data.table, max_chunksize=2)
    assert open_table(str(path)).num_groups >= ROWS // 2
    assert_same(read(path).records, made)


def test_training_evaluation_and_the_index_take_a_folder(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = str(saved / "splits")
    assert main(["data", "check", data, "--split", "test"]) == 0
    short = ["--scale", "smoke", "--train.max-steps", "1", "--out", "run"]
    short += ["--train.global-batch-size", "4", "--train.micro-batch-size", "4"]
    assert main(["train", "mplug.pretrain", "--data", data, "--split", "train", *short]) == 0
    model = "run/model"
    assert main(["eval", model, "--task", "retrieval", "--data", data, "--split", "test"]) == 0
    assert main(["index", model, data, "--split", "train", "--out", "found"]) == 0
    assert "4 images" in capsys.readouterr().out


def test_the_list_of_formats_finds_it(saved, capsys):
    assert main(["data", "list", "saved_dataset", "--data", str(saved / "splits")]) == 0
    assert "a DatasetDict that was saved to disk: complete" in capsys.readouterr().out
    assert main(["data", "list", "saved_dataset", "--data", str(saved / "three")]) == 0
    assert "a Dataset that was saved to disk: complete" in capsys.readouterr().out


def cut(folder):
    path = folder / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:2000])


def change(**state):
    def write(folder):
        path = folder / "state.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | state))

    return write


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"data-00000-of-00001\.arrow"),
        (lambda folder: (folder / "state.json").write_text("{"), r"state\.json"),
        (lambda folder: (folder / "state.json").write_text("[]"), "expected an object"),
        (lambda folder: (folder / "data-00000-of-00001.arrow").unlink(), "data-00000"),
        (change(_data_files=[]), "names no Arrow files"),
        (change(_data_files=[{"filename": "../elsewhere.arrow"}]), "names no Arrow files"),
        (change(_indices_data_files=[{"filename": "i.arrow"}]), "chosen by a second file"),
    ],
)
def test_damage_is_named(saved, tmp_path, damage, message):
    shutil.copytree(saved / "one", tmp_path / "one")
    damage(tmp_path / "one")
    with pytest.raises(DataError, match=message):
        read(tmp_path / "one")


@pytest.mark.parametrize("splits", ["train", ["../one"], [3], None])
def test_a_wrong_list_of_splits_is_named(saved, tmp_path, splits):
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    with pytest.raises(DataError, match=r"dataset_dict\.json: must hold a list of splits"):
        read(tmp_path)


def test_an_offset_that_leads_out_of_the_file_is_an_error_not_a_crash(tmp_path):
    table = pa.table({"text": ["ab", "cd"]})
    path = tmp_path / "a.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as file:
        file.write_table(table)
    whole, far = np.array([0, 2, 4], dtype="<i4"), np.array([0, 2, 2**30], dtype="<i4")
    assert path.read_bytes().count(whole.tobytes()) == 1
    assert [record.text for record in read(path).records] == ["ab", "cd"]
    path.write_bytes(path.read_bytes().replace(whole.tobytes(), far.tobytes()))
    with pytest.raises(DataError, match=r"a\.arrow: is not an Arrow table"):
        read(path)
