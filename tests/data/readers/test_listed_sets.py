"""Class sets whose splits and classes stand in files: each in its own layout, and broken."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.data.mat_files import write_mat
from triptych.core.errors import DataError
from triptych.data.formats import FORMATS
from triptych.data.images import decode_image
from triptych.data.manifest import read_records
from triptych.data.source import DataSourceConfig


def read(path, split=None, **options):
    return read_records(DataSourceConfig(path=str(path), split=split, **options))


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def food101(root):
    text(root / "meta/train.txt", "apple_pie/1005649", "baklava/1")
    text(root / "meta/test.txt", "apple_pie/2")
    for name in ("apple_pie/1005649", "baklava/1", "apple_pie/2"):
        image(root / f"images/{name}.jpg")


def flowers102(root):
    root.mkdir()
    write_mat(root / "imagelabels.mat", {"labels": np.array([[77, 1, 102]], dtype=np.uint8)})
    ids = {"trnid": [[2]], "valid": [[3]], "tstid": [[1]]}
    write_mat(root / "setid.mat", {k: np.array(v, dtype=np.uint16) for k, v in ids.items()})
    for number in (1, 2, 3):
        image(root / f"jpg/image_{number:05d}.jpg")


def pets(root):
    text(root / "annotations/trainval.txt", "Abyssinian_100 1 1 1", "american_bulldog_12 2 2 1")
    text(root / "annotations/test.txt", "Abyssinian_2 1 1 1")
    for name in ("Abyssinian_100", "american_bulldog_12", "Abyssinian_2"):
        image(root / f"images/{name}.jpg")


def cars(root):
    (root / "devkit").mkdir(parents=True)
    names = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]
    write_mat(root / "devkit/cars_meta.mat", {"class_names": names})
    box = {f"bbox_{k}": np.uint8(1) for k in ("x1", "y1", "x2", "y2")}
    train = [box | {"class": np.uint8(n), "fname": f"0000{n}.jpg"} for n in (1, 2)]
    write_mat(root / "devkit/cars_train_annos.mat", {"annotations": train})
    write_mat(root / "devkit/cars_test_annos.mat", {"annotations": [box | {"fname": "00001.jpg"}]})
    test = [box | {"class": np.uint8(2), "fname": "00001.jpg"}]
    write_mat(root / "cars_test_annos_withlabels.mat", {"annotations": test})
    for name in ("cars_train/00001.jpg", "cars_train/00002.jpg", "cars_test/00001.jpg"):
        image(root / name)


def aircraft(root):
    for part, line in (("train", "1 707-320"), ("val", "2 747-400"), ("test", "3 707-320")):
        text(root / f"data/images_variant_{part}.txt", line)
    text(root / "data/images_variant_trainval.txt", "1 707-320", "2 747-400")
    text(root / "data/images_family_test.txt", "3 Boeing 707")
    for number in (1, 2, 3):
        image(root / f"data/images/{number}.jpg")


def dtd(root):
    for part, line in (("train", "banded/banded_1"), ("val", "dotted/dotted_1"),
                       ("test", "banded/banded_2")):  # fmt: skip
        text(root / f"labels/{part}1.txt", f"{line}.jpg")
        image(root / f"images/{line}.jpg")
    text(root / "labels/test7.txt", "dotted/dotted_1.jpg")


def sun397(root):
    text(root / "Training_01.txt", "/a/abbey/sun_a.jpg", "/a/apartment_building/outdoor/sun_b.jpg")
    text(root / "Testing_01.txt", "/a/abbey/sun_c.jpg")
    for name in ("a/abbey/sun_a", "a/apartment_building/outdoor/sun_b", "a/abbey/sun_c"):
        image(root / f"{name}.jpg")


HEADER = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"


def gtsrb(root):
    for number in (0, 14):
        folder = root / f"Final_Training/Images/{number:05d}"
        row = f"00000_00000.ppm;29;30;5;6;24;25;{number}"
        text(folder / f"GT-{number:05d}.csv", HEADER, row)
        image(folder / "00000_00000.ppm")
    text(root / "GT-final_test.csv", HEADER, "00000.ppm;53;54;6;5;48;49;14")
    image(root / "Final_Test/Images/00000.ppm")


def kitti(root):
    def line(kind, depth):
        return f"{kind} 0.00 0 -0.20 712.40 143.00 810.73 307.92 1.89 0.48 1.20 1.84 1.47 {depth} 0"

    for number, lines in enumerate([
        [line("Car", 30.5), line("Pedestrian", 3.0)],
        [line("Van", 8.0), line("DontCare", -1000)],
        [line("Truck", 8.1)],
        [line("Cyclist", 5.0)],
    ]):  # fmt: skip
        text(root / f"training/label_2/{number:06d}.txt", *lines)
        image(root / f"training/image_2/{number:06d}.png")
    text(root / "ImageSets/val.txt", "000002")


def clevr(root):
    for part, count in (("train", 3), ("val", 10)):
        name = f"CLEVR_{part}_000000.png"
        scene = {"image_filename": name, "objects": [{"shape": "cube"}] * count}
        text(root / f"scenes/CLEVR_{part}_scenes.json", json.dumps({"info": {}, "scenes": [scene]}))
        image(root / f"images/{part}/{name}")


def ucf101(root):
    text(root / "ucfTrainTestlist/trainlist01.txt", "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1")
    text(root / "ucfTrainTestlist/testlist01.txt", "YoYo/v_YoYo_g01_c01.avi")
    image(root / "UCF-101-midframes/Apply_Eye_Makeup/v_ApplyEyeMakeup_g08_c01.jpg")
    image(root / "UCF-101/YoYo/v_YoYo_g01_c01.png")


def eurosat(root):
    for name in ("AnnualCrop", "SeaLake"):
        image(root / f"{name}/{name}_1.jpg")


def country211(root):
    for part in ("train", "valid", "test"):
        for name in ("AD", "ZW"):
            image(root / f"{part}/{name}/1.jpg")


def rendered_sst2(root):
    for part in ("train", "valid", "test"):
        for name in ("negative", "positive"):
            image(root / f"{part}/{name}/1.png")


def caltech101(root):
    for name in ("BACKGROUND_Google", "Faces_easy", "Motorbikes"):
        image(root / f"{name}/image_0001.jpg")


@pytest.mark.parametrize(
    ("build", "reader", "expected"),
    [
        (food101, "food101", {"train": ["apple pie", "baklava"], "test": ["apple pie"]}),
        (flowers102, "flowers102", {"train": ["pink primrose"], "val": ["blackberry lily"],
                                    "test": ["passion flower"]}),
        (pets, "pets", {"trainval": ["Abyssinian", "american bulldog"], "test": ["Abyssinian"]}),
        (cars, "cars", {"train": ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"],
                        "test": ["Acura RL Sedan 2012"]}),
        (aircraft, "aircraft", {"train": ["707-320"], "val": ["747-400"], "test": ["707-320"]}),
        (dtd, "dtd", {"train": ["banded"], "val": ["dotted"], "test": ["banded"]}),
        (sun397, "sun397", {"train": ["abbey", "apartment building outdoor"], "test": ["abbey"]}),
        (gtsrb, "gtsrb", {"train": ["speed limit of 20", "stop"], "test": ["stop"]}),
        (clevr, "clevr_counts", {"train": ["3"], "val": ["10"]}),
        (ucf101, "ucf101", {"train": ["Apply Eye Makeup"], "test": ["Yo Yo"]}),
        (country211, "country211", {"train": ["Andorra", "Zimbabwe"],
                                    "valid": ["Andorra", "Zimbabwe"],
                                    "test": ["Andorra", "Zimbabwe"]}),
        (rendered_sst2, "rendered_sst2", {part: ["negative", "positive"]
                                          for part in ("train", "valid", "test")}),
    ],
)  # fmt: skip
def test_each_split_of_each_set(tmp_path, build, reader, expected):
    root = tmp_path / "set"
    build(root)
    for split, labels in expected.items():
        for name in ("auto", reader):
            found = read(root, split, reader=name)
            assert [record.label for record in found.records] == labels
            assert not found.skipped
            for record in found.records:
                assert decode_image(record.image).shape == (4, 4, 3)
    both = read(root)
    assert [r.label for r in both.records] == [name for part in expected.values() for name in part]
    assert both.parts == tuple(expected)
    assert len({record.record_id for record in both.records}) == len(both.records)
    with pytest.raises(DataError, match="no split 'trian'"):
        read(root, "trian")
    (report,) = FORMATS.get(reader).find(tmp_path / "set")
    assert report.num_present == len([f for f in report.layout.files if not f.optional]) or (
        reader == "aircraft"
    )


@pytest.mark.parametrize(
    ("build", "labels"),
    [
        (eurosat, ["annual crop land", "sea or lake"]),
        (caltech101, ["background", "face up close", "Motorbikes"]),
        (kitti, ["a vehicle far away", "a vehicle within 8 meters", "a vehicle within 20 meters",
                 "no vehicle"]),
    ],
)  # fmt: skip
def test_sets_without_published_splits(tmp_path, build, labels):
    build(tmp_path / "set")
    found = read(tmp_path / "set")
    assert [record.label for record in found.records] == labels and not found.parts


@pytest.mark.parametrize(
    ("build", "missing", "split", "message"),
    [
        (food101, "meta/test.txt", "test", r"meta/test\.txt: there is no such file"),
        (flowers102, "imagelabels.mat", "test", r"imagelabels\.mat: there is no such file"),
        (pets, "annotations/test.txt", "test", r"annotations/test\.txt: there is no such file"),
        (cars, "devkit/cars_train_annos.mat", "train", r"cars_train_annos.*no such file"),
        (aircraft, "data/images_variant_test.txt", "test", r"images_variant_test\.txt: there is"),
        (dtd, "labels/test1.txt", "test", r"labels/test1\.txt: there is no such file"),
        (sun397, "Testing_01.txt", "test", r"Testing_01\.txt: there is no such file, and no Part"),
        (gtsrb, "GT-final_test.csv", "test", r"GT-final_test\.csv: there is no such file"),
        (clevr, "scenes/CLEVR_val_scenes.json", "val", r"CLEVR_val_scenes\.json: there is no such"),
        (ucf101, "UCF-101/YoYo/v_YoYo_g01_c01.png", "test", "write the middle frame of each clip"),
        (ucf101, "ucfTrainTestlist/testlist01.txt", "test", r"testlist01\.txt: there is no such"),
    ],
)  # fmt: skip
def test_a_set_that_is_incomplete_says_what_is_missing(tmp_path, build, missing, split, message):
    build(tmp_path / "set")
    (tmp_path / "set" / missing).unlink()
    with pytest.raises(DataError, match=message):
        read(tmp_path / "set", split, reader=build.__name__.replace("clevr", "clevr_counts"))


def test_missing_images_are_an_error_where_none_is_there(tmp_path):
    food101(tmp_path / "set")
    for path in (tmp_path / "set/images").rglob("*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match="none of the 2 images"):
        read(tmp_path / "set", "train")


def test_aircraft_has_two_more_levels_in_lists_of_their_own(tmp_path):
    aircraft(tmp_path / "set")
    assert [r.label for r in read(tmp_path / "set", "trainval").records] == ["707-320", "747-400"]
    found = read(tmp_path / "set/data/images_family_test.txt")
    assert [record.label for record in found.records] == ["Boeing 707"]
    assert decode_image(found.records[0].image).shape == (4, 4, 3)
    assert [r.label for r in read(tmp_path / "set/data", "test").records] == ["707-320"]


def test_other_folds(tmp_path):
    dtd(tmp_path / "dtd")
    assert [record.label for record in read(tmp_path / "dtd", "test7").records] == ["dotted"]
    kitti(tmp_path / "kitti")
    found = read(tmp_path / "kitti", "val")
    assert [record.label for record in found.records] == ["a vehicle within 20 meters"]


def test_lists_of_sun397_may_lie_elsewhere(tmp_path):
    sun397(tmp_path / "SUN397")
    (tmp_path / "SUN397/Partitions").mkdir()
    for name in ("Training_01.txt", "Testing_01.txt"):
        (tmp_path / "SUN397" / name).rename(tmp_path / "SUN397/Partitions" / name)
    assert len(read(tmp_path / "SUN397").records) == 3


def test_cars_without_test_labels(tmp_path):
    cars(tmp_path / "set")
    (tmp_path / "set/cars_test_annos_withlabels.mat").unlink()
    assert [record.label for record in read(tmp_path / "set", "test").records] == [None]


@pytest.mark.parametrize(
    ("build", "path", "line", "split", "kind"),
    [
        (pets, "annotations/test.txt", "what", "test", "bad_record"),
        (aircraft, "data/images_variant_test.txt", "707-320", "test", "bad_record"),
        (sun397, "Testing_01.txt", "sun_d.jpg", "test", "bad_record"),
        (gtsrb, "GT-final_test.csv", "00001.ppm;5;5;0;0;5;5;43", "test", "bad_label"),
        (gtsrb, "GT-final_test.csv", "00001.ppm;5", "test", "bad_label"),
        (kitti, "training/label_2/000009.txt", "Car 0.00", "training", "bad_label"),
        (kitti, "training/label_2/000009.txt", f"Car{' x' * 14}", "training", "bad_label"),
        (ucf101, "ucfTrainTestlist/testlist01.txt", "YoYo/v_a.avi", "test", "missing_file"),
    ],
)
def test_a_bad_line_is_one_skipped_record(tmp_path, build, path, line, split, kind):
    build(tmp_path / "set")
    good = len(read(tmp_path / "set", split).records)
    with (tmp_path / "set" / path).open("a") as file:
        file.write(f"{line}\n")
    found = read(tmp_path / "set", split)
    assert len(found.records) == good
    assert [entry.kind.value for entry in found.skipped] == [kind]


def test_labels_out_of_range(tmp_path):
    flowers102(tmp_path / "f")
    labels = np.array([[103, 0, 1]], dtype=np.uint8)
    write_mat(tmp_path / "f/imagelabels.mat", {"labels": labels})
    ids = {"trnid": [[1, 2, 3, 4]], "valid": [[0]], "tstid": [[1]]}
    arrays = {k: np.array(v, dtype=np.uint16) for k, v in ids.items()}
    write_mat(tmp_path / "f/setid.mat", arrays)
    found = read(tmp_path / "f", "train")
    assert len(found.records) == 1 and len(found.skipped) == 3
    write_mat(tmp_path / "f/setid.mat", {"other": np.zeros((1, 1))})
    with pytest.raises(DataError, match="no numbers 'trnid'; it has other"):
        read(tmp_path / "f", "train")
    cars(tmp_path / "c")
    bad = [{"class": np.uint8(3), "fname": "00001.jpg"}, {"class": np.uint8(1), "fname": "1.jpg"}]
    write_mat(tmp_path / "c/devkit/cars_train_annos.mat", {"annotations": bad})
    image(tmp_path / "c/cars_train/1.jpg")
    found = read(tmp_path / "c", "train")
    assert len(found.records) == 1 and found.skipped[0].kind.value == "bad_label"


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "no list 'scenes'"), ("[", "not valid JSON"), ('{"scenes": [1, {}]}', "none of its 2")],
)
def test_broken_scenes_of_clevr(tmp_path, content, message):
    clevr(tmp_path / "set")
    (tmp_path / "set/scenes/CLEVR_val_scenes.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "set", "val")
