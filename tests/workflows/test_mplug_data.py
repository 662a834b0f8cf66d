"""mPLUG's runs on the papers' collections, with a few files of each as they are published."""

import io
import json
import pickle
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from triptych.cli.main import main
from triptych.core.errors import ConfigError, DataError
from triptych.recipes.registry import build_recipe
from triptych.workflows.run import train_run

SETS = {
    "mplug.pretrain_14m": {"coco", "visual_genome", "sbu", "cc3m", "cc12m"},
    "mplug.continue_4m": {"coco", "visual_genome", "sbu", "cc3m"},
    "mplug.vqa_vg": {"train", "val", "visual_genome"},
    "mplug.grounding_mixed": {"refcoco", "refcoco+", "refcocog"},
}
SIZE = {"width": 40, "height": 32}


def jpeg(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def put(path, content):
    """Write bytes, or a value as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def write_coco(root):
    """Images of 2014, Karpathy's split, and VQAv2's questions on them."""
    images = []
    for part, first in (("train", 1), ("val", 5)):
        ids = range(first, first + 4)
        names = {i: f"COCO_{part}2014_{i:012d}.jpg" for i in ids}
        for i, name in names.items():
            put(root / "coco" / f"{part}2014" / name, jpeg(i))
            sentences = [{"raw": f"a red star number {i}", "tokens": [], "imgid": i, "sentid": i}]
            split = "train" if part == "train" else "restval"
            image = {"filepath": f"{part}2014", "filename": name, "imgid": i, "cocoid": i}
            images.append(image | {"split": split, "sentids": [i], "sentences": sentences})
        asked = [
            {"image_id": i, "question": "what is red ?", "question_id": 10 * i + k}
            for i in ids
            for k in range(2)
        ]
        answers = [
            {"answer": "star", "answer_confidence": "yes", "answer_id": n} for n in range(10)
        ]
        told = [
            {key: entry[key] for key in ("image_id", "question_id")}
            | {"question_type": "what is", "answer_type": "other"}
            | {"multiple_choice_answer": "star", "answers": answers}
            for entry in asked
        ]
        head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": f"{part}2014"}
        name = f"v2_OpenEnded_mscoco_{part}2014_questions.json"
        put(root / "vqav2" / name, head | {"task_type": "Open-Ended", "questions": asked})
        put(root / "vqav2" / f"v2_mscoco_{part}2014_annotations.json", head | {"annotations": told})
    put(root / "coco" / "dataset_coco.json", {"images": images, "dataset": "coco"})


def write_visual_genome(root):
    folder = root / "visual_genome"
    regions, questions, addresses = [], [], []
    for i in (1, 2, 3, 4):
        part = "VG_100K" if i % 2 else "VG_100K_2"
        put(folder / part / f"{i}.jpg", jpeg(20 + i))
        where = {"x": 1, "y": 2, "width": 10, "height": 12}
        region = {"region_id": i, "image_id": i, "phrase": f"blue circle {i}"}
        regions.append({"id": i, "regions": [region | where]})
        asked = {"qa_id": i, "image_id": i, "question": "What is blue?", "answer": "The circle."}
        questions.append({"id": i, "qas": [asked | {"a_objects": [], "q_objects": []}]})
        url = f"https://cs.stanford.edu/people/rak248/{part}/{i}.jpg"
        addresses.append({"image_id": i, "url": url, **SIZE, "coco_id": None, "flickr_id": None})
    put(folder / "region_descriptions.json", regions)
    put(folder / "question_answers.json", questions)
    put(folder / "image_data.json", addresses)


def write_download(folder):
    """A shard and its statistics as img2dataset leaves them."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for i in range(4):
            key = f"{i:09d}"
            caption = f"a green square of {folder.name} {i}"
            meta = {"url": f"http://x/{i}.jpg", "caption": caption, "key": key, "status": "success"}
            members = ((".jpg", jpeg(40 + i)), (".json", json.dumps(meta).encode()))
            for suffix, data in (*members, (".txt", caption.encode())):
                info = tarfile.TarInfo(key + suffix)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    counts = {"count": 4, "successes": 4, "failed_to_download": 0, "failed_to_resize": 0}
    put(folder / "00000_stats.json", counts | {"status_dict": {"success": 4}})


def write_references(root):
    """Pickled references and instances as the refer toolbox has them, on COCO's images."""
    for number, (name, by) in enumerate(
        (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd"))
    ):
        refs, annotations, images = [], [], []
        for i in (1, 2, 3, 4):
            file = f"COCO_train2014_{i:012d}.jpg"
            images.append({"id": i, "file_name": file, **SIZE})
            annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": [4, 4, 20, 12]})
            sentence = {"sent_id": i, "sent": "the red star", "raw": "the red star", "tokens": []}
            ref = {"ref_id": i, "ann_id": i, "image_id": i, "category_id": 1, "file_name": file}
            split = "train" if i < 4 else "val"
            refs.append(
                ref | {"split": split, "sent_ids": [i], "sentences": [sentence] * (number + 1)}
            )
        put(root / name / f"refs({by}).p", pickle.dumps(refs, protocol=2))
        lists = {"images": images, "annotations": annotations, "categories": []}
        put(root / name / "instances.json", lists)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    write_coco(folder)
    write_visual_genome(folder)
    for name in ("cc3m", "cc12m", "sbu"):
        write_download(folder / name)
    write_references(folder)
    return folder


def run_of(recipe, root, **train):
    config = build_recipe(recipe, "smoke")
    quiet = {"progress": "off", "num_threads": 1, "precision": "fp32", "tensorboard": False}
    settings = quiet | {"max_steps": 12, "global_batch_size": 2, "log_every_steps": 1} | train
    optim = replace(config.optim, warmup_steps=1)
    train = replace(config.train, **settings)
    data = replace(config.data, root=str(root), cache_mib=64)
    return replace(config, data=data, train=train, optim=optim)


def test_every_source_of_pairs_is_drawn_by_its_share(root, tmp_path):
    first = run_of("mplug.pretrain_14m", root, max_steps=24)
    check_pairs(first, tmp_path / "first")
    then = run_of("mplug.continue_4m", root, max_steps=24)
    with pytest.raises(ConfigError, match="goes on from the model of an earlier run: name its"):
        train_run(then, tmp_path / "then")
    start = replace(then.model, init_from=str(tmp_path / "first" / "model"))
    check_pairs(replace(then, model=start), tmp_path / "then")


def check_pairs(config, folder):
    recipe = config.recipe
    train_run(config, folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    counts = {
        name.split("/")[1]: value
        for name, value in json.loads(lines[-1]).items()
        if name.endswith("/steps") and name.startswith("source/")
    }
    assert {source.name for source in config.data.train} == SETS[recipe]
    assert sum(counts.values()) == 24
    assert set(counts) <= SETS[recipe]
    assert max(counts, key=counts.get) == ("cc12m" if recipe.endswith("14m") else "cc3m")
    ratios = {source.name: source.ratio for source in config.data.train}
    texts = {"coco": 567, "visual_genome": 769, "sbu": 860, "cc3m": 3000, "cc12m": 10_000}
    assert ratios == {name: texts[name] for name in SETS[recipe]}  # paper, table 12
    skipped = folder / "skipped.jsonl"
    assert not skipped.is_file() or not skipped.read_text()


def test_questions_of_both_sets_are_one_dataset(root, tmp_path):
    from triptych.workflows.sources import read_training_data

    config = run_of("mplug.vqa_vg", root, max_steps=2)
    records = read_training_data(config, tmp_path / "read").records
    assert len(records) == 8 + 8 + 4
    weights = {record.answers_weight for record in records if record.answers != ("star",) * 10}
    assert weights == {0.5}
    train_run(config, tmp_path / "run")
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "20 records" in card


def test_references_of_three_sets_then_of_one(root, tmp_path):
    first = run_of("mplug.grounding_mixed", root, max_steps=2)
    train_run(first, tmp_path / "first")
    assert "18 records" in (tmp_path / "first" / "model" / "README.md").read_text()
    second = ["train", "mplug.grounding_second", "--scale", "smoke", "--split", "train"]
    second += ["--data", str(root / "refcocog" / "refs(umd).p"), "--train.max-steps", "1"]
    second += ["--init-from", str(tmp_path / "first" / "model"), "--out", str(tmp_path / "second")]
    assert main([*second, "--train.progress", "off", "--train.num-threads", "1"]) == 0
    assert "9 records" in (tmp_path / "second" / "model" / "README.md").read_text()


def test_what_is_missing_is_said_of_all_sources_at_once(root, tmp_path, capsys):
    part = tmp_path / "part"
    part.mkdir()
    (part / "coco").symlink_to(root / "coco")
    (part / "cc3m").mkdir()  # empty
    flags = ["--scale", "smoke", "--data.root", str(part), "--out", str(tmp_path / "run")]
    assert main(["train", "mplug.pretrain_14m", *flags]) == 2
    said = capsys.readouterr().err
    assert f"reads 5 sources under {part}, and of 4 of them" in said
    assert f"  cc3m: {part / 'cc3m'}\n" in said
    assert f"  visual_genome: {part / 'visual_genome' / 'region_descriptions.json'}\n" in said
    assert "  coco:" not in said
    assert f"`triptych data list --data {part}`" in said
    with pytest.raises(DataError, match=r"current folder \(name another with --data.root\)"):
        train_run(replace(build_recipe("mplug.vqa_vg", "smoke")), tmp_path / "run")


def test_numbers_of_the_paper():
    for scale, batch in (("base", 1024), ("large", 2048)):
        run = build_recipe("mplug.vqa_vg", scale)
        epochs = run.train.max_steps * batch / (658_111 + 1_400_000)
        assert epochs == pytest.approx(8, rel=0.001)
    for scale in ("base", "large"):
        run = build_recipe("mplug.pretrain_14m", scale)
        assert run.train == build_recipe("mplug.pretrain", scale).train
        mixed = build_recipe("mplug.grounding_mixed", scale)
        assert mixed.optim == build_recipe("mplug.grounding", scale).optim
        assert mixed.optim.learning_rate == 2e-5
        assert build_recipe("mplug.grounding_second", scale).optim.learning_rate == 2e-6
        further = build_recipe("mplug.continue_4m", scale)
        assert further.optim.learning_rate == run.optim.learning_rate / 10
        assert further.task.alpha_ramp_steps == 0
        assert further.train.max_steps * 1024 == pytest.approx(5 * 4e6, rel=0.03)
