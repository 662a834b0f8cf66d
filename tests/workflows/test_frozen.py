"""Frozen models as classifiers: against plain loops, and on images of one colour."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import triptych
from tests.serving.tiny_folder import IMAGE_SIZE, write_tiny_folder, write_tiny_vlmo
from triptych.cli.main import main
from triptych.core.errors import CapabilityError, ConfigError, DataError
from triptych.data.source import DataSourceConfig
from triptych.evaluation.linear_probe import sweep_probe
from triptych.text import Tokenizer
from triptych.workflows.evaluate import EvalSettings, evaluate_model
from triptych.workflows.frozen import probe_folder

from .small_runs import trained_model

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TEMPLATES = ("a small {}", "the {} and a square", "no {}")
CLASSES = ("blue_square", "green_star", "red_circle", "red_star", "small_square", "yes_no")


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    monkeypatch.setattr("triptych.serving.loading.resolve_precision", lambda *_: "fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_folder(tmp_path_factory.mktemp("m") / "model", "pretraining")


@pytest.fixture(scope="module")
def vlmo(tmp_path_factory):
    return write_tiny_vlmo(tmp_path_factory.mktemp("vlmo") / "model")


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Class folders with three images of noise each, at the model's own size."""
    root = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(5)
    for name in CLASSES:
        (root / name).mkdir()
        for number in range(3):
            low, high = sorted(rng.integers(0, 257, 2).tolist())
            pixels = rng.integers(low, max(high, low + 20), (IMAGE_SIZE, IMAGE_SIZE, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(root / name / f"{number}.png")
    return root


def states(folder, paths):
    """Embeddings and pooled states of single images, in plain steps."""
    model = trained_model(folder).eval()
    embeddings, pooled = [], []
    for path in paths:
        pixels = torch.from_numpy(np.array(Image.open(path))).double() / 255
        normal = (pixels - torch.tensor(MEAN)) / torch.tensor(STD)
        with torch.no_grad():
            features = model.encode_image(normal.permute(2, 0, 1)[None].float())
            embeddings.append(model.embed_image(features)[0])
        pooled.append(features.tokens[0, 0])
    return torch.stack(embeddings), torch.stack(pooled)


def class_vectors(folder, names, templates):
    """The direction of the mean of the sentences' directions, one sentence after the other."""
    model, tokenizer = trained_model(folder).eval(), Tokenizer.load(folder)
    found = []
    for name in names:
        total = 0
        for template in templates:
            text = template.replace("{}", name.replace("_", " "))
            ids = torch.tensor(tokenizer.encode([text], max_tokens=20))
            with torch.no_grad():
                features = model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool))
                total = total + model.embed_text(features)[0]
        found.append(total / total.norm())
    return torch.stack(found)


def values_of(found):
    return {value.name: value.value for value in found}


def images_of(root):
    return sorted(root.glob("*/*.png"))


def test_zero_shot_equals_a_plain_loop(folder, noise):
    source = DataSourceConfig(path=str(noise))
    settings = EvalSettings(templates=TEMPLATES)
    found = evaluate_model(folder, "zero_shot", source, settings=settings, local_batch_size=5)
    paths = images_of(noise)
    cosines = states(folder, paths)[0] @ class_vectors(folder, CLASSES, TEMPLATES).T
    truth = [CLASSES.index(path.parent.name) for path in paths]
    order = cosines.argsort(dim=1, descending=True).tolist()
    values = values_of(found)
    assert values["zero_shot"] == np.mean([row[0] == t for row, t in zip(order, truth)])
    assert values["zero_shot_top5"] == np.mean([t in row[:5] for row, t in zip(order, truth)])
    names = {"zero_shot", "zero_shot_top5", "zero_shot_per_class"}
    assert set(values) == names | {f"zero_shot/{c}" for c in CLASSES}
    assert values["zero_shot_per_class"] == pytest.approx(values["zero_shot"])  # as many of each
    assert "Of 6 classes, each the mean of 3 sentences." in found[0].protocol
    assert found[0].num_items == 18


