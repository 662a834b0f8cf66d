"""Lists of addresses as published, and what img2dataset makes of them."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from triptych.cli.main import main
from triptych.core.errors import DataError
from triptych.data.manifest import read_records
from triptych.data.skips import SkipKind
from triptych.data.source import DataSourceConfig

JPEG = b"\xff\xd8\xff the bytes of an image"
URL = "http://lh6.ggpht.com/-IvRtNLNcG8o/TpFyrudaT6I/AAAAAAAAM6o/IMG_3422.JPG?imgmax=800"


def read(path, **options):
    return read_records(DataSourceConfig(path=str(path), **options))


@pytest.mark.parametrize("turn", [1, -1])
def test_lists_of_both_orders(tmp_path, turn):
    rows = [("a very typical bus station", URL), ("sierra looked stunning", "https://b.c/d")]
    text = "".join("\t".join(row[::turn]) + "\n" for row in rows)
    (tmp_path / "Train_GCC-training.tsv").write_text(
        f"{text}no address\there\nx\na\tfile:///etc/passwd\n"
    )
    found = read(tmp_path / "Train_GCC-training.tsv")
    assert [(r.record_id, r.caption, r.image.path) for r in found.records] == [
        ("1", "a very typical bus station", URL),
        ("2", "sierra looked stunning", "https://b.c/d"),
    ]
    assert [(s.where[-2:], s.kind) for s in found.skipped] == [
        (":3", SkipKind.BAD_RECORD),
        (":4", SkipKind.BAD_RECORD),
        (":5", SkipKind.BAD_RECORD),
    ]


def sbu(folder, urls, captions):
    (folder / "SBU_captioned_photo_dataset_urls.txt").write_bytes(urls)
    (folder / "SBU_captioned_photo_dataset_captions.txt").write_bytes(captions)
    return folder / "SBU_captioned_photo_dataset_urls.txt"


def test_sbu_as_two_files_and_as_json(tmp_path):
    path = sbu(tmp_path, b"http://a/1.jpg\nhttp://a/2.jpg\nx\n", b"A tree \ncaf\xe9\nThree\n")
    found = read(path)
    other = read(path.with_name("SBU_captioned_photo_dataset_captions.txt"))
    assert found.records == other.records
    assert [(r.caption, r.image.path) for r in found.records] == [("A tree", "http://a/1.jpg")]
    assert [s.kind for s in found.skipped] == [SkipKind.CAPTION_NOT_TEXT, SkipKind.BAD_RECORD]
    data = {"image_urls": ["http://a/1.jpg", 7], "user_ids": ["u", "v"], "captions": ["A tree", ""]}
    (tmp_path / "sbu-captions-all.json").write_text(json.dumps(data))
    found = read(tmp_path / "sbu-captions-all.json")
    assert [(r.caption, r.image.path) for r in found.records] == [("A tree", "http://a/1.jpg")]
    assert len(found.skipped) == 1


@pytest.mark.parametrize(
    ("urls", "captions"),
    [(b"http://a/1\nhttp://a/2\n", b"A\n"), (b"http://a/1\n", b"A\nB\n"), (b"http://a/1\n", b"")],
)
def test_sbu_cut_short(tmp_path, urls, captions):
    with pytest.raises(DataError, match="unequal numbers of lines"):
        read(sbu(tmp_path, urls, captions))
    data = {"image_urls": urls.decode().split(), "captions": captions.decode().split()}
    (tmp_path / "sbu-captions-all.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"image_urls and \d captions"):
        read(tmp_path / "sbu-captions-all.json")


def test_one_file_of_sbu_names_the_other(tmp_path):
    path = sbu(tmp_path, b"http://a/1\n", b"A\n")
    path.with_name("SBU_captioned_photo_dataset_captions.txt").unlink()
    with pytest.raises(DataError, match=r"captions\.txt: there is no such file"):
        read(path)


ROWS = [  # key, caption, status
    ("000000000", "a bus", "success"),
    ("000000001", "gone", "failed_to_download"),
    ("000000002", "a tree", "success"),
    ("000000003", None, "success"),
]


def download(folder, shard="00000", form="tar", rows=ROWS, table=True):
    """Write a shard as img2dataset does: images, what it knows of each, and the counts."""
    folder.mkdir(exist_ok=True)
    columns = dict(zip(("key", "caption", "status"), map(list, zip(*rows, strict=True))))
    columns["url"] = [f"http://a/{key}" for key in columns["key"]]
    columns["error_message"] = [None if s == "success" else "HTTP 404" for s in columns["status"]]
    stored = [row for row in rows if row[2] == "success"]
    if form == "parquet":
        columns["jpg"] = [JPEG if row in stored else None for row in rows]
    if table:
        pq.write_table(pa.table(columns), folder / f"{shard}.parquet")
    members = {}
    for key, caption, status in stored:
        members[f"{key}.jpg"] = JPEG
        about = {"caption": caption, "url": f"http://a/{key}", "key": key, "status": status}
        members[f"{key}.json"] = json.dumps(about | {"width": 256, "exif": "{}"}).encode()
        if caption is not None:
            members[f"{key}.txt"] = caption.encode()
    if form == "tar":
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    elif form == "files":
        (folder / shard).mkdir()
        for name, content in members.items():
            (folder / shard / name).write_bytes(content)
    stats = {
        "count": len(rows),
        "successes": len(stored),
        "failed_to_download": len(rows) - len(stored),
        "failed_to_resize": 0,
        "status_dict": {"success": len(stored), "HTTP Error 404: Not Found": 1},
    }
    (folder / f"{shard}_stats.json").write_text(json.dumps(stats))
    return folder


NO_CAPTION = (SkipKind.EMPTY_CAPTION, SkipKind.MISSING_FIELD)
FORMS = [("tar", True), ("files", True), ("files", False), ("parquet", True)]


@pytest.mark.parametrize(("form", "table"), FORMS)
@pytest.mark.parametrize("reader", ["auto", "img2dataset"])
def test_every_form_gives_the_same(tmp_path, form, table, reader, caplog):
    folder = download(tmp_path / "cc3m", form=form, table=table)
    download(folder, "00001", form, ROWS[:1], table)
    found = read(folder, reader=reader)
    assert [(r.record_id, r.caption, r.image.read()) for r in found.records] == [
        ("00000/000000000", "a bus", JPEG),
        ("00000/000000002", "a tree", JPEG),
        ("00001/000000000", "a bus", JPEG),
    ]
    assert len({r.image_id for r in found.records}) == 3
    (skipped,) = found.skipped
    assert skipped.kind in NO_CAPTION
    assert "4 of 5 addresses were downloaded (80.0%); failed: 2 HTTP Error 404" in caplog.text


def test_shards_that_are_incomplete_are_listed(tmp_path):
    folder = download(tmp_path / "cc3m")
    download(folder, "00001", "files")
    (folder / "00001/000000000.jpg").unlink()
    download(folder, "00002", "files", table=False)
    (folder / "00002/000000000.jpg").unlink()
    download(folder, "00003")
    (folder / "00003.tar").unlink()
    download(folder, "00004")
    (folder / "00004_stats.json").unlink()
    download(folder, "00005")
    (folder / "00005_stats.json").write_text("[]")
    download(folder, "00006", "parquet")
    table = folder / "00006.parquet"
    table.write_bytes(table.read_bytes()[:-40])
    download(folder, "00007")
    (folder / "00007.tar").write_bytes(b"no tar file at all" * 40)
    found = read(folder)
    assert len(found.records) == 2 + 1 + 1 + 0 + 0 + 2
    problems = [(s.where.removeprefix(f"{folder}/")[:5], s.kind) for s in found.skipped]
    assert [p for p in problems if p[1] not in NO_CAPTION] == [
        ("00001", SkipKind.MISSING_FILE),
        ("00002", SkipKind.TRUNCATED),
        ("00003", SkipKind.MISSING_FILE),
        ("00003", SkipKind.TRUNCATED),
        ("00005", SkipKind.BAD_JSON),
        ("00006", SkipKind.UNREADABLE),
        ("00007", SkipKind.UNREADABLE),
        ("00004", SkipKind.TRUNCATED),
    ]


def test_the_list_says_what_failed_and_what_was_not_finished(tmp_path, capsys):
    folder = download(tmp_path / "cc3m")
    download(folder, "00001")
    assert main(["data", "list", "img2dataset", "--data", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    name = "img2dataset: Conceptual Captions 3M, downloaded with img2dataset"
    assert f"{name}: complete in {folder}" in out
    assert "6 of 8 addresses were downloaded (75.0%); failed: 2 HTTP Error 404: Not Found" in out
    (folder / "00001_stats.json").unlink()
    main(["data", "list", "--data", str(tmp_path)])
    out = capsys.readouterr().out
    assert f"{folder}/00001_stats.json: missing: the download of this shard was not finished" in out
    assert f"{name}: incomplete in {folder}" in out


def test_a_folder_of_another_kind_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"not written by img2dataset: holds no 00000_stats\.json"):
        read(tmp_path, reader="img2dataset")


def test_a_table_of_laion_is_a_list_of_addresses(tmp_path):
    table = {
        "SAMPLE_ID": [1, 2],
        "URL": [URL, None],
        "TEXT": ["a bus", "no address"],
        "HEIGHT": [1, 2],
        "similarity": [0.3, 0.4],
    }
    pq.write_table(pa.table(table), tmp_path / "part-00000.parquet")
    found = read(tmp_path / "part-00000.parquet")
    assert [(r.caption, r.image.path) for r in found.records] == [("a bus", URL)]
    assert len(found.skipped) == 1
    page = {"url": ["http://a"], "text": ["a page of the web"]}
    pq.write_table(pa.table(page), tmp_path / "pages.parquet")
    (record,) = read(tmp_path / "pages.parquet").records
    assert (record.text, record.image) == ("a page of the web", None)
