"""Datasets of every reader, each in its published layout: one is changed and read."""

import gzip
import json
import logging
import os
import random
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import h5py  # noqa: F401 - here, since it asks for the processor by a command
import numpy as np
from PIL import Image

from tests.data.readers import (
    test_clips,
    test_coco,
    test_downloads,
    test_flickr30k,
    test_gqa,
    test_imagenet,
    test_listed_sets,
    test_nocaps,
    test_pixel_sets,
    test_refcoco,
    test_snli_ve,
    test_visual_genome,
    test_vqav2,
    test_web_pairs,
    test_webdataset,
)
from tests.data.test_masks import ade20k
from tests.fuzz.kind import Kind, Mutator
from tests.fuzz.mutators import (
    changed,
    mutate_bytes,
    mutate_json,
    mutate_lines,
    special,
    whole,
)
from triptych.core.errors import TriptychError
from triptych.data.cache import CACHE_VARIABLE, log
from triptych.data.formats import FORMATS
from triptych.data.images import decode_image
from triptych.data.manifest import read_records
from triptych.data.masks import decode_mask
from triptych.data.skips import ImageProblem, SkipLog
from triptych.data.source import DataSourceConfig

NUM_LOOKED_AT = 20  # records whose images are decoded
SPLITS = (None, "train", "test", "val", "\ud800")

JPG, CLIP = "IMAGE", "CLIP"
Content = str | bytes | dict[str, Any] | list[Any]


def _files(read: str, files: dict[str, Content]) -> Callable[[Path], str]:
    """Return what writes files by name, and says which of them is read."""

    def build(folder: Path) -> str:
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content == JPG:
                Image.new("RGB", (4, 4)).save(path)
            elif isinstance(content, bytes):
                path.write_bytes(content)
            else:
                text = content if isinstance(content, str) else json.dumps(content)
                path.write_text("" if text == CLIP else text)
        return read

    return build


def _made(write: Callable[..., object], *arguments: object, read: str = "") -> Callable:
    """Return what lets a writer of the tests fill a folder that is not there yet."""

    def build(folder: Path) -> str:
        write(folder / "set", *arguments)
        return f"set/{read}" if read else "set"

    return build


def _in(write: Callable[..., object], *arguments: object, read: str) -> Callable[[Path], str]:
    """Return what lets a writer of the tests fill a folder that is there."""

    def build(folder: Path) -> str:
        write(folder, *arguments)
        return read

    return build


