"""The data doctor finds what was planted, and says nothing of sound data."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from triptych.cli.main import main
from triptych.data.check import CheckSettings, check_sources
from triptych.data.doctor.findings import FindingKind
from triptych.data.doctor.looks import Looks, look_at
from triptych.data.doctor.near import groups_of, near_pairs
from triptych.data.doctor.texts import meeting_share, script_of
from triptych.data.manifest import read_records
from triptych.data.source import DataSourceConfig


def photo(seed, width=160, height=120):
    """Return an image of smooth shapes, as photos are, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def compressed(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    return Image.open(buffer).convert("RGB")


def cropped(image, left=0.025, top=0.025, right=0.025, bottom=0.025):
    width, height = image.size
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    return image.crop(tuple(map(round, box)))


COPIES = {
    "resized": lambda image: image.resize((100, 75), Image.Resampling.BICUBIC),
    "compressed": compressed,
    "cropped": cropped,
    "cropped at a corner": lambda image: cropped(image, 0.05, 0.05, 0, 0),
    "mirrored": ImageOps.mirror,
}

LEAST = {"cropped at a corner": 18}  # of 20: it changes the hash the most


def looks_of(images):
    looks = Looks()
    for image in images:
        looks.add(look_at(np.asarray(image)))
    return looks


@pytest.mark.parametrize("name", COPIES)
def test_changed_copies_are_found_and_nothing_else(name):
    originals = [photo(seed) for seed in range(60)]
    copies = [COPIES[name](image) for image in originals[:20]]
    with looks_of([*originals, *copies]) as looks:
        found = near_pairs(looks).tolist()
        wanted = [[n, 60 + n] for n in range(20)]
        assert all(pair in wanted for pair in found) and len(found) >= LEAST.get(name, 20)
    with looks_of(originals) as looks, looks_of(copies) as others:
        assert near_pairs(looks, others).tolist() == [[n, m - 60] for n, m in found]


def test_groups_join_chains():
    pairs = np.array([[5, 7], [1, 2], [2, 9], [7, 8]])
    assert groups_of(pairs) == [[1, 2, 9], [5, 7, 8]]


def test_false_negatives_equal_what_batches_show():
    sizes = np.array([4, 4, 4, 4, 2, 2, *[1] * 14])
    group = np.array([0, 0, 0, 0, 1, 1, *range(2, 16)])
    rng, met, batch = np.random.default_rng(0), 0, 5
    for _ in range(4000):
        drawn = group[rng.permutation(20)[:batch]]
        met += sum(int((drawn == one).sum() > 1) for one in drawn)
    assert meeting_share(sizes, batch) == pytest.approx(met / (4000 * batch), abs=0.03)
    assert meeting_share([1, 1, 1], 3) == 0
    assert meeting_share([2, 2], 256) == 1


def test_scripts():
    assert script_of("a dog, 3 cats") == "LATIN"
    assert script_of("собака на пляже") == "CYRILLIC"
    assert script_of("海滩上的狗") == "CJK"
    assert script_of("12 !") is None


@pytest.fixture
def planted(tmp_path):
    """A dataset with one trouble of each kind, and a test split that shares an image with it."""
    entries = []

    def add(name, image, caption):
        image.save(tmp_path / name)
        entries.append({"image": name, "caption": caption})

    for seed in range(40):
        add(f"{seed}.png", photo(seed), f"{seed} things lie near number {seed * 7}")
    add("copy.png", photo(0), "copied whole")
    add("near.jpg", cropped(photo(1)), "cropped a little")
    add("blank.png", Image.new("RGB", (64, 64), (9, 9, 9)), "nothing here")
    add("tiny.png", photo(91, 20, 20), "a small thing")
    add("long.png", photo(92, 400, 100), "a wide thing")
    add("script.png", photo(93), "собака на пляже")
    add("words.png", photo(94), " ".join(f"word{n}" for n in range(31)))
    entries.append(entries[3])
    for seed in range(50, 75):
        add(f"{seed}.png", photo(seed), f"stock photo of thing {seed}")
    add("same.png", photo(95), "2 things lie near number 14")
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (tmp_path / "test").mkdir()
    compressed(photo(5)).save(tmp_path / "test" / "t.jpg")
    photo(200).save(tmp_path / "test" / "u.jpg")
    test = tmp_path / "test.jsonl"
    lines = [{"image": "test/t.jpg", "caption": "4 things lie near number 28"}]
    lines.append({"image": "test/u.jpg", "caption": "unseen"})
    test.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return path, test


def test_each_planted_trouble_is_found_with_its_records(planted):
    path, test = planted
    source, against = (DataSourceConfig(path=str(p)) for p in (path, test))
    report = check_sources([source], CheckSettings(against=(against,)))
    names = {
        finding.kind: {report.records[row].image.path.rsplit("/", 1)[1] for row in finding.rows}
        for finding in report.findings
    }
    assert names.pop(FindingKind.BOILERPLATE) >= {f"{seed}.png" for seed in range(50, 75)}
    assert names == {
        FindingKind.REPEATED_RECORD: {"3.png"},
        FindingKind.COPIED_IMAGE: {"copy.png"},
        FindingKind.NEAR_COPY: {"near.jpg"},
        FindingKind.LEAKED_IMAGE: {"5.png"},
        FindingKind.LEAKED_CAPTION: {"4.png"},
        FindingKind.BLANK_IMAGE: {"blank.png"},
        FindingKind.TINY_IMAGE: {"tiny.png"},
        FindingKind.EXTREME_SHAPE: {"long.png"},
        FindingKind.REPEATED_CAPTION: {"2.png", "same.png", "3.png"},
        FindingKind.OTHER_SCRIPT: {"script.png"},
        FindingKind.LONG_CAPTION: {"words.png"},
    }
    assert 0 < report.false_negatives <= 4 / len(report.records)
    said = "\n".join(report.lines())
    assert "1.png and " in said and "near.jpg" in said and "stock photo of" in said


def test_the_clean_manifest_has_nothing_left_to_remove(planted, tmp_path, capsys):
    path, test = planted
    clean, page = tmp_path / "clean.jsonl", tmp_path / "check.html"
    asked = ["data", "check", str(path), "--against", str(test), "--write", str(clean)]
    assert main([*asked, "--html", str(page)]) == 0
    lost = [
        json.loads(x) for x in (tmp_path / "clean.jsonl.excluded.jsonl").read_text().splitlines()
    ]
    assert {entry["image"].rsplit("/", 1)[1] for entry in lost} == {
        *("copy.png", "near.jpg", "5.png", "blank.png", "tiny.png", "script.png", "3.png")
    }
    kept = read_records(DataSourceConfig(path=str(clean))).records
    assert len(kept) + len(lost) == len(path.read_text().splitlines())
    assert f"{len(kept)} records" in capsys.readouterr().err
    assert main(["data", "check", str(clean), "--against", str(test)]) == 0
    said = capsys.readouterr().out
    assert "bytes as others" not in said and "images are also" not in said
    text = page.read_text()
    assert text.count("<section>") == 12 and 'src="data:image' in text and "http:" not in text


def test_flags_without_effect_are_refused(planted):
    path, _ = planted
    assert main(["data", "check", str(path), "--against-split", "test"]) == 2
    assert main(["data", "check", str(path), "--batch", "1"]) == 2
