"""The papers' data sets below one folder, in their official layouts; or scenes in their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from triptych.core.errors import ConfigError, DataError
from triptych.data.source import DataSourceConfig
from triptych.papers.benchmarks import GLUE, PROBES, REFCOCO, Benchmark
from triptych.scenes.config import SceneConfig
from triptych.scenes.layout import SceneFiles
from triptych.workflows.scene_data import SCENES, format_source, write_once


@dataclass(frozen=True, slots=True)
class Place:
    """Where one part of a data set may lie, relative to the folder of all data sets.

    Attributes:
        files: The annotation file, or the folder of class folders; the first that exists counts.
            A `*` stands for any characters of a name.
        images: The folder that image paths start from; empty where the file's own will do.
        holds: A folder that must be in it.
        reader: The format, where the name of the file does not tell it.
        split: The part to read of a file that has several.
        annotations: A second file.
    """

    files: tuple[str, ...]
    images: tuple[str, ...] = ()
    split: str | None = None
    annotations: tuple[str, ...] = ()
    holds: str = ""
    reader: str = "auto"


@dataclass(frozen=True, slots=True)
class Located:
    """What was found of a part of a data set.

    Attributes:
        source: How it is read; None where something is missing.
        missing: What is not there, each with the places where it was looked for.
        others: Further files of the same part.
    """

    source: DataSourceConfig | None
    missing: tuple[str, ...] = ()
    others: tuple[DataSourceConfig, ...] = ()


SHARDS = (".tar", ".parquet")
_COCO_IMAGES = ("coco", "coco/images")
_FLICKR_IMAGES = ("flickr30k/flickr30k-images", "flickr30k/flickr30k_images", "flickr30k/images")


PUBLISHED = {
    "imagenet": ("imagenet", "train", "val"),
    "food101": ("food-101", "train", "test"),
    "cifar10": ("cifar-10-batches-bin", "train", "test"),
    "cifar100": ("cifar-100-binary", "train", "test"),
    "stanford_cars": ("stanford_cars", "train", "test"),
    "fgvc_aircraft": ("fgvc-aircraft-2013b", "trainval", "test"),
    "dtd": ("dtd", "train", "test"),
    "oxford_pets": ("oxford-iiit-pet", "trainval", "test"),
    "flowers102": ("flowers-102", "train", "test"),
    "mnist": ("MNIST/raw", "train", "test"),
    "stl10": ("stl10_binary", "train", "test"),
    "gtsrb": ("GTSRB", "train", "test"),
    "pcam": ("pcam", "train", "test"),
    "ucf101": ("ucf101", "train", "test"),
    "clevr_counts": ("CLEVR_v1.0", "train", "val"),
    "fer2013": ("fer2013/fer2013.csv", "train", "test"),
    "sun397": ("SUN397", "train", "test"),
    "country211": ("country211", "train", "test"),
}
"""Of probe sets with a reader: the folder or file that they unpack to, and what to train and to
score on. Of the others (Caltech-101, EuroSAT, KITTI and rendered SST-2) class folders in train/
and test/ are looked for."""


def _karpathy(folder: str, name: str, images: tuple[str, ...], holds: str = "") -> dict[str, Place]:
    """Return the splits of one of Karpathy's files."""
    files = tuple(f"{folder}/{part}{name}" for part in ("", "karpathy/", "annotations/"))
    return {split: Place(files, images, split, (), holds) for split in ("train", "val", "test")}


def _questions(part: str) -> Place:
    images = part.replace("-dev", "")
    return Place(
        (f"vqav2/v2_OpenEnded_mscoco_{part}_questions.json",),
        (f"coco/{images}", f"coco/images/{images}", f"vqav2/{images}"),
    )


def _refs(dataset: str) -> dict[str, Place]:
    """Return RefCOCO's splits: `refs(*.p)` as published, or the same list as JSON."""
    by = "umd" if dataset == "refcocog" else "unc"
    images = ("coco/train2014", "coco/images/train2014", f"{dataset}/train2014")
    files = (f"{dataset}/refs.json", f"{dataset}/refs({by}).p")
    return {
        split: Place(files, images, split, (f"{dataset}/instances.json",))
        for split in ("train", *REFCOCO[dataset])
    }


