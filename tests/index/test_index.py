import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.serving.tiny_folder import write_tiny_folder
from triptych import open_index
from triptych.cli.main import main
from triptych.core.errors import CapabilityError, ConfigError, DataError
from triptych.data.source import DataSourceConfig
from triptych.index import build as building
from triptych.index.approximate import (
    build_approximate,
    open_approximate,
    search_approximate,
)
from triptych.index.build import build_index
from triptych.index.exact import search_exact
from triptych.serving.loading import load_model

NUM_IMAGES = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_folder(tmp_path_factory.mktemp("model"), "pretraining", seed=3)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos" / "some"
    folder.mkdir(parents=True)
    for number in range(NUM_IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20 + number, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder.parent


def source(photos):
    return DataSourceConfig(path=str(photos))


def names(index):
    return [image.image.path.rpartition("/")[2] for image in index.images]


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}


def test_an_index_finds_each_image_by_itself(model, photos, tmp_path):
    report = build_index(load_model(model), source(photos), tmp_path / "index")
    assert (report.num_new, report.num_kept, report.num_dropped, report.num_bad) == (12, 0, 0, 0)
    index = open_index(tmp_path / "index")
    assert names(index) == [f"{n:02d}.png" for n in range(NUM_IMAGES)]
    assert [image.width_px for image in index.images] == list(range(20, 32))
    for image in index.images:
        best = index.search(image=image.image.path, top=2)
        assert best[0].image == image
        assert best[0].score == pytest.approx(1, abs=2e-3) and best[0].score > best[1].score


def test_the_files_are_open_formats(model, photos, tmp_path):
    loaded = load_model(model)
    build_index(loaded, source(photos), tmp_path / "index")
    told = (tmp_path / "index" / "README.md").read_text()
    assert str(model) in told and "12 images" in told
    lines = told.partition("```python\n")[2].partition("```")[0]
    found = {}
    code = lines.replace('"g0', f'"{tmp_path / "index"}/g0')
    exec(code, found)  # what the README shows
    vectors = np.array(found["vectors"]["vector"].to_pylist(), dtype=np.float32)
    engine = open_index(tmp_path / "index").engine
    paths = found["images"]["path"].to_pylist()
    np.testing.assert_allclose(vectors, engine.embed_images(paths), atol=2e-3)


def test_building_again_does_only_what_changed(model, photos, tmp_path):
    out = tmp_path / "index"
    build_index(load_model(model), source(photos), out)
    before = files_of(out)
    again = build_index(load_model(model), source(photos), out)
    assert (again.num_new, again.num_kept) == (0, 12)
    assert files_of(out) == before
    (photos / "some" / "03.png").unlink()
    Image.new("RGB", (9, 9), "red").save(photos / "some" / "04.png")
    Image.new("RGB", (8, 8), "blue").save(photos / "some" / "99.png")
    changed = build_index(load_model(model), source(photos), out)
    assert (changed.num_new, changed.num_kept, changed.num_dropped) == (2, 10, 2)
    index = open_index(out)
    assert names(index) == [f"{n:02d}.png" for n in (0, 1, 2, *range(4, 12), 99)]
    assert index.search(image=photos / "some" / "04.png", top=1)[0].image.width_px == 9
    assert len(list(out.glob("g0*"))) == 1 and not (out / ".building").exists()


class Killed(BaseException):
    pass


def test_a_killed_build_goes_on_and_leaves_the_old_index(model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "PART", 4)
    out, loaded = tmp_path / "index", load_model(model)
    (tmp_path / "aside").mkdir()
    held_back = sorted((photos / "some").iterdir())[2:]
    for path in held_back:
        shutil.move(path, tmp_path / "aside" / path.name)
    build_index(loaded, source(photos), out)
    for path in held_back:
        shutil.move(tmp_path / "aside" / path.name, path)

    def kill(done, total):
        assert total == 10
        if done > 8:
            raise Killed

    with pytest.raises(Killed):
        build_index(loaded, source(photos), out, local_batch_size=2, progress=kill)
    assert names(open_index(out)) == ["00.png", "01.png"]
    encoded = []
    report = build_index(
        loaded, source(photos), out, local_batch_size=2, progress=lambda *done: encoded.append(done)
    )
    assert encoded == [(2, 2)]  # two parts of four were saved
    assert (report.num_new, report.num_kept) == (10, 2)
    fresh = build_index(loaded, source(photos), tmp_path / "fresh")
    assert fresh.state.content_key == report.state.content_key
    one, other = open_index(out), open_index(tmp_path / "fresh")
    assert np.array_equal(np.concatenate(one._vectors), np.concatenate(other._vectors))