def _lines(*entries: dict[str, Any]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def _webdataset(folder: Path) -> str:
    jpeg, about = test_webdataset.jpeg(7), test_webdataset.as_json(caption="a", box=[1, 2, 3, 4])
    members = [("a.jpg", jpeg), ("a.txt", b"a dog"), ("b.jpg", jpeg), ("b.json", about)]
    test_webdataset.write_shard(folder / "a.tar", [*members, ("c.jpg", jpeg), ("c.cls", b"3")])
    return "a.tar"


def _columns() -> dict[str, list[Any]]:
    jpeg = test_webdataset.jpeg(9)
    return {
        "image": [{"bytes": jpeg, "path": None}, {"bytes": None, "path": "a.png"}],
        "caption": [["a dog", "a cat"], ["a tree"]],
        "label": [0, 1],
        "box": [[1.0, 2.0, 3.0, 4.0], None],
        "phrase": ["the dog", None],
    }


def _parquet(folder: Path) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    Image.new("RGB", (4, 4)).save(folder / "a.png")
    pq.write_table(pa.table(_columns()), folder / "a.parquet", row_group_size=1)
    return "a.parquet"


def _arrow(folder: Path) -> str:
    import pyarrow as pa

    table = pa.table(_columns())
    with (
        pa.OSFile(str(folder / "a.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as writer,
    ):
        writer.write_table(table)
    return "a.arrow"


def _refcoco(folder: Path) -> str:
    test_refcoco.folder.__wrapped__(folder)
    (folder / "refs(unc).json").write_text(json.dumps(test_refcoco.refs()))
    return "refs(unc).json"


def _refcoco_pickle(folder: Path) -> str:
    import pickle

    test_refcoco.folder.__wrapped__(folder)
    (folder / "refs(unc).p").write_bytes(pickle.dumps(test_refcoco.refs(), protocol=2))
    return "refs(unc).p"


def _genome(name: str) -> Callable[[Path], str]:
    def build(folder: Path) -> str:
        test_visual_genome.folder.__wrapped__(folder)
        (folder / "image_data.json").write_text(json.dumps(test_visual_genome.IMAGES))
        return name

    return build


def _imagenet(folder: Path) -> str:
    test_imagenet.root.__wrapped__(folder)
    name = "imagenet_class_index.json"
    (folder / name).write_text(test_imagenet.NAMES[name])
    return "imagenet"


def _svhn(folder: Path) -> str:
    pixels = np.arange(3 * 32 * 32 * 2, dtype=np.uint32).astype(np.uint8).reshape(32, 32, 3, 2)
    labels = np.array([[10], [1]], dtype=np.uint8)
    test_listed_sets.write_mat(folder / "train_32x32.mat", {"X": pixels, "y": labels})
    return ""


MSRVTT = test_clips.DATA
QA = test_clips.QUESTIONS
OWN = (
    {"image": "a.png", "caption": ["a dog", "a cat"], "split": "train"},
    {"image": "a.png", "question": "what?", "answers": ["dog", {"answer": "cat"}]},
    {"image": "a.png", "phrase": "the dog", "box": [0, 1, 2, 3], "id": 7},
    {"images": ["a.png", "a.png"], "statement": "two", "label": True},
    {"image": "a.png", "premise": "p", "hypothesis": "h", "label": "neutral"},
    {"video": "a.mp4", "caption": "a clip"},
    {"image": "a.png", "mask": "a.png", "label": "x", "ocr_words": "a b"},
)
TABLE = "image,caption,question,answers,box,phrase\na.png,a dog,,,,\na.png,,what?,a;b,,\n"
WIT = "\n".join(["\t".join(test_web_pairs.WIT), *test_web_pairs.WIT_ROWS])
YFCC = test_web_pairs.photo("11", "IMG", "A+dog+in+the+park+and+a+cat") + "\n"
NARRATIVES = test_web_pairs.narrative("137576", test_web_pairs.TWO) + "\n"
VQA_NAME, NOCAPS = "v2_mscoco_val2014_annotations.json", [test_nocaps.image(0, "out-domain")]
COLA = "x04\t1\t\tA bird sang.\nx04\t0\t*\tA bird of sang.\n"
SST = "sentence\tlabel\nhide new secretions \t0\na depressed fifteen-year-old\t1\n"
GQA = {"02930152": test_gqa.question(), "1": test_gqa.question(types=None)}
NLVR2 = {"identifier": "dev-850-0-0", "sentence": "Both are red.", "label": "True"}
NLVR2_IMAGES = {f"dev-850-0-img{side}.png": JPG for side in (0, 1)}
RED_CAPS = test_web_pairs.redcaps(test_web_pairs.cat("a"), test_web_pairs.cat("b"))
MEME = {"id": 42953, "img": "img/42953.png", "label": 0, "text": "its their day"}
SBU = {"image_urls": ["http://a/1.jpg"], "user_ids": ["u"], "captions": ["A tree"]}
MAPPING = "-4wsuPCjDBc_5_15 vid1\n-7KMZQEsJW4_205_208 vid1301\n"

TEXTS: dict[str, Callable[[Path], str]] = {
    "jsonl": _files("a.jsonl", {"a.jsonl": _lines(*OWN), "a.png": JPG, "a.mp4": CLIP}),
    "jsonl/list": _files("a.json", {"a.json": list(OWN), "a.png": JPG, "a.mp4": CLIP}),
    "csv": _files("a.csv", {"a.csv": TABLE, "a.png": JPG}),
    "text": _files("a.txt", {"a.txt": "A dog.\n\nA cat runs.\n"}),
    "documents": _files("a.jsonl", {"a.jsonl": _lines({"text": "A. B c. " * 40, "title": "t"})}),
    "documents/folder": _files("", {"a.txt": "A dog. A cat.\n\nA tree.\n", "b.txt": "B.\n"}),
    "url_list": _files("Train_GCC.tsv", {"Train_GCC.tsv": f"a bus\t{test_downloads.URL}\n" * 3}),
    "sbu": _in(
        test_downloads.sbu,
        b"http://a/1.jpg\nhttp://a/2.jpg\n",
        b"A tree \ncaf\xc3\xa9\n",
        read="SBU_captioned_photo_dataset_urls.txt",
    ),
    "sbu/json": _files("sbu-captions-all.json", {"sbu-captions-all.json": SBU}),
    "flickr30k": _files("a.token", {"a.token": test_flickr30k.TOKENS, "10002456.jpg": JPG}),
    "flickr30k/csv": _files(
        "results.csv", {"results.csv": test_flickr30k.TABLE, "1000092795.jpg": JPG}
    ),
    "glue": _files("CoLA/train.tsv", {"CoLA/train.tsv": COLA}),
    "glue/sst": _files("SST-2/train.tsv", {"SST-2/train.tsv": SST}),
    "nlvr2": _files("dev.json", {"dev.json": _lines(NLVR2, NLVR2), **NLVR2_IMAGES}),
    "snli_ve": _files("a.jsonl", {"a.jsonl": _lines(test_snli_ve.line("neutral")), "7.jpg": JPG}),
    "hateful_memes": _files("a.jsonl", {"a.jsonl": _lines(MEME, MEME), "img/42953.png": JPG}),
    "localized_narratives": _files("a.jsonl", {"a.jsonl": NARRATIVES, "000000137576.jpg": JPG}),
    "wit": _files("wit.tsv", {"wit.tsv": WIT, "A_b'.jpg": JPG}),
    "wit/gz": _files(
        "wit.tsv.gz", {"wit.tsv.gz": gzip.compress(WIT.encode(), mtime=0), "B.jpg": JPG}
    ),
    "yfcc100m": _files("yfcc100m_dataset", {"yfcc100m_dataset": YFCC, "11.jpg": JPG}),
    "msvd": _files(
        "AllVideoDescriptions.txt",
        {
            "AllVideoDescriptions.txt": test_clips.DESCRIPTIONS,
            "youtube_mapping.txt": MAPPING,
            "YouTubeClips/-4wsuPCjDBc_5_15.avi": CLIP,
        },
    ),
    "msrvtt_1k_a": _files(
        "MSRVTT_JSFUSION_test.csv",
        {"MSRVTT_JSFUSION_test.csv": test_clips.TEST_CSV, "video9770.mp4": CLIP},
    ),
}

JSON_FILES: dict[str, Callable[[Path], str]] = {
    "coco": _files("c.json", {"c.json": test_coco.official(),
                              "COCO_val2014_000000000005.jpg": JPG}),
    "karpathy": _files("k.json", {"k.json": test_coco.karpathy(),
                                  "val2014/COCO_val2014_000000000001.jpg": JPG}),
    "nocaps": _in(test_nocaps.write, NOCAPS, [{"image_id": 0, "id": 1, "caption": "a"}],
                  read="nocaps_val_4500_captions.json"),
    "vqav2": _files(test_vqav2.QUESTIONS, {test_vqav2.QUESTIONS: test_vqav2.questions(),
                                           VQA_NAME: test_vqav2.annotations(),
                                           "COCO_val2014_000000000042.jpg": JPG}),
    "gqa": _in(test_gqa.write, GQA, read="val_balanced_questions.json"),
    "visual_genome": _genome("region_descriptions.json"),
    "visual_genome_phrases": _genome("region_descriptions.json"),
    "visual_genome_qa": _genome("question_answers.json"),
    "refcoco": _refcoco,
    "refcoco/pickle": _refcoco_pickle,
    "msrvtt": _files("m.json", {"m.json": MSRVTT, "video0.mp4": CLIP}),
    "msrvtt_1k_a/train": _files("MSRVTT_train.9k.csv",
                                {"MSRVTT_train.9k.csv": "video_id\nvideo0\n",
                                 "MSRVTT_data.json": MSRVTT, "video0.mp4": CLIP}),
    "msrvtt_qa": _files("test_qa.json", {"test_qa.json": QA, "video3.mp4": CLIP}),
    "msvd_qa": _files("val_qa.json",
                      {"val_qa.json": [{k: v for k, v in q.items() if k != "category_id"}
                                       for q in QA],
                       "youtube_mapping.txt": "-4wsuPCjDBc_5_15 vid3\n",
                       "YouTubeClips/-4wsuPCjDBc_5_15.avi": CLIP}),
    "vatex": _files("v.json", {"v.json": test_clips.VATEX, "private_clip.mp4": CLIP}),
    "redcaps": _files("cats_2019.json", {"cats_2019.json": RED_CAPS, "cats/a.jpg": JPG}),
}  # fmt: skip

SETS: dict[str, Callable[[Path], str]] = {
    **{
        name: _made(getattr(test_listed_sets, name.partition("_counts")[0]))
        for name in (
            *("food101", "flowers102", "pets", "cars", "aircraft", "dtd", "sun397", "gtsrb"),
            *("kitti", "clevr_counts", "ucf101", "eurosat", "country211", "rendered_sst2"),
            "caltech101",
        )
    },
    "cifar": _made(test_pixel_sets.write_cifar10),
    "mnist": _made(test_pixel_sets.write_mnist),
    "mnist/gz": _made(test_pixel_sets.write_mnist, ".gz"),
    "stl10": _made(test_pixel_sets.write_stl10),
    "svhn": _svhn,
    "pcam": _made(test_pixel_sets.write_pcam, False),
    "fer2013": _in(lambda folder: test_pixel_sets.write_fer(folder / "fer2013.csv"), read=""),
    "imagenet": _imagenet,
    "ade20k": _made(ade20k, "wall\nscreen door, screen\nscreen, crt\n"),
    "image_folder": _files("", {"a/1.jpg": JPG, "b/2.png": JPG}),
}

TABLES: dict[str, Callable[[Path], str]] = {
    "webdataset": _webdataset,
    "parquet": _parquet,
    "saved_dataset": _arrow,
    "img2dataset": _made(test_downloads.download),
    "img2dataset/files": _made(test_downloads.download, "00000", "files"),
    "img2dataset/parquet": _made(test_downloads.download, "00000", "parquet"),
}
SAMPLES = {**TEXTS, **JSON_FILES, **SETS, **TABLES}
"""Of each reader; a name goes on after a stroke where a reader has several layouts."""

READ = ".read"  # what is read of a sample


def _build(samples: dict[str, Callable[[Path], str]]) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        for name, write in samples.items():
            own = folder / name.replace("/", "+")
            own.mkdir()
            test_pixel_sets.RNG = np.random.default_rng(0)
            (own / READ).write_text(write(own))

    return build


def _of_one(mutator: Mutator) -> Mutator:
    """Return a mutator that leaves one dataset of the sample, and changes it."""

    def mutate(rng: random.Random, folder: Path) -> None:
        kept = rng.choice(sorted(folder.iterdir()))
        for other in folder.iterdir():
            if other != kept:
                shutil.rmtree(other)
        read = (kept / READ).read_text()
        (kept / READ).unlink()
        mutator(rng, kept)
        (kept / READ).write_text(read)

    return mutate


def _use(folder: Path) -> None:
    """Read a dataset by its reader and by its looks, with its images, and write what is skipped."""
    os.environ[CACHE_VARIABLE] = str(folder / "cache")
    log.setLevel(logging.ERROR)
    (own,) = [path for path in folder.iterdir() if (path / READ).is_file()]
    path = str(own / (own / READ).read_text())
    split = SPLITS[sum(len(file.name) for file in own.rglob("*")) % len(SPLITS)]
    refused = None
    reader = own.name.partition("+")[0]
    for source in (
        DataSourceConfig(path=path, reader=reader, split=split, index="never"),
        DataSourceConfig(path=path, index="always"),
        DataSourceConfig(path=path, reader=reader, index="never"),
    ):
        refused = None
        try:
            _read(source, folder)
        except TriptychError as error:
            refused = error
    if refused is not None:
        raise refused


def _read(source: DataSourceConfig, folder: Path) -> None:
    found = read_records(source)
    SkipLog(folder / "log", found.num_samples, 1.0).add_all(found.skipped)
    for record in list(found.records)[:NUM_LOOKED_AT]:
        for image in record.all_images():
            if "://" not in image.path:
                _seen(decode_image, image)
        if record.mask is not None:
            _seen(decode_mask, record.mask)


def _seen(decode: Callable[[Any], object], image: object) -> None:
    try:
        decode(image)
    except ImageProblem:
        return


def _line(rng: random.Random) -> bytes:
    """Return a line that no table has."""
    return rng.choice((b'"' * 7, b"\t" * 9000, b",", b"\xef\xbb\xbf", b"\0\n" * 30, b"\r\r\n\n"))


TEXT_MUTATORS = (
    changed("*", mutate_bytes),
    changed("*", mutate_lines),
    changed("*", mutate_lines),
    changed("*", mutate_json),
    changed("*.json*", mutate_lines),
    whole("*", _line),
    special(),
)
KINDS = [
    Kind(
        name=f"readers_{name}",
        build=_build(samples),
        mutators=[_of_one(mutator) for mutator in mutators],
        use=_use,
    )
    for name, samples, mutators in (
        ("texts", TEXTS, TEXT_MUTATORS),
        ("json", JSON_FILES, (*TEXT_MUTATORS, changed("*.json", mutate_json))),
        ("sets", SETS, TEXT_MUTATORS),
        ("tables", TABLES, (changed("*", mutate_bytes), special(), changed("*", mutate_json))),
    )
]

assert {name.partition("/")[0] for name in chain(SAMPLES)} == set(FORMATS.names())