def _probe_set(name: str) -> dict[str, tuple[Place, ...]]:
    """Return the parts of a probe set as it is published, or as class folders in train/, test/."""
    folders = {
        "train": Place((f"{name}/train",)),
        "test": Place((f"{name}/test", f"{name}/val", f"{name}/validation")),
    }
    if name not in PUBLISHED:
        return {part: (place,) for part, place in folders.items()}
    own, *splits = PUBLISHED[name]
    return {
        part: (Place((own,), split=split), folders[part])
        for part, split in zip(("train", "test"), splits, strict=True)
    }


def _glue(task: str) -> dict[str, Place]:
    parts = ("train", "dev", *(("dev_matched", "dev_mismatched") if task == "MNLI" else ()))
    return {part: Place((f"glue/{task}/{part}.tsv",)) for part in parts}


DATASETS: Mapping[str, Mapping[str, Place | tuple[Place, ...]]] = {
    "coco": _karpathy("coco", "dataset_coco.json", _COCO_IMAGES, "val2014"),
    "flickr30k": _karpathy("flickr30k", "dataset_flickr30k.json", _FLICKR_IMAGES),
    "vqav2": {
        "train": _questions("train2014"),
        "val": _questions("val2014"),
        "test": _questions("test2015"),
        "test-dev": _questions("test-dev2015"),
    },
    "nocaps": {
        "val": Place(
            ("nocaps/nocaps_val_4500_captions.json",),
            ("nocaps/validation", "nocaps/val", "nocaps/images"),
        )
    },
    "nlvr2": {
        split: Place(
            (f"nlvr2/data/{name}.json", f"nlvr2/{name}.json"),
            ("nlvr2", "nlvr2/images"),
            holds=inner,
            reader="nlvr2",
        )
        for split, name, inner in (
            ("train", "train", "images/train"),
            ("dev", "dev", "dev"),
            ("test", "test1", "test1"),
        )
    },
    "snli_ve": {
        split: Place((f"snli_ve/snli_ve_{split}.jsonl",), (*_FLICKR_IMAGES, "snli_ve/images"))
        for split in ("train", "dev", "test")
    },
    **{name: _refs(name) for name in REFCOCO},
    "hateful_memes": {
        "train": Place(("hateful_memes/train.jsonl",)),
        "test": Place(("hateful_memes/test_seen.jsonl", "hateful_memes/test.jsonl")),
    },
    **{f"glue/{task}": _glue(task) for task in (*GLUE, "MNLI")},
    **{name: _probe_set(name) for name in PROBES},
    "ade20k": {
        split: Place(("ADEChallengeData2016", "ade20k"), split=part)
        for split, part in (("train", "training"), ("val", "validation"))
    },
    "msrvtt": {"test": Place(("msrvtt/MSRVTT_JSFUSION_test.csv",))},
    "msrvtt_qa": {"test": Place(("msrvtt/test_qa.json", "msrvtt_qa/test_qa.json"))},
    "msvd_qa": {"test": Place(("msvd/test_qa.json", "msvd_qa/test_qa.json"))},
    "vatex": {
        "test": Place(
            ("vatex/vatex_public_test_english_v1.1.json", "vatex/vatex_validation_v1.0.json")
        )
    },
    "visual_genome": {
        "train": Place(
            ("visual_genome/region_descriptions.json",),
            ("visual_genome", "visual_genome/images"),
            holds="VG_100K",
        )
    },
    **{
        name: {"train": Place((f"{name}/[0-9]*.tar", f"{name}/[0-9]*.parquet", *listed))}
        for name, listed in (
            ("sbu", ("sbu/SBU_captioned_photo_dataset_captions.txt",)),
            ("cc3m", ("cc3m/Train_GCC-training.tsv",)),
            ("cc12m", ("cc12m/cc12m.tsv",)),
        )
    },
    "localized_narratives": {
        "train": Place(("localized_narratives/*localized_narratives*.jsonl",))
    },
    "wit": {"train": Place(("wit/wit_v1.*.tsv.gz",), ("wit/images",))},
    "redcaps": {"train": Place(("redcaps/annotations",), ("redcaps/images",))},
    "yfcc100m": {"train": Place(("yfcc100m/yfcc100m_dataset*",), ("yfcc100m/images",))},
}
"""By data set and part; of several places the first that is there counts."""