def test_another_model_is_refused_by_name(model, photos, tmp_path):
    out = tmp_path / "index"
    build_index(load_model(model), source(photos), out)
    other = write_tiny_folder(tmp_path / "other", "pretraining", seed=4)
    for call in (
        lambda: build_index(load_model(other), source(photos), out),
        lambda: open_index(out, model=other),
    ):
        with pytest.raises(ConfigError, match=f"built with the model {model}, and {other}"):
            call()
    moved = shutil.copytree(model, tmp_path / "moved")
    assert open_index(out, model=moved).search("a star", top=1)


def test_bad_images_are_listed_and_damage_is_named(model, photos, tmp_path):
    (photos / "some" / "bad.png").write_bytes(b"nothing")
    out = tmp_path / "index"
    with pytest.raises(DataError, match="max-bad-share"):
        build_index(load_model(model), source(photos), out)
    report = build_index(load_model(model), source(photos), out, max_bad_share=0.2)
    assert (report.state.num_images, report.num_bad) == (12, 1)
    assert "bad.png" in (out / "skipped.jsonl").read_text()
    vectors = next(out.glob("g0*/vectors.arrow"))
    vectors.write_bytes(vectors.read_bytes()[:100])
    with pytest.raises(DataError, match=r"vectors\.arrow cannot be read"):
        open_index(out)
    (out / "index.json").write_text("{")
    with pytest.raises(DataError, match=r"index\.json:1: not valid JSON"):
        open_index(out)
    with pytest.raises(ConfigError, match="holds no index"):
        open_index(tmp_path / "nowhere")


def test_a_folder_of_other_files_is_no_place_for_an_index(model, photos, tmp_path):
    out = tmp_path / "notes"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds notes\.txt and no index"):
        build_index(load_model(model), source(photos), out)


def test_captions_of_an_image_are_joined(model, photos, tmp_path):
    lines = [("00.png", "one"), ("01.png", "two"), ("00.png", "three"), ("00.png", "one")]
    data = tmp_path / "d.jsonl"
    data.write_text(
        "".join(json.dumps({"image": f"photos/some/{n}", "caption": c}) + "\n" for n, c in lines)
    )
    build_index(load_model(model), DataSourceConfig(path=str(data)), tmp_path / "index")
    found = open_index(tmp_path / "index").images
    assert [image.captions for image in found] == [("one", "three"), ("two",)]


def test_itm_orders_the_first_candidates(model, photos, tmp_path):
    build_index(load_model(model), source(photos), tmp_path / "index")
    index = open_index(tmp_path / "index")
    plain = index.search("a red circle", top=6)
    found = index.search("a red circle", top=4, rerank=6)
    matches = index.engine.match([h.image.image.path for h in plain], ["a red circle"] * 6)
    expected = sorted(zip(matches, plain), key=lambda pair: -pair[0])[:4]
    assert [hit.image for hit in found] == [hit.image for _, hit in expected]
    assert [hit.match for hit in found] == pytest.approx([match for match, _ in expected])
    gone = plain[0].image.image.path
    (photos / "some" / gone.rpartition("/")[2]).unlink()
    last = index.search("a red circle", top=6, rerank=6)[-1]
    assert (last.image.image.path, last.match) == (gone, None)


def test_wrong_questions_say_what_to_do(model, photos, tmp_path):
    build_index(load_model(model), source(photos), tmp_path / "index")
    index = open_index(tmp_path / "index")
    with pytest.raises(ConfigError, match="a text, an image, or both"):
        index.search()
    with pytest.raises(CapabilityError, match="with a text"):
        index.search(image=photos / "some" / "00.png", rerank=16)
    with pytest.raises(ConfigError, match="top = 0"):
        index.search("a", top=0)
    with pytest.raises(ConfigError, match="rerank = 4"):
        index.search("a star", rerank=4)


def test_both_together_lie_between(model, photos, tmp_path):
    build_index(load_model(model), source(photos), tmp_path / "index")
    index = open_index(tmp_path / "index")
    image = photos / "some" / "05.png"
    words, pixels = index.engine.embed_texts("a star"), index.engine.embed_images(image)
    both = (words + pixels) / np.linalg.norm(words + pixels)
    scores = {hit.image: hit.score for hit in index.search("a star", image=image, top=12)}
    for image, vector in zip(index.images, np.concatenate(index._vectors), strict=True):
        assert scores[image] == pytest.approx(float(vector.astype(np.float32) @ both), abs=1e-5)


