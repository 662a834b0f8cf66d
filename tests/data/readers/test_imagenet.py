"""ImageNet's folders and flat validation images, and the names of its classes."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.data.mat_files import write_mat
from triptych.core.errors import DataError
from triptych.data.class_names import check_names, load_class_names
from triptych.data.manifest import read_records
from triptych.data.source import DataSourceConfig

TENCH, SHARK, CRANE, MACHINE = "n01440764", "n01484850", "n02012849", "n03126707"


def read(path, split=None, **options):
    return read_records(DataSourceConfig(path=str(path), split=split, **options))


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, "JPEG")


@pytest.fixture
def root(tmp_path):
    for part, number in (("train", 1), ("val", 2)):
        for own_id in (TENCH, SHARK):
            image(tmp_path / f"imagenet/{part}/{own_id}/{own_id}_{number}.JPEG")
    return tmp_path / "imagenet"


def labels(found):
    return [record.label for record in found.records]


NAMES = {
    "classnames.txt": f"{TENCH} tench\n{SHARK} great white shark\n",
    "LOC_synset_mapping.txt": (
        f"{TENCH} tench, Tinca tinca\n{SHARK} great white shark, white shark, man-eater\n"
    ),
    "imagenet_class_index.json": json.dumps(
        {"0": [TENCH, "tench"], "2": [SHARK, "great_white_shark"]}
    ),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", [".", "..", "val"])
def test_names_are_found_beside_the_folders(root, name, place):
    (root / place / name).write_text(NAMES[name])
    found = read(root, "val")
    assert labels(found) == ["tench", "great white shark"]
    assert found.records[0].record_id == f"{TENCH}/{TENCH}_2.JPEG"
    assert labels(read(root / "val")) == ["tench", "great white shark"]


def test_names_are_named(root, tmp_path):
    (root / "classnames.txt").write_text(f"{TENCH} a\n{SHARK} b\n")
    (tmp_path / "own.txt").write_text(f"{SHARK}\tmy shark\n{TENCH}\tmy tench, mine\n")
    found = read(root, "train", class_names=str(tmp_path / "own.txt"))
    assert labels(found) == ["my tench", "my shark"]


def test_without_a_split_all_parts_are_read_and_none_is_a_class(root):
    (root / "classnames.txt").write_text(NAMES["classnames.txt"])
    found = read(root)
    assert found.parts == ("train", "val")
    assert labels(found) == ["tench", "great white shark"] * 2
    assert len({record.record_id for record in found.records}) == 4
    with pytest.raises(DataError, match="no split 'vla'"):
        read(root, "vla")


def test_without_names_the_ids_stay_and_zero_shot_asks_for_a_file(root):
    found = read(root, "val")
    assert labels(found) == [TENCH, SHARK]
    with pytest.raises(DataError, match=r"n01440764.*classnames\.txt.*--class-names FILE"):
        check_names(labels(found))
    check_names(["tench", 3, None])


def test_an_index_is_made_again_when_the_names_change(root, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    assert labels(read(root, "val", index="always")) == [TENCH, SHARK]
    (root / "classnames.txt").write_text(NAMES["classnames.txt"])
    assert labels(read(root, "val", index="always")) == ["tench", "great white shark"]
    (root / "classnames.txt").write_text(f"{TENCH} one\n{SHARK} two\n")
    assert labels(read(root, "val", index="always")) == ["one", "two"]
    own = tmp_path / "own.txt"
    own.write_text(f"{TENCH} three\n{SHARK} four\n")
    assert labels(read(root, "val", index="always", class_names=str(own))) == ["three", "four"]
    own.write_text(f"{TENCH} three of them\n{SHARK} four\n")
    again = read(root, "val", index="always", class_names=str(own))
    assert labels(again) == ["three of them", "four"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{TENCH} tench\n", rf"no name for the class '{SHARK}'.*add a line"),
        (f"{TENCH} tench\n{SHARK}\n", r"classnames\.txt:2: .* has no name"),
        (f"{TENCH} fish\n{SHARK} fish\n", f"{TENCH} and {SHARK} are both called 'fish'"),
        (f"{TENCH} a\n{TENCH} b\n", "has two names"),
        ("\n", "holds no class"),
        (b"\xff\xfe\x00", "UTF-16"),
        (b"n01440764 \xe9\n", "not UTF-8"),
    ],
)
def test_broken_files_of_names(root, content, message):
    path = root / "classnames.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        read(root, "val")


@pytest.mark.parametrize("content", ["[1]", '{"0": 3}', '{"0": ["a"]}', "{", "{}"])
def test_broken_json_of_names(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.json"):
        load_class_names(tmp_path / "a.json")


def test_classes_of_one_name_are_told_apart(tmp_path):
    path = tmp_path / "a.txt"
    lines = (f"{CRANE} crane", f"{MACHINE} crane", "n03710637 maillot",
             "n03710721 maillot, tank suit", "n00000001 ear, spike", "n00000002 ear")  # fmt: skip
    path.write_text("\n".join(lines))
    assert list(load_class_names(path).values()) == [
        *("crane bird", "construction crane", "maillot tights", "maillot swimsuit"),
        *("ear, spike", "ear"),
    ]


FLAT = "ILSVRC2012_val_0000000{}.JPEG"


@pytest.fixture
def flat(tmp_path):
    for number in (1, 2, 3):
        image(tmp_path / "ILSVRC/Data/CLS-LOC/val" / FLAT.format(number))
    return tmp_path / "ILSVRC/Data/CLS-LOC/val"


def test_kaggle_s_copy(flat, tmp_path):
    (tmp_path / "LOC_synset_mapping.txt").write_text(NAMES["LOC_synset_mapping.txt"])
    rows = [f"{FLAT.format(n)[:-5]},{own} 1 2 3 4 " for n, own in ((2, TENCH), (1, SHARK))]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]))
    found = read(flat)
    assert labels(found) == ["great white shark", "tench"]
    assert [entry.kind.value for entry in found.skipped] == ["bad_label"]
    assert labels(read(flat.parent, "val")) == ["great white shark", "tench"]
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\na,b\n")
    with pytest.raises(DataError, match=r"LOC_val_solution\.csv:2: 'a,b' is not an image and a"):
        read(flat)


def test_the_development_kit(flat, tmp_path):
    kit = tmp_path / "ILSVRC/ILSVRC2012_devkit_t12/data"
    kit.mkdir(parents=True)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("490\n361\n490\n")
    with pytest.raises(DataError, match=r"meta\.mat says what they mean"):
        read(flat)
    entries = [(490, TENCH, "tench, Tinca tinca"), (361, SHARK, "great white shark"),
               (1001, "n00001740", "great white shark")]  # fmt: skip
    synsets = [
        {"ILSVRC2012_ID": np.uint16(n), "WNID": own, "words": words, "gloss": "g"}
        for n, own, words in entries
    ]
    write_mat(kit / "meta.mat", {"synsets": synsets})
    assert labels(read(flat)) == ["tench", "great white shark", "tench"]
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("490\n1002\n490\n")
    with pytest.raises(DataError, match=r"ground_truth\.txt:2: '1002' is no class"):
        read(flat)
    write_mat(kit / "meta.mat", {"other": synsets})
    with pytest.raises(DataError, match="holds no 'synsets'"):
        read(flat)


def test_flat_images_without_classes(flat):
    assert labels(read(flat)) == [None, None, None]


def test_class_names_serve_any_labels(tmp_path):
    for number in (3, 12):
        image(tmp_path / f"own/{number}/a.jpg")
    (tmp_path / "names.json").write_text('{"3": "three, or so", "12": "twelve"}')
    found = read(tmp_path / "own", class_names=str(tmp_path / "names.json"))
    assert labels(found) == ["twelve", "three, or so"]
    (tmp_path / "texts.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match="no record has a label: omit class_names"):
        read(tmp_path / "texts.txt", class_names=str(tmp_path / "names.json"))
    with pytest.raises(DataError, match=r"absent\.txt: there is no such file"):
        read(tmp_path / "own", class_names=str(tmp_path / "absent.txt"))


def test_a_folder_of_one_class_of_wordnet_is_no_own_class_folder(tmp_path):
    image(tmp_path / f"{TENCH}/a.JPEG")
    assert labels(read(tmp_path)) == [TENCH]
    image(tmp_path / "own/cat/a.jpg")
    assert labels(read(tmp_path / "own")) == ["cat"]