def locate(root: Path, dataset: str, split: str) -> Located:
    """Find a part of a data set below the folder of all of them.

    Args:
        root: The folder.
        dataset: A key of `DATASETS`.
        split: One of its parts.

    Raises:
        DataError: There is no such data set, or it has no such part.
    """
    places = DATASETS.get(dataset, {})
    if split not in places:
        raise DataError(f"no place is known for the part {split!r} of {dataset!r}")
    found = places[split]
    ways = found if isinstance(found, tuple) else (found,)
    tried = [_located(root, dataset, split, place) for place in ways]
    for located in tried:
        if located.source is not None:
            return located
    others = [f"or {text}" for located in tried[1:] for text in located.missing]
    return Located(None, (*tried[0].missing, *others))


def _located(root: Path, dataset: str, split: str, place: Place) -> Located:
    """Look at one place."""
    missing = []
    file = _first(root, place.files)
    if file is None:
        missing.append(f"{_words(root, place.files)} ({dataset}, {split})")
    inner = tuple(f"{name}/{place.holds}".rstrip("/") for name in place.images)
    image_root = next(
        (root / name for name, path in zip(place.images, inner) if (root / path).is_dir()), None
    )
    if place.images and image_root is None:
        missing.append(f"{_words(root, inner)} (images of {dataset})")
    annotations = _first(root, place.annotations)
    if place.annotations and annotations is None:
        missing.append(f"{_words(root, place.annotations)} (boxes of {dataset})")
    if file is None or missing:
        return Located(None, tuple(missing))
    source = DataSourceConfig(
        path=str(file),
        reader=place.reader,
        image_root=None if image_root is None else str(image_root),
        split=place.split,
        annotations=None if annotations is None else str(annotations),
        name=dataset,
    )
    more = _further(root, place.files, file)
    return Located(source, (), tuple(replace(source, path=str(path)) for path in more))


def _further(root: Path, names: tuple[str, ...], file: Path) -> list[Path]:
    """Return the other files that fit the pattern of the one that was found."""
    found = next((sorted(root.glob(n)) for n in names if "*" in n and file in root.glob(n)), [])
    return [path for path in found if path != file]


def _first(root: Path, names: tuple[str, ...]) -> Path | None:
    """Return the first of some paths that exists; a pattern of shards stands for all of them."""
    for name in names:
        found = sorted(root.glob(name)) if "*" in name else []
        if found:
            return root / name if name.endswith(SHARDS) else found[0]
        if "*" not in name and (root / name).exists():
            return root / name
    return None


def _words(root: Path, names: tuple[str, ...]) -> str:
    """Return a path, and in brackets how else it may be called."""
    first, *others = names
    more = f" [or {', '.join(others)}]" if others else ""
    return f"{root / first}{more}"


SCENE_FORMATS = ("captions", "vqa", "refs", "nlvr2", "snli_ve", "classes")


class BenchmarkData(Protocol):
    """Where the data of benchmarks come from."""

    def find(self, benchmark: Benchmark, split: str) -> Located:
        """Return a part of a benchmark's data set, or what is missing of it."""
        ...


@dataclass(frozen=True, slots=True)
class OfficialData:
    """The papers' data sets below one folder.

    Attributes:
        root: The folder.
    """

    root: Path

    def find(self, benchmark: Benchmark, split: str) -> Located:
        """Return a part of a benchmark's data set, or what is missing of it."""
        return locate(self.root, benchmark.dataset, split)


@dataclass(frozen=True, slots=True)
class SceneData:
    """The built-in scenes in place of every data set that they have the format of.

    Attributes:
        folder: Where they are; written there first, unless they are there.
        scale: smoke, tiny or small.
    """

    folder: Path
    scale: str

    def files(self) -> SceneFiles:
        """Return the scenes, written if need be."""
        if self.scale not in SCENES:
            raise ConfigError(f"the built-in scenes serve {', '.join(SCENES)}, not {self.scale}")
        return write_once(
            self.folder,
            self.scale,
            SCENES[self.scale],
            num_val=8,
            num_test=12 if self.scale == "smoke" else 500,
            config=SceneConfig(),
            formats=SCENE_FORMATS,
        )

    def find(self, benchmark: Benchmark, split: str) -> Located:
        """Return the scenes' training or test split in the benchmark's format."""
        if not benchmark.scenes:
            return Located(None, (f"the built-in scenes have nothing like {benchmark.dataset}",))
        part = "train" if split in benchmark.train else "test"
        if benchmark.scenes == "classes":
            return Located(DataSourceConfig(path=str(self.files().classes(part))))
        return Located(format_source(self.files(), benchmark.scenes, part))
