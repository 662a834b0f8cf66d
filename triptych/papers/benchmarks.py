"""The benchmarks that the papers report: data, split, task, metric and protocol of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from triptych.core.errors import ConfigError, nearest

Way = Literal["finetune", "zero_shot", "probe"]
Domain = Literal["vision", "language", "multimodal"]

EVALAI = (
    "its answers are not public: `triptych predict MODEL --task vqa` writes the file that EvalAI "
    "scores"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """One benchmark, scored in one way.

    Attributes:
        name: Unique.
        title: For people.
        domain: Which of FLAVA's three averages it belongs to.
        dataset: A name that `workflows/official_data.py` knows.
        splits: The parts to score on; a number is the mean over them.
        task: What `triptych eval --task` calls it.
        way: "finetune" needs a model that was fine-tuned for it, "zero_shot" the pre-trained one,
            "probe" a linear classifier on frozen features.
        metrics: From the paper's word for a number to the names of our metrics, whose mean it is.
        model: Name of the fine-tuned model, which several benchmarks may share.
        recipe: The recipe that fine-tunes it is FAMILY.RECIPE, or `fallback` for families
            without that.
        fallback: A recipe of any family.
        train: The parts to train on.
        start: The fine-tuned model that training starts from; empty is the pre-trained one.
        epochs: Passes over the training data at the papers' scales, where the recipe's number of
            steps is another dataset's.
        changes: Fields of the recipe that differ, by their dotted name.
        rerank_top_k: Retrieval: candidates of each query that ITM re-ranks.
        prompt: What captions begin with.
        num_frames: Frames that are taken of a clip (released code); None for images.
        hidden: Why nobody can score it at home; empty for most.
        scenes: The built-in scenes' format that can stand in; empty for none.
    """

    name: str
    title: str
    domain: Domain
    dataset: str
    splits: tuple[str, ...]
    task: str
    way: Way
    metrics: Mapping[str, tuple[str, ...]]
    model: str = ""
    recipe: str = ""
    fallback: str = ""
    train: tuple[str, ...] = ("train",)
    start: str = ""
    epochs: int | None = None
    changes: Mapping[str, object] = field(default_factory=dict)
    rerank_top_k: int = 0
    prompt: str | None = None
    num_frames: int | None = None
    hidden: str = ""
    scenes: str = ""


ACCURACY = {"accuracy": ("accuracy",)}
RECALLS = {
    f"{side} R@{k}": (f"{way}_r{k}",)
    for side, way in (("TR", "i2t"), ("IR", "t2i"))
    for k in (1, 5, 10)
}
VIDEO_RECALLS = {f"R@{k}": (f"t2i_r{k}",) for k in (1, 5, 10)}
CAPTIONS = {
    "B@4": ("bleu_4",),
    "METEOR": ("meteor",),
    "CIDEr": ("cider",),
    "SPICE": ("spice",),
}


def _vqa(name: str, title: str, split: str, train: tuple[str, ...], hidden: str) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        domain="multimodal",
        dataset="vqav2",
        splits=(split,),
        task="vqa",
        way="finetune",
        metrics={"accuracy": ("vqa",)},
        model="vqav2" if hidden else "vqav2_train",
        recipe="vqa",
        fallback="classify.answers",
        train=train,
        hidden=hidden,
        scenes="vqa",
    )


def _retrieval(name: str, title: str, dataset: str, model: str, topk: int = 0) -> Benchmark:
    """Return retrieval on a Karpathy test split; without a model it is zero-shot."""
    return Benchmark(
        name=name,
        title=title,
        domain="multimodal",
        dataset=dataset,
        splits=("test",),
        task="retrieval",
        way="finetune" if model else "zero_shot",
        metrics=RECALLS,
        model=model,
        recipe="retrieval",
        rerank_top_k=topk,
        start="coco_retrieval" if name == "flickr30k_retrieval_dual" else "",
        changes={"train.max_steps": 1500, "optim.warmup_steps": 150}
        if name == "flickr30k_retrieval_dual"
        else {},
        scenes="captions",
    )


def _captions(name: str, title: str, dataset: str, split: str, model: str) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        domain="multimodal",
        dataset=dataset,
        splits=(split,),
        task="caption",
        way="finetune" if model else "zero_shot",
        metrics=CAPTIONS,
        model=model,
        recipe="scst" if model == "coco_scst" else "caption",
        start="coco_caption" if model == "coco_scst" else "",
        prompt=None if model else "a picture of",
        scenes="captions",
    )


def _grounding(dataset: str, split: str) -> Benchmark:
    return Benchmark(
        name=f"{dataset}_{split}",
        title={"refcoco": "RefCOCO", "refcoco+": "RefCOCO+", "refcocog": "RefCOCOg"}[dataset]
        + f" {split}",
        domain="multimodal",
        dataset=dataset,
        splits=(split,),
        task="grounding",
        way="finetune",
        metrics={"accuracy": ("grounding",)},
        model=dataset,
        recipe="grounding",
        scenes="refs",
    )


def _reasoning(task: str, title: str, split: str) -> Benchmark:
    return Benchmark(
        name=f"{task}_{split}",
        title=f"{title} {split}",
        domain="multimodal",
        dataset=task,
        splits=(split,),
        task=task,
        way="finetune",
        metrics={"accuracy": (task,)},
        model=task,
        recipe=task,
        fallback="classify.pairs" if task == "snli_ve" else "",
        scenes=task,
    )


def _glue(task: str, metrics: tuple[str, ...], splits: tuple[str, ...] = ("dev",)) -> Benchmark:
    """Return a task of GLUE; "score" is the mean of its metrics, and each has its own name too."""
    words = {"f1": "F1", "matthews": "MCC", "pearson": "Pearson", "spearman": "Spearman"}
    return Benchmark(
        name=f"glue_{task.lower().replace('-', '')}",
        title=f"GLUE {task}",
        domain="language",
        dataset=f"glue/{task}",
        splits=splits,
        task="classification",
        way="finetune",
        metrics={"score": metrics} | {words.get(name, name): (name,) for name in metrics},
        model=f"glue_{task.lower().replace('-', '')}",
        recipe="glue",
        fallback="classify.texts",
        epochs=10,
    )


def _probe(name: str, title: str) -> Benchmark:
    """Return a linear probe of frozen image features."""
    return Benchmark(
        name=name,
        title=title,
        domain="vision",
        dataset=name,
        splits=("test",),
        task="probe",
        way="probe",
        metrics={"accuracy": ("probe",)},
        scenes="classes",
    )


def _video(name: str, title: str, dataset: str, task: str, model: str) -> Benchmark:
    """Return a task on clips, for a model that learned from images alone."""
    return Benchmark(
        name=name,
        title=title,
        domain="multimodal",
        dataset=dataset,
        splits=("test",),
        task=task,
        way="finetune" if model else "zero_shot",
        metrics={
            "retrieval": VIDEO_RECALLS,
            "vqa": {"accuracy": ("vqa",)},
            "caption": CAPTIONS,
        }[task],
        num_frames={"retrieval": 12, "vqa": 16, "caption": 8}[task],
        model=model,
        recipe={"coco_retrieval": "retrieval", "vqav2": "vqa"}.get(model, ""),
        rerank_top_k=128 if task == "retrieval" else 0,
        prompt="a video of" if task == "caption" else None,
    )


PROBES = {
    "imagenet": "ImageNet",
    "food101": "Food-101",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "stanford_cars": "Stanford Cars",
    "fgvc_aircraft": "FGVC-Aircraft",
    "dtd": "DTD",
    "oxford_pets": "Oxford-IIIT Pets",
    "caltech101": "Caltech-101",
    "flowers102": "Flowers-102",
    "mnist": "MNIST",
    "stl10": "STL-10",
    "eurosat": "EuroSAT",
    "gtsrb": "GTSRB",
    "kitti_distance": "KITTI distance",
    "pcam": "PatchCamelyon",
    "ucf101": "UCF101 frames",
    "clevr_counts": "CLEVR counts",
    "fer2013": "FER2013",
    "sun397": "SUN397",
    "rendered_sst2": "Rendered SST-2",
    "country211": "Country211",
}
"""The 22 data sets of FLAVA's linear probes."""

