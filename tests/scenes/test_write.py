import hashlib
import json
import subprocess
import sys
import tarfile
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tests.processes import children_of, runs
from triptych.core.errors import CapabilityError, ConfigError, DataError, TriptychError
from triptych.data.manifest import read_records
from triptych.data.masks import decode_mask
from triptych.data.source import DataSourceConfig
from triptych.scenes.config import PALETTE, SPLITS, SceneConfig
from triptych.scenes.layout import FORMATS, SceneFiles
from triptych.scenes.write import write_scenes

from .oracle import answer, entailment, is_true_of_two, referred

SIZES = {"train": 60, "val": 8, "test": 9, "compositional": 10}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes") / "world"
    return write_scenes(out, 60, num_val=8, num_test=9, num_compositional=10)


def read(path):
    return json.loads(path.read_text())


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def truth(files):
    """Ground truth of every image by image id."""
    return {t["image_id"]: t for split in SPLITS for t in read_lines(files.truth(split))}


def digests(folder):
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def test_every_image_of_every_split_is_there_and_shows_its_scene(files):
    assert len(truth(files)) == sum(SIZES.values())
    for split, size in SIZES.items():
        lines = read_lines(files.truth(split))
        assert len(lines) == size == len(list(files.split_images(split).iterdir()))
        for line in lines:
            image = np.asarray(Image.open(files.split_images(split) / line["file_name"]))
            assert image.shape == (64, 64, 3)
            for thing in line["objects"]:
                x, y, width, height = thing["box"]
                row, column = int(y + height / 2), int(x + width / 2)
                mean = image[row - 1 : row + 2, column - 1 : column + 2].mean(axis=(0, 1))
                gaps = {name: np.abs(mean - rgb).sum() for name, rgb in PALETTE.items()}
                assert min(gaps, key=gaps.__getitem__) == thing["color"]


def test_karpathy_and_official_captions_agree_with_the_truth(files):
    known = truth(files)
    karpathy = read(files.karpathy)
    assert Counter(image["split"] for image in karpathy["images"]) == SIZES
    for image in karpathy["images"]:
        assert (files.images / image["filepath"] / image["filename"]).is_file()
        raw = [sentence["raw"] for sentence in image["sentences"]]
        assert raw == known[image["cocoid"]]["captions"] and len(raw) == 2
        assert image["sentids"] == [sentence["sentid"] for sentence in image["sentences"]]
        assert all(s["imgid"] == image["imgid"] for s in image["sentences"])
        assert all("," not in "".join(s["tokens"]) for s in image["sentences"])
    sentence_ids = [s for image in karpathy["images"] for s in image["sentids"]]
    assert len(set(sentence_ids)) == len(sentence_ids)
    for split in SPLITS:
        official = read(files.coco_captions(split))
        names = {image["id"]: image["file_name"] for image in official["images"]}
        assert all((files.split_images(split) / name).is_file() for name in names.values())
        by_image = {}
        for line in official["annotations"]:
            by_image.setdefault(line["image_id"], []).append(line["caption"])
        assert by_image == {key: known[key]["captions"] for key in names}
        assert len({a["id"] for a in official["annotations"]}) == 2 * SIZES[split]


def test_vqa_answers_follow_from_the_truth(files):
    known = truth(files)
    for split in SPLITS:
        questions, annotations = (
            read(files.vqa_questions(split)),
            read(files.vqa_annotations(split)),
        )
        assert questions["data_subtype"] == split == annotations["data_subtype"]
        answers = {a["question_id"]: a for a in annotations["annotations"]}
        assert len(answers) == len(questions["questions"]) == 3 * SIZES[split]
        for question in questions["questions"]:
            name = f"COCO_{split}_{question['image_id']:012d}.jpg"
            assert (files.images / split / name).is_file()
            given = answers[question["question_id"]]
            right = answer(question["question"], known[question["image_id"]]["objects"])
            assert [a["answer"] for a in given["answers"]] == [right] * 10
            assert given["multiple_choice_answer"] == right
            assert given["answer_type"] in ("yes/no", "number", "other")


def test_every_reference_has_the_box_of_the_object_that_it_means(files):
    known = truth(files)
    instances = read(files.instances)
    boxes = {a["id"]: a for a in instances["annotations"]}
    names = {image["id"]: image["file_name"] for image in instances["images"]}
    categories = {c["id"]: c["name"] for c in instances["categories"]}
    refs = read(files.refs)
    assert {ref["image_id"] for ref in refs} == set(known)
    for ref in refs:
        assert names[ref["image_id"]] == ref["file_name"]
        assert (files.images / ref["file_name"]).is_file()
        assert ref["file_name"].startswith(f"{ref['split']}/")
        assert boxes[ref["ann_id"]]["image_id"] == ref["image_id"]
        for sentence in ref["sentences"]:
            (thing,) = referred(sentence["sent"], known[ref["image_id"]]["objects"])
            assert boxes[ref["ann_id"]]["bbox"] == thing["box"]
            assert categories[ref["category_id"]] == thing["shape"]