@pytest.mark.parametrize("top", [1, 7, 50])
def test_exact_search_equals_numpy_with_ties_in_order(top, monkeypatch):
    monkeypatch.setattr("triptych.index.exact.TILE", 4)
    monkeypatch.setattr("triptych.index.exact.BLOCK", 8)
    rng = np.random.default_rng(0)
    vectors = rng.integers(-2, 3, (50, 6)).astype(np.float16)  # many equal scores
    queries = rng.integers(-2, 3, (5, 6)).astype(np.float32)
    scores, numbers = search_exact([vectors[:13], vectors[13:]], torch.from_numpy(queries), top)
    products = queries @ vectors.astype(np.float32).T
    order = np.argsort(-products, axis=1, kind="stable")[:, :top]
    if top == 50:
        assert np.array_equal(numbers, order)
    assert np.array_equal(scores, np.take_along_axis(products, order, 1))
    assert np.array_equal(np.take_along_axis(products, numbers, 1), scores)


@pytest.mark.parametrize("number", [1, 4, 5, 20])
def test_few_and_many_queries_find_the_same_among_close_vectors(number):
    rng = np.random.default_rng(number)
    centre = rng.normal(size=64)
    vectors = centre + 0.02 * rng.normal(size=(3000, 64))  # products that differ in the 4th digit
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    vectors[7] = vectors[2900] = vectors[1500]
    queries = vectors[1500:1501] + 0.01 * rng.normal(size=(number, 64))
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    scores, numbers = search_exact([vectors[:999], vectors[999:]], torch.from_numpy(queries), 40)
    products = queries @ vectors.astype(np.float32).T
    assert np.allclose(scores, -np.sort(-products, axis=1)[:, :40], atol=1e-6)
    assert np.allclose(np.take_along_axis(products, numbers, 1), scores, atol=1e-6)
    assert np.any(np.diff(np.sort(products.astype(np.float16), axis=1)[:, -40:]) == 0)  # rounded


def test_the_faiss_index_finds_nearly_what_exact_search_finds(tmp_path):
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(3000, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    parts = [vectors[:1000].astype(np.float16), vectors[1000:].astype(np.float16)]
    method, recall = build_approximate(parts, tmp_path / "v.faiss")
    assert "HNSW32" in method and 0.9 < recall <= 1
    queries = torch.from_numpy(vectors[:64])
    _, found = search_approximate(open_approximate(tmp_path / "v.faiss"), queries, 10)
    _, exact = search_exact(parts, queries, 10)
    shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact)])
    assert shared > 0.9
    (tmp_path / "v.faiss").write_bytes(b"no index")
    with pytest.raises(DataError, match="cannot be read"):
        open_approximate(tmp_path / "v.faiss")


def test_commands_build_search_and_write_a_page(model, photos, tmp_path, capsys):
    out = str(tmp_path / "index")
    assert main(["index", str(model), str(photos), "--out", out, "--method", "approximate"]) == 0
    said = capsys.readouterr().out
    assert "12 images (12 new, 0 kept, 0 dropped)" in said and "of the exact first 10" in said
    (photos / "some" / "00.png").unlink()
    page = tmp_path / "found.html"
    asked = ["search", out, "a <b>star</b>", "--top", "12", "--html", str(page)]
    assert main(asked) == 0
    assert len(capsys.readouterr().out.splitlines()) == 12
    text = page.read_text()
    assert "a &lt;b&gt;star&lt;/b&gt;" in text and "<b>star" not in text
    assert text.count("data:image/jpeg;base64,") == 11 and "can no longer be read" in text
    assert main(["search", out, "--image", str(photos / "some" / "01.png"), "--json"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first["path"] == str(photos / "some" / "01.png") and first["match"] is None
    assert main(["search", out]) == 2
    assert "give a text, an image, or both" in capsys.readouterr().err


def test_the_table_and_the_vectors_say_what_they_hold(model, photos, tmp_path):
    build_index(load_model(model), source(photos), tmp_path / "index")
    table = pq.read_table(next((tmp_path / "index").glob("g0*/images.parquet")))
    assert table.num_rows == NUM_IMAGES and "captions" in table.column_names
    path = next((tmp_path / "index").glob("g0*/vectors.arrow"))
    with pa.memory_map(str(path)) as file:
        schema = pa.ipc.open_file(file).schema
    assert schema.field("vector").type.value_type == pa.float16()