GLUE: Mapping[str, tuple[str, ...]] = {
    "CoLA": ("matthews",),
    "SST-2": ("accuracy",),
    "MRPC": ("accuracy", "f1"),
    "STS-B": ("pearson", "spearman"),
    "QQP": ("accuracy", "f1"),
    "QNLI": ("accuracy",),
    "RTE": ("accuracy",),
}
"""Metrics of GLUE's tasks, MNLI apart, which has two dev sets. WNLI is excluded, as in the papers
since BERT."""

REFCOCO = {
    "refcoco": ("val", "testA", "testB"),
    "refcoco+": ("val", "testA", "testB"),
    "refcocog": ("val", "test"),
}

_ALL = (
    _captions("coco_caption", "COCO captions", "coco", "test", "coco_caption"),
    _captions("coco_scst", "COCO captions, CIDEr optimisation", "coco", "test", "coco_scst"),
    _captions("nocaps", "NoCaps captions, COCO model", "nocaps", "val", "coco_caption"),
    _captions("nocaps_zero_shot", "NoCaps captions, zero-shot", "nocaps", "val", ""),
    _vqa("vqav2_val", "VQAv2 validation", "val", ("train",), ""),
    _vqa("vqav2_test_dev", "VQAv2 test-dev", "test-dev", ("train", "val"), EVALAI),
    _vqa("vqav2_test_std", "VQAv2 test-std", "test", ("train", "val"), EVALAI),
    _retrieval("coco_retrieval", "COCO retrieval", "coco", "coco_retrieval", 256),
    _retrieval("coco_retrieval_dual", "COCO retrieval, dot product", "coco", "coco_retrieval"),
    _retrieval("coco_zero_shot_dual", "COCO retrieval, zero-shot, dot product", "coco", ""),
    _retrieval(
        "flickr30k_retrieval", "Flickr30k retrieval", "flickr30k", "flickr30k_retrieval", 128
    ),
    _retrieval(
        "flickr30k_retrieval_dual",
        "Flickr30k retrieval, dot product",
        "flickr30k",
        "flickr30k_retrieval",
    ),
    _retrieval("flickr30k_zero_shot", "Flickr30k retrieval, zero-shot", "flickr30k", "", 128),
    _retrieval(
        "flickr30k_zero_shot_dual",
        "Flickr30k retrieval, zero-shot, dot product",
        "flickr30k",
        "",
    ),
    _retrieval(
        "flickr30k_from_coco", "Flickr30k retrieval, COCO model", "flickr30k", "coco_retrieval", 128
    ),
    *(_grounding(name, split) for name, splits in REFCOCO.items() for split in splits),
    *(
        _reasoning(task, title, split)
        for task, title in (("nlvr2", "NLVR2"), ("snli_ve", "SNLI-VE"))
        for split in ("dev", "test")
    ),
    Benchmark(
        name="hateful_memes",
        title="Hateful Memes test",
        domain="multimodal",
        dataset="hateful_memes",
        splits=("test",),
        task="classification",
        way="finetune",
        metrics={"AUROC": ("auroc",), "accuracy": ("accuracy",)},
        model="hateful_memes",
        recipe="hateful_memes",
        fallback="classify.pairs",
    ),
    *(_glue(task, metrics) for task, metrics in GLUE.items()),
    _glue("MNLI", ("accuracy",), ("dev_matched", "dev_mismatched")),
    *(_probe(name, title) for name, title in PROBES.items()),
    Benchmark(
        name="imagenet_zero_shot",
        title="ImageNet, zero-shot",
        domain="vision",
        dataset="imagenet",
        splits=("test",),
        task="zero_shot",
        way="zero_shot",
        metrics={"accuracy": ("zero_shot",)},
        scenes="classes",
    ),
    Benchmark(
        name="imagenet_tuned",
        title="ImageNet, fine-tuned",
        domain="vision",
        dataset="imagenet",
        splits=("test",),
        task="image_classification",
        way="finetune",
        metrics={"accuracy": ("image_classification",)},
        model="imagenet",
        recipe="image_classification",
        fallback="classify.images",
        scenes="classes",
    ),
    Benchmark(
        name="ade20k",
        title="ADE20K segmentation",
        domain="vision",
        dataset="ade20k",
        splits=("val",),
        task="segmentation",
        way="finetune",
        metrics={"mIoU": ("miou",)},
        model="ade20k",
        recipe="segmentation",
        fallback="segment.images",
    ),
    _video("msrvtt_retrieval", "MSRVTT retrieval, zero-shot", "msrvtt", "retrieval", ""),
    _video(
        "msrvtt_from_coco",
        "MSRVTT retrieval, COCO model",
        "msrvtt",
        "retrieval",
        "coco_retrieval",
    ),
    _video("msrvtt_qa", "MSRVTT-QA, VQAv2 model", "msrvtt_qa", "vqa", "vqav2"),
    _video("msvd_qa", "MSVD-QA, VQAv2 model", "msvd_qa", "vqa", "vqav2"),
    _video("vatex_caption", "VATEX captions, zero-shot", "vatex", "caption", ""),
)