def test_statements_hold_for_the_two_images_that_they_name(files):
    by_pixels = {}
    for line in truth(files).values():
        image = Image.open(files.split_images(line["split"]) / line["file_name"])
        by_pixels[line["image_id"]] = (np.asarray(image).astype(float), line["objects"])

    def objects_of(path):
        image = np.asarray(Image.open(path)).astype(float)
        best = min(by_pixels.values(), key=lambda entry: np.abs(entry[0] - image).mean())
        assert np.abs(best[0] - image).mean() < 5  # the loss of JPEG
        return best[1]

    labels = Counter()
    for split in ("train", "test"):
        for line in read_lines(files.nlvr2(split)):
            stem = line["identifier"].rsplit("-", 1)[0]
            folder = files.nlvr2_images(split)
            left, right = (objects_of(folder / f"{stem}-img{side}.png") for side in (0, 1))
            assert line["label"] == str(is_true_of_two(line["sentence"], left, right))
            labels[line["label"]] += 1
    assert labels["True"] - labels["False"] in (0, 1)


def test_entailment_follows_from_the_image(files):
    by_name = {line["file_name"]: line for line in truth(files).values()}
    for split in SPLITS:
        lines = read_lines(files.snli_ve(split))
        assert len(lines) == SIZES[split]
        assert {line["gold_label"] for line in lines} == {"entailment", "neutral", "contradiction"}
        for line in lines:
            known = by_name[f"{line['Flickr30K_ID']}.jpg"]
            assert line["sentence1"] in known["captions"]
            assert line["gold_label"] == entailment(line["sentence2"], known["objects"])
        assert len({line["pairID"] for line in lines}) == len(lines)


def test_class_folders_hold_images_of_their_class(files):
    images = list(files.classes("train").rglob("*.jpg"))
    assert len(images) == 12
    for path in images:
        color, shape = path.parent.name.split("_")
        assert shape in SceneConfig().shapes
        image = np.asarray(Image.open(path)).astype(int)
        strong = np.ptp(image, axis=2) > 100 if color != "black" else image.max(axis=2) < 80
        assert strong.sum() > 25
        gaps = np.abs(image[strong].mean(axis=0) - PALETTE[color]).max()
        assert gaps < 40


def test_masks_show_the_shape_at_every_pixel(files):
    """Shapes without noise are told from the background by colour; a pixel is whole or mixed."""
    names = files.mask_names.read_text().split()
    assert names == ["background", *SceneConfig().shapes]
    for split, size in SIZES.items():
        records = read_records(DataSourceConfig(path=str(files.masks(split)),
                                                image_root=str(files.root))).records  # fmt: skip
        assert len(records) == size
        lines = read_lines(files.truth(split))
        for record, line in zip(records, lines, strict=True):
            assert record.image.path.endswith(line["file_name"])
            mask = decode_mask(record.mask)
            assert set(np.unique(mask)) == {0} | {names.index(o["shape"]) for o in line["objects"]}
            pixels = np.asarray(Image.open(record.image.path)).astype(int)
            boxes = np.zeros(mask.shape, dtype=bool)
            for thing in line["objects"]:
                x, y, width, height = thing["box"]
                inside = np.s_[int(y) : int(y + height) + 1, int(x) : int(x + width) + 1]
                boxes[inside] = True
                near = np.abs(pixels[inside] - PALETTE[thing["color"]]).max(axis=2)
                pale = np.ptp(pixels[inside], axis=2) <= 60 if thing["color"] != "black" else (
                    pixels[inside].min(axis=2) > 120)  # fmt: skip
                shown = mask[inside] == names.index(thing["shape"])
                assert shown[near <= 24].mean() > 0.97
                assert (mask[inside] > 0)[pale & (near > 120)].sum() <= 3
            assert not mask[~boxes].any()


def test_shards_hold_the_same_bytes_as_the_files(files):
    members = {}
    for path in sorted(files.shards("test").glob("*.tar")):
        with tarfile.open(path) as shard:
            for member in shard.getmembers():
                assert (member.mtime, member.uid, member.uname) == (0, 0, "")
                members[member.name] = shard.extractfile(member).read()
    assert sorted(p.name for p in files.shards("test").iterdir()) == ["000000.tar"]
    assert len(members) == 3 * SIZES["test"]
    for line in read_lines(files.truth("test")):
        key = f"{line['image_id']:012d}"
        image = files.split_images("test") / line["file_name"]
        assert members[f"{key}.jpg"] == image.read_bytes()
        assert members[f"{key}.txt"].decode() == line["captions"][0]
        assert json.loads(members[f"{key}.json"]) == line


def test_the_corpus_is_one_sentence_a_line(files):
    lines = files.corpus.read_text().splitlines()
    assert len(lines) == 60
    assert all(line.strip() == line and len(line.split()) >= 3 for line in lines)