def test_a_part_of_the_label_can_be_the_class(folder, noise):
    source = DataSourceConfig(path=str(noise))
    settings = EvalSettings(templates=TEMPLATES, label_pattern="_(.+)$")
    found = evaluate_model(folder, "zero_shot", source, settings=settings)
    names = ("circle", "no", "square", "star")
    cosines = states(folder, images_of(noise))[0] @ class_vectors(folder, names, TEMPLATES).T
    truth = [names.index(path.parent.name.split("_")[1]) for path in images_of(noise)]
    assert values_of(found)["zero_shot"] == np.mean(
        [int(row.argmax()) == t for row, t in zip(cosines, truth)]
    )
    for pattern, message in (
        ("(", "label_pattern"), ("a", "must have a group"), ("x(.)", "does not fit")
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            settings = EvalSettings(label_pattern=pattern)
            evaluate_model(folder, "zero_shot", source, settings=settings)


def test_zero_shot_needs_labels_and_a_contrastive_model(tmp_path, folder, noise):
    vqa = write_tiny_folder(tmp_path / "vqa", "vqa")
    with pytest.raises(CapabilityError, match="does not teach `zero_shot`"):
        evaluate_model(vqa, "zero_shot", DataSourceConfig(path=str(noise)))
    manifest = tmp_path / "captions.jsonl"
    line = {"image": str(images_of(noise)[0]), "caption": "a star"}
    manifest.write_text(json.dumps(line))
    with pytest.raises(DataError, match="no image with a label"):
        evaluate_model(folder, "zero_shot", DataSourceConfig(path=str(manifest)))


def test_wordnet_ids_are_no_prompts(tmp_path, folder, noise, capsys):
    ids = ("n01440764", "n01484850")
    for own_id, image in zip(ids, images_of(noise), strict=False):
        (tmp_path / "imagenet" / own_id).mkdir(parents=True)
        shutil.copy(image, tmp_path / "imagenet" / own_id / "a.png")
    arguments = ["eval", str(folder), "--task", "zero_shot", "--data", str(tmp_path / "imagenet")]
    assert main(arguments) == 2
    assert "--class-names FILE" in capsys.readouterr().err
    names = tmp_path / "names.txt"
    names.write_text(f"{ids[0]} tench\n{ids[1]} great white shark\n")
    assert main([*arguments, "--class-names", str(names)]) == 0
    out = capsys.readouterr().out
    assert "tench" in out and ids[0] not in out


def write_colors(root, per_class, seed):
    rng = np.random.default_rng(seed)
    for channel, name in enumerate(("red", "green", "blue")):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = rng.integers(0, 60, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
            pixels[..., channel] += rng.integers(100, 150, dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    root = tmp_path_factory.mktemp("colors")
    return [write_colors(root / f"{seed}", count, seed) for seed, count in enumerate((6, 3, 4))]


@pytest.mark.parametrize("family", ["folder", "vlmo"])
def test_a_probe_tells_colours_apart_as_the_plain_loop_does(family, colors, request):
    folder = request.getfixturevalue(family)
    sources = [DataSourceConfig(path=str(root)) for root in colors]
    loaded = []
    found, probe = probe_folder(folder, *sources, local_batch_size=4, on_loaded=loaded.append)
    assert [model.described().split("; ")[0] for model in loaded] == [f"{loaded[0].device} in fp32"]
    names = ["blue", "green", "red"]
    splits = []
    for root in colors:
        paths = images_of(root)
        labels = torch.tensor([names.index(path.parent.name) for path in paths])
        splits.append((states(folder, paths)[1], labels))
    plain = sweep_probe(splits[0], splits[1], num_classes=3)
    assert probe.c == plain.c
    torch.testing.assert_close(probe.weight, plain.weight, atol=1e-3, rtol=1e-3)
    values = values_of(found)
    assert values["probe"] == plain.accuracy(*splits[2]) == 1.0
    assert set(values) == {"probe", "probe_per_class", *(f"probe/{name}" for name in names)}
    assert "chosen on 9 of 27 images with frozen features" in found[0].protocol
    assert found[0].num_items == 12


@pytest.mark.parametrize("family", ["folder", "vlmo"])
def test_neighbours_tell_colours_apart_as_the_plain_loop_does(family, colors, request):
    folder = request.getfixturevalue(family)
    sources = [DataSourceConfig(path=str(root)) for root in colors]
    found, probe = probe_folder(folder, *sources, method="knn", local_batch_size=4)
    names = ["blue", "green", "red"]
    bank, labels = [], []
    for root in colors[:2]:
        paths = images_of(root)
        bank.append(states(folder, paths)[1])
        labels += [names.index(path.parent.name) for path in paths]
    bank = torch.cat(bank)
    test = images_of(colors[2])
    cosines = torch.nn.functional.cosine_similarity(
        states(folder, test)[1][:, None], bank[None], dim=-1
    )
    hits = []
    for path, row in zip(test, cosines, strict=True):
        votes = [0.0] * 3
        for place in row.argsort(descending=True)[: probe.k].tolist():
            votes[labels[place]] += math.exp((float(row[place]) - 1) / 0.07)
        hits.append(names[int(np.argmax(votes))] == path.parent.name)
    values = values_of(found)
    assert values["knn"] == pytest.approx(np.mean(hits))
    assert set(values) == {"knn", "knn_per_class", *(f"knn/{name}" for name in names)}
    assert "nearest neighbours by cosine, k chosen on 9 of 27 images" in found[0].protocol


def test_a_model_of_texts_alone_is_not_probed(folder, colors, tmp_path):
    """Random weights are refused; the same stage after one on images is not."""
    sources = [DataSourceConfig(path=str(root)) for root in colors]
    text_only = tmp_path / "text"
    shutil.copytree(folder, text_only)
    config = json.loads((text_only / "config.json").read_text())
    config["trained_for"] = ["language"]
    (text_only / "config.json").write_text(json.dumps(config))
    (text_only / "SHA256SUMS").unlink()
    with pytest.raises(CapabilityError, match="for language alone: its image encoder still has"):
        probe_folder(text_only, *sources)
    weights = load_file(text_only / "model.safetensors")
    name = next(n for n in weights if n.startswith("visual_encoder.blocks") and "bias" in n
                and "norm" not in n)  # fmt: skip
    weights[name] += 0.01
    save_file(weights, text_only / "model.safetensors")
    assert probe_folder(text_only, *sources)[0]


def test_images_alone_pass_through_vlmo(vlmo, noise):
    """`embed_images` needs no text, and gives what encoding one image after the other gives."""
    engine = triptych.load(vlmo, device="cpu", precision="fp32")
    paths = images_of(noise)[:5]
    found = torch.as_tensor(engine.embed_images([str(path) for path in paths]))
    torch.testing.assert_close(found, states(vlmo, paths)[0], atol=1e-5, rtol=1e-5)
    assert found.std(dim=0).max() > 0.01
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))


@pytest.mark.slow
def test_scenes_have_classes_to_name_and_to_probe(tmp_path, pretrained, capsys):
    """`triptych data scenes` writes class folders; four steps of training teach no names yet."""
    out, model = str(tmp_path / "scenes"), str(pretrained / "model")
    sizes = ["--num-images", "400", "--num-val", "150", "--num-test", "150"]
    assert main(["data", "scenes", out, *sizes, "--formats", "classes"]) == 0
    parts = {name: f"{out}/classes/{split}" for name, split in
             (("train", "train"), ("validation", "val"), ("test", "test"))}  # fmt: skip
    arguments = [word for name, path in parts.items() for word in (f"--{name}", path)]
    scores = tmp_path / "scores.json"
    color = ["--label-pattern", "^(.+)_", "--json", str(scores)]
    assert main(["probe", model, *arguments, *color]) == 0
    metric = json.loads(scores.read_text())["metrics"][0]
    assert metric["num_items"] == 30
    assert "probing on" in capsys.readouterr().err
    assert metric["value"] > 0.3  # of eight colours, from features that are hardly trained
    zero = ["--task", "zero_shot", "--data", parts["test"], "--label-pattern", "_(.+)$"]
    assert main(["eval", model, *zero]) == 0
    assert "Of 6 classes, each the mean of 80 sentences" in capsys.readouterr().out


def test_an_unknown_class_is_named(folder, colors, tmp_path):
    write_colors(tmp_path / "more", 1, 9)
    (tmp_path / "more" / "red").rename(tmp_path / "more" / "pink")
    sources = [DataSourceConfig(path=str(root)) for root in (*colors[:2], tmp_path / "more")]
    with pytest.raises(DataError, match=r"no image of class 'pink' \(it has: blue, green, red\)"):
        probe_folder(folder, *sources)


@pytest.mark.parametrize("verb", ["probe", "eval"])
def test_the_message_on_bad_images_names_the_flag_of_the_verb(
    folder, noise, tmp_path, capsys, verb
):
    for name in ("blue", "red"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(images_of(noise)[0].read_bytes())
    (tmp_path / "red" / "2.png").write_bytes(b"no image")
    arguments = {
        "probe": [word for part in ("train", "validation", "test") for word in (f"--{part}", "")],
        "eval": ["--task", "zero_shot", "--data", ""],
    }[verb]
    data = [word or str(tmp_path) for word in arguments]
    assert main([verb, str(folder), *data]) == 2
    assert "or allow more with --max-bad-share 0.34\n" in capsys.readouterr().err


def test_the_command_line_probes(folder, colors, tmp_path, capsys):
    train, validation, test = map(str, colors)
    arguments = ["--train", train, "--validation", validation, "--test", test]
    scores = tmp_path / "scores.json"
    assert main(["probe", str(folder), *arguments, "--json", str(scores)]) == 0
    assert "probe/red" in capsys.readouterr().out
    content = json.loads(scores.read_text())
    assert content["metrics"][0]["value"] == 1.0
    assert f"{content['c']:.6g}" in content["validation_accuracy"]
    assert main(["probe", str(folder), *arguments, "--method", "knn", "--json", str(scores)]) == 0
    assert "knn/red" in capsys.readouterr().out
    content = json.loads(scores.read_text())
    assert (content["method"], content["k"]) == ("knn", 10)


def test_a_set_in_one_folder_is_probed_by_its_splits(folder, tmp_path, capsys):
    root = tmp_path / "set"
    for part, seed in (("train", 1), ("test", 2)):
        write_colors(root / part, per_class=10, seed=seed)
    scores = tmp_path / "scores.json"
    arguments = ["probe", str(folder), "--train", str(root), "--train-split", "train"]
    assert main([*arguments, "--test-split", "test", "--json", str(scores)]) == 0
    fifth = json.loads(scores.read_text())["metrics"][0]
    assert fifth["value"] > 0.8
    assert "chosen on 6 of 30 images" in fifth["protocol"]
    more = ["--validation-split", "test", "--test-split", "test", "--json", str(scores)]
    assert main([*arguments, *more]) == 0
    protocol = json.loads(scores.read_text())["metrics"][0]["protocol"]
    assert "chosen on 30 of 60 images" in protocol
    assert main(arguments) == 2
    assert main([*arguments, "--test-split", "train"]) == 2
    assert "name the images to score on" in capsys.readouterr().err


def test_the_command_line_classifies(folder, noise, tmp_path, capsys):
    image, other = map(str, images_of(noise)[:2])
    labels = ["red circle", "green star", "blue square"]
    expected = triptych.load(folder).classify(image, labels)
    assert (
        main(["classify", str(folder), image, "--labels", "red circle, green star,blue square"])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{share:.4f}\t{label}" for label, share in expected.items()]
    templates = tmp_path / "t.txt"
    templates.write_text("\n".join(TEMPLATES))
    more = ["--labels", "red circle,green star,blue square", "--templates", str(templates)]
    assert main(["classify", str(folder), image, other, *more, "--top", "1", "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = triptych.load(folder).classify([image, other], labels, templates=TEMPLATES)
    for line, path, shares in zip(found, (image, other), expected, strict=True):
        label, share = next(iter(shares.items()))
        assert line == {"image": path, "labels": {label: pytest.approx(share, abs=1e-5)}}


def test_the_command_line_scores_zero_shot(folder, noise, tmp_path, capsys):
    templates = tmp_path / "t.txt"
    templates.write_text("\n".join(TEMPLATES))
    options = ["--task", "zero_shot", "--data", str(noise), "--templates", str(templates)]
    assert main(["eval", str(folder), *options]) == 0
    assert "the mean of 3 sentences" in capsys.readouterr().out


def test_names_alone_classify_as_a_plain_loop(folder, noise):
    engine = triptych.load(folder, device="cpu", precision="fp32")
    paths = images_of(noise)[:3]
    labels = ["red_circle", "green star", "no"]
    found = engine.classify([str(path) for path in paths], labels, templates=TEMPLATES)
    cosines = states(folder, paths)[0] @ class_vectors(folder, labels, TEMPLATES).T
    for shares, row in zip(found, cosines.tolist(), strict=True):
        weights = [math.exp(100 * (c - max(row))) for c in row]
        expected = {n: w / sum(weights) for n, w in zip(labels, weights)}
        assert shares == pytest.approx(expected, abs=1e-3)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
    single = engine.classify(str(paths[0]), labels, templates=TEMPLATES)
    assert single == pytest.approx(found[0], abs=1e-4)


@pytest.mark.parametrize(
    ("labels", "templates", "message"),
    [
        (["red"], TEMPLATES, "1 label: give two or more"),
        (["red", "_"], TEMPLATES, "label '_' is empty"),
        (["red circle", "red_circle"], TEMPLATES, "given twice"),
        (["red", "blue"], ["a photo"], "must hold {} once"),
        (["red", "blue"], [], "at least one template"),
    ],
)
def test_names_that_cannot_be_told_apart_are_refused(folder, noise, labels, templates, message):
    with pytest.raises(DataError, match=message):
        triptych.load(folder).classify(str(images_of(noise)[0]), labels, templates=templates)