BENCHMARKS: Mapping[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}


def find_benchmark(name: str) -> Benchmark:
    """Return a benchmark by its name.

    Raises:
        ConfigError: There is none; the message names the nearest.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"there is no benchmark {name!r}{nearest(name, BENCHMARKS)}")
    return BENCHMARKS[name]


@dataclass(frozen=True, slots=True)
class Suite:
    """All benchmarks of a paper, and the averages that it takes.

    Attributes:
        name: What `triptych suite` calls it.
        title: For people.
        benchmarks: Names, in the order of the table.
        averages: By name, what is averaged: each item is "BENCHMARK.METRIC".
        macro: Names of averages whose mean is the macro average; empty where there is none.
        note: What a reader must know of the averages.
    """

    name: str
    title: str
    benchmarks: tuple[str, ...]
    averages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    macro: tuple[str, ...] = ()
    note: str = ""


_GLUE_NAMES = tuple(
    f"glue_{task.lower().replace('-', '')}"
    for task in ("MNLI", "CoLA", "MRPC", "QQP", "SST-2", "QNLI", "RTE", "STS-B")
)
_RECALL_ITEMS = tuple(
    f"{data}_zero_shot_dual.{side} R@{k}"
    for data in ("flickr30k", "coco")
    for side in ("TR", "IR")
    for k in (1, 5)
)
_VIDEO_NAMES = ("msrvtt_retrieval", "msrvtt_from_coco", "msrvtt_qa", "msvd_qa", "vatex_caption")

SUITES: Mapping[str, Suite] = {
    "flava": Suite(
        "flava",
        "FLAVA's 35 tasks: vision, language, multimodal",
        (
            *PROBES,
            "imagenet_zero_shot",
            *_GLUE_NAMES,
            *("vqav2_val", "vqav2_test_dev", "snli_ve_test", "hateful_memes"),
            *("flickr30k_zero_shot_dual", "coco_zero_shot_dual"),
        ),
        {
            "vision": tuple(f"{name}.accuracy" for name in PROBES),
            "language": tuple(
                "glue_stsb.Pearson" if name == "glue_stsb" else f"{name}.score"
                for name in _GLUE_NAMES
            ),
            "multimodal": (
                *("vqav2_val.accuracy", "snli_ve_test.accuracy", "hateful_memes.AUROC"),
                *_RECALL_ITEMS,
            ),
        },
        ("vision", "language", "multimodal"),
        "Vision is the mean of 22 accuracies, language of eight GLUE scores (MRPC and QQP the mean "
        "of accuracy and F1, MNLI of both dev sets, STS-B Pearson's correlation), multimodal of 11 "
        "numbers, with VQAv2's validation set in place of test-dev, whose answers are not public; "
        "macro is the mean of the three.",
    ),
    "glue": Suite(
        "glue",
        "GLUE's dev sets, one classifier a task",
        _GLUE_NAMES,
        {"GLUE": tuple(f"{name}.score" for name in _GLUE_NAMES)},
        (),
        "The mean of eight scores; a task's score is the mean of its metrics, MNLI's of both dev "
        "sets. WNLI is excluded.",
    ),
    "vlmo": Suite(
        "vlmo",
        "VLMo's tasks: classification, retrieval, and the image encoder alone",
        (
            *("vqav2_val", "vqav2_test_dev", "nlvr2_dev", "nlvr2_test"),
            *("coco_retrieval_dual", "flickr30k_retrieval_dual"),
            *("imagenet_tuned", "ade20k"),
        ),
    ),
    "mplug": Suite(
        "mplug",
        "mPLUG's tasks: captions, questions, retrieval, grounding, reasoning, zero-shot, video",
        (
            *("coco_caption", "coco_scst", "nocaps", "vqav2_val", "vqav2_test_dev"),
            *("coco_retrieval", "flickr30k_retrieval"),
            *(f"{name}_{split}" for name, splits in REFCOCO.items() for split in splits),
            *("nlvr2_dev", "nlvr2_test", "snli_ve_dev", "snli_ve_test"),
            *("nocaps_zero_shot", "flickr30k_zero_shot", "flickr30k_from_coco"),
            *_VIDEO_NAMES,
        ),
    ),
}