def test_any_number_of_workers_gives_the_same_bytes(files, tmp_path):
    sizes = {"num_val": 8, "num_test": 9, "num_compositional": 10}
    write_scenes(tmp_path / "again", 60, num_workers=2, **sizes)
    assert digests(tmp_path / "again") == digests(files.root)


def test_another_seed_gives_other_images(files, tmp_path):
    other = write_scenes(
        tmp_path, 3, num_val=0, num_test=0, num_compositional=0, config=SceneConfig(seed=1)
    )
    ours, theirs = digests(files.images), digests(other.images)
    assert len(theirs) == 3
    assert not set(ours.values()) & set(theirs.values())


def test_formats_left_out_are_not_written(tmp_path):
    files = write_scenes(tmp_path / "w", 10, formats=("captions",))
    found = {path.name for path in files.root.iterdir()}
    assert found == {"images", "captions", "scenes", "dataset.json"}
    counts = {"train": 10, "val": 8, "test": 8, "compositional": 8, "clips": 0}
    assert read(files.summary)["counts"] == counts


def test_progress_is_told_to_the_end(tmp_path):
    calls = []
    write_scenes(
        tmp_path, 300, num_val=0, num_test=0, num_compositional=0, formats=(),
        progress=lambda *call: calls.append(call),
    )  # fmt: skip
    painting = [call for call in calls if call[0] == "painting train"]
    assert painting == [("painting train", 250, 300), ("painting train", 300, 300)]


def test_clips_are_written_as_msrvtt_only_when_asked(tmp_path):
    files = write_scenes(tmp_path / "w", 5, formats=(), num_clips=5)
    info = read(files.clips)
    splits = Counter(video["split"] for video in info["videos"])
    assert splits == {"train": 5, "validate": 1, "test": 1, "compositional": 1}
    ids = {video["video_id"] for video in info["videos"]}
    assert all((files.videos / f"{name}.mp4").stat().st_size > 500 for name in ids)
    assert Counter(s["video_id"] for s in info["sentences"]) == dict.fromkeys(ids, 2)
    for split in SPLITS:
        for line in read(files.clip_questions(split)):
            assert f"video{line['video_id']}" in ids and line["question"].endswith("?")
    again = write_scenes(tmp_path / "v", 5, formats=(), num_clips=5)
    assert digests(files.root) == digests(again.root)


def test_clips_without_pyav_fail_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(CapabilityError, match=r"triptych\[video\]"):
        write_scenes(tmp_path / "w", 5, num_clips=1)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (SceneConfig(image_size=65), "image_size = 65: must be even"),
        (
            SceneConfig(small_diameter=(0.6, 0.61), large_diameter=(0.75, 0.79)),
            "no room to move|lower large_diameter",
        ),
    ],
)
def test_clips_that_cannot_be_made_fail_before_anything_is_painted(tmp_path, config, named):
    with pytest.raises(TriptychError, match=named):
        write_scenes(tmp_path / "w", 5, num_clips=1, config=config)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"formats": ("caption",)}, "did you mean 'captions'"),
        ({"num_images": 0}, "0 images for train"),
        ({"num_val": -1}, "-1 images for val"),
        ({"num_workers": 0}, "num_workers = 0"),
        ({"num_clips": -1}, "num_clips = -1"),
        ({"questions_per_image": 0}, "questions_per_image = 0"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path, change, named):
    with pytest.raises(ConfigError, match=named):
        write_scenes(tmp_path, **{"num_images": 5, **change})


@pytest.mark.parametrize("exists", [False, True])
def test_a_call_that_was_interrupted_leaves_nothing_in_the_way(tmp_path, exists):
    out = tmp_path / "scenes"
    if exists:
        out.mkdir()

    def interrupt(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(out, 5, progress=interrupt)
    assert list(tmp_path.iterdir()) == ([out] if exists else [])
    killed = tmp_path / ".scenes.unfinished"  # kill -9 leaves it
    killed.mkdir()
    (killed / "images").write_text("half")
    files = write_scenes(out, 5)
    assert files.root == out
    assert files.summary.is_file()
    assert files.images.is_dir()
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_painters_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "from pathlib import Path\n"
        "from triptych.scenes.write import write_scenes\n"
        f"out = Path({str(tmp_path / 'scenes')!r})\n"
        "if __name__ == '__main__':\n"
        "    write_scenes(out, 20_000, num_workers=2, formats=('captions',))\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    images = tmp_path / ".scenes.unfinished" / "images" / "train"
    while not (images.is_dir() and any(images.iterdir())):
        assert parent.poll() is None
        time.sleep(0.05)
    workers = children_of(parent.pid)
    assert len(workers) >= 2
    parent.kill()
    parent.wait()
    while any(runs(worker) for worker in workers):
        time.sleep(0.05)


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        write_scenes(tmp_path, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_list_of_formats_is_complete(files):
    assert isinstance(files, SceneFiles)
    assert read(files.summary)["formats"] == list(FORMATS)
