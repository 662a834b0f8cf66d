import hashlib
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.core.errors import ConfigError
from triptych.data.collate import (
    CaptioningCollator,
    GroundingCollator,
    ImageKeyCollator,
    PretrainingCollator,
    PretrainingTextConfig,
    RetrievalCollator,
    SampleProblem,
    StatementCollator,
    VQACollator,
)
from triptych.data.collate.base import image_key
from triptych.data.manifest import DataSourceConfig, read_records
from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind
from triptych.data.transforms.pipeline import TransformedImage
from triptych.text import Tokenizer

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "dog", "t", "shirt", "-", "yes",
         "no", "it", "##s", "is", "?", "two", "runs", "##ning", "run", "!"]  # fmt: skip
ID = {token: i for i, token in enumerate(VOCAB)}
IMAGE = TransformedImage(np.zeros((4, 4, 3), dtype=np.uint8), width=200, height=100)
FLIPPED = TransformedImage(IMAGE.pixels, width=200, height=100, flipped=True)


def ids(tokens: str) -> list[int]:
    return [ID[token] for token in tokens.split()]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(VOCAB))
    return Tokenizer.load(path)


def rng(seed=0):
    return np.random.default_rng(seed)


def make(collator, *records, image=IMAGE, seed=0):
    source = rng(seed)
    return collator.batch([collator.sample(record, image, source) for record in records])


def caption(text, record_id="r", **fields):
    return Record(record_id=record_id, caption=text, **fields)


def test_pretraining_keys_and_full_caption(tokenizer):
    batch = make(PretrainingCollator(tokenizer), caption("A red dog!"), caption("Two t-shirts"))
    assert set(batch) == {
        "token_ids", "text_mask", "mlm_token_ids", "mlm_labels", "prefix_token_ids", "prefix_mask",
        "target_token_ids", "target_mask", "image_key", "caption_key",
    }  # fmt: skip
    # cleaning deletes "!" and makes a space of "-"
    first, second = ids("[CLS] a red dog [SEP] [PAD]"), ids("[CLS] two t shirt ##s [SEP]")
    assert batch["token_ids"].tolist() == [first, second]
    assert batch["text_mask"].tolist() == [[True] * 5 + [False], [True] * 6]


def test_equal_ids_of_two_sources_are_two_images(tmp_path):
    """Shards of one name in two folders, and annotations that count images alike."""
    records = []
    for folder in ("one", "two"):
        place = tmp_path / folder
        place.mkdir()
        Image.new("RGB", (4, 4)).save(place / "7.jpg")
        with tarfile.open(place / "00000.tar", "w") as tar:
            tar.add(place / "7.jpg", "000.jpg")
        images = [{"id": 7, "file_name": "7.jpg"}]
        annotations = [{"id": n, "image_id": 7, "caption": "a dog"} for n in (1, 2)]
        text = json.dumps({"images": images, "annotations": annotations})
        (place / "captions.json").write_text(text)
        for name, reader in (
            ("00000.tar", "auto"),
            ("captions.json", "auto"),
            (".", "image_folder"),
        ):
            source = DataSourceConfig(path=str(place / name), reader=reader)
            records.append(read_records(source).records)
    shard, coco, folder, other_shard, other_coco, other_folder = records
    assert coco[0].image_id == other_coco[0].image_id
    assert folder[0].image_id == other_folder[0].image_id
    assert image_key(coco[0]) == image_key(coco[1])  # two captions of one image
    assert image_key(coco[0]) == image_key(folder[0])  # one file, read in two ways
    first = {image_key(part[0]) for part in (shard, coco, folder)}
    second = {image_key(part[0]) for part in (other_shard, other_coco, other_folder)}
    assert len(first) == len(second) == 2 and not first & second
    both = DataSourceConfig(path=str(tmp_path / "{one,two}/00000.tar"))
    assert len({image_key(record) for record in read_records(both).records}) == 2


def test_files_that_a_source_gives_one_id_are_one_image(tmp_path):
    lines = [
        {"image": "a.jpg", "image_id": 1, "caption": "x"},
        {"image": "b.jpg", "image_id": 1, "caption": "y"},
        {"image": "c.jpg", "image_id": 2, "caption": "z"},
    ]
    (tmp_path / "a.jpg").touch()
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    records = read_records(DataSourceConfig(path=str(tmp_path / "m.jsonl"))).records
    a, b, c = map(image_key, records)
    assert a == b != c
    digest = hashlib.blake2b(str(tmp_path / "a.jpg").encode(), digest_size=8).digest()
    assert a == int.from_bytes(digest, "little") >> 1  # the same on every machine


def test_mlm_hides_what_its_labels_hold(tokenizer):
    collator = PretrainingCollator(tokenizer, PretrainingTextConfig(mlm_probability=0.5))
    for seed in range(20):
        batch = make(collator, caption("a red dog runs"), caption("no"), seed=seed)
        chosen = batch["mlm_labels"] != -100
        assert torch.equal(batch["mlm_labels"][chosen], batch["token_ids"][chosen])
        assert torch.equal(batch["mlm_token_ids"][~chosen], batch["token_ids"][~chosen])
        assert chosen.any(dim=1).all()
        assert not chosen[~batch["text_mask"]].any()
        assert not chosen[:, 0].any()


def strip(ids_row, mask_row):
    return ids_row[mask_row].tolist()


def test_prefix_and_target_split_at_words(tokenizer):
    # "running" and "its" are two pieces each, and must not be torn.
    words = ["a", "run ##ning", "dog", "it ##s"]
    splits = {
        (tuple(ids(" ".join(["[CLS]", *words[:k]]))),
         tuple(ids(" ".join(["[CLS]", *words[k:], "[SEP]"])))): k
        for k in range(4)
    }  # fmt: skip
    collator = PretrainingCollator(tokenizer)
    counts = np.zeros(4)
    for seed in range(50):
        batch = make(collator, *[caption("a running dog its")] * 20, seed=seed)
        for row in range(20):
            prefix = strip(batch["prefix_token_ids"][row], batch["prefix_mask"][row])
            target = strip(batch["target_token_ids"][row], batch["target_mask"][row])
            counts[splits[tuple(prefix), tuple(target)]] += 1
    np.testing.assert_allclose(counts / 1000, 0.25, atol=0.055)  # standard deviation 0.014


def test_hyphenated_words_are_words_of_the_cleaned_caption(tokenizer):
    found = set()
    for seed in range(40):
        batch = make(PretrainingCollator(tokenizer), caption("red t-shirt"), seed=seed)
        found.add(tuple(strip(batch["prefix_token_ids"][0], batch["prefix_mask"][0])))
    assert found == {tuple(ids(p)) for p in ("[CLS]", "[CLS] red", "[CLS] red t")}


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 1 / 64), (0.6, 0.606), (1.0, 1.0)])
def test_empty_prefix_probability(tokenizer, probability, expected):
    # by hand: p + (1 - p) / 4³ for batches of three captions of four words
    config = PretrainingTextConfig(empty_prefix_probability=probability)
    collator = PretrainingCollator(tokenizer, config)
    source = rng()
    record = caption("a red dog runs")
    batches = [
        collator.batch([collator.sample(record, IMAGE, source) for _ in range(3)])
        for _ in range(2000)
    ]
    all_empty = [int(batch["prefix_mask"].sum()) == 3 for batch in batches]
    assert np.mean(all_empty) == pytest.approx(expected, abs=0.05)


def test_long_captions_are_cut_and_keep_their_end(tokenizer):
    config = PretrainingTextConfig(max_text_tokens=5)
    batch = make(PretrainingCollator(tokenizer, config), caption("a its its its"))
    assert batch["token_ids"].tolist() == [ids("[CLS] a it ##s [SEP]")]
    few_words = PretrainingTextConfig(max_words=2)
    batch = make(PretrainingCollator(tokenizer, few_words), caption("a red dog runs"))
    assert batch["token_ids"].tolist() == [ids("[CLS] a red [SEP]")]


def test_keys_tell_images_and_captions_apart(tokenizer):
    batch = make(
        PretrainingCollator(tokenizer),
        caption("A red dog.", image_id="1"),
        caption("a  RED dog", image_id="2"),
        caption("a dog", image_id="1"),
        caption("no", image=ImageSource("x.jpg")),
        caption("no", image=ImageSource("y.jpg")),
    )
    image, text = batch["image_key"].tolist(), batch["caption_key"].tolist()
    assert image[0] == image[2] and len(set(image)) == 4
    assert text[0] == text[1] and text[3] == text[4] and len(set(text)) == 3
    # blake2b of the content, written out here: the same on every machine, 63 bits
    digest = hashlib.blake2b(b"1", digest_size=8).digest()
    assert image[0] == int.from_bytes(digest, "little") >> 1
    digest = hashlib.blake2b(b"a red dog", digest_size=8).digest()
    assert text[0] == int.from_bytes(digest, "little") >> 1


@pytest.mark.parametrize(
    ("caption_text", "kind"),
    [(None, SkipKind.MISSING_FIELD), ("", SkipKind.EMPTY_CAPTION), (" \t", SkipKind.EMPTY_CAPTION)],
)
@pytest.mark.parametrize("collator", [PretrainingCollator, RetrievalCollator, CaptioningCollator])
def test_records_without_a_caption_are_named(tokenizer, collator, caption_text, kind):
    with pytest.raises(SampleProblem, match="record 7") as caught:
        make(collator(tokenizer), caption(caption_text, "7"))
    assert caught.value.kind is kind


@pytest.mark.parametrize("collator", [PretrainingCollator, RetrievalCollator])
def test_captions_that_cleaning_empties_are_named(tokenizer, collator):
    with pytest.raises(SampleProblem, match=r"record 7: nothing is left of the caption '\?!'"):
        make(collator(tokenizer), caption("?!", "7"))


@pytest.mark.parametrize("field", ["mlm_probability", "empty_prefix_probability"])
def test_config_rejects_what_is_no_probability(field):
    with pytest.raises(ConfigError, match=field):
        PretrainingTextConfig(**{field: 1.2})


def test_captioning_keeps_punctuation(tokenizer):
    batch = make(CaptioningCollator(tokenizer), caption("A T-shirt !"), caption("dog"))
    rows = [ids("[CLS] a t - shirt ! [SEP]"), ids("[CLS] dog [SEP] [PAD] [PAD] [PAD] [PAD]")]
    assert batch["target_token_ids"].tolist() == rows
    assert batch["target_mask"].sum(dim=1).tolist() == [7, 3]


def test_captioning_works_without_captions_in_evaluation(tokenizer):
    collator = CaptioningCollator(tokenizer, train=False)
    assert make(collator, Record(record_id="1"), caption("a dog")) == {}
    assert "target_token_ids" in make(collator, caption("a dog"))


def test_retrieval_has_captions_and_keys(tokenizer):
    batch = make(RetrievalCollator(tokenizer), caption("A dog!", image_id="1"))
    assert set(batch) == {"token_ids", "text_mask", "image_key", "caption_key"}
    assert batch["token_ids"].tolist() == [ids("[CLS] a dog [SEP]")]


def question(answers, text="is it red?", record_id="q"):
    return Record(record_id=record_id, question=text, answers=tuple(answers))


def test_vqa_weights_distinct_answers(tokenizer):
    batch = make(
        VQACollator(tokenizer),
        question(["yes"] * 6 + ["Yes"] + ["no"] * 2 + ["red dog"]),
        question(["two", ""], "two?"),
    )
    assert batch["token_ids"].tolist() == [
        ids("[CLS] is it red ? [SEP]"), ids("[CLS] two ? [SEP] [PAD] [PAD]")
    ]  # fmt: skip
    rows = ["yes [SEP] [PAD]", "no [SEP] [PAD]", "red dog [SEP]", "two [SEP] [PAD]"]
    assert batch["answer_token_ids"].tolist() == [ids(f"[CLS] {row}") for row in rows]
    assert batch["answer_mask"].sum(dim=1).tolist() == [3, 3, 4, 3]
    torch.testing.assert_close(batch["answer_weight"], torch.tensor([0.7, 0.2, 0.1, 1.0]))
    assert batch["answer_row"].tolist() == [0, 0, 0, 1]


def test_answers_of_another_set_may_weigh_less(tokenizer):
    records = [question(["yes"]), question(["yes", "no"]), question(["two"])]
    records = [replace(r, answers_weight=w) for r, w in zip(records, (0.5, 0.5, None), strict=True)]
    batch = make(VQACollator(tokenizer), *records)
    torch.testing.assert_close(batch["answer_weight"], torch.tensor([0.5, 0.25, 0.25, 1.0]))


SEEN = {"ocr_words": ("two", "runs"), "object_words": ("red dog", "shirt")}


@pytest.mark.parametrize(
    ("fields", "options", "expected"),
    [
        (SEEN, {}, "[CLS] is it ? [SEP] two runs [SEP] red dog shirt [SEP]"),
        ({"ocr_words": ("two",)}, {}, "[CLS] is it ? [SEP] two [SEP]"),
        ({"object_words": ("dog",)}, {}, "[CLS] is it ? [SEP] dog [SEP]"),
        (SEEN, {"append_words": False}, "[CLS] is it ? [SEP]"),
        (SEEN, {"max_question_tokens": 7}, "[CLS] is it ? [SEP] two [SEP]"),
        ({"ocr_words": ("a",) * 40}, {"max_question_tokens": 80}, "[CLS] is it ? [SEP]"
         + " a" * 30 + " [SEP]"),
    ],
)  # fmt: skip
def test_what_ocr_and_a_detector_found_follows_the_question(tokenizer, fields, options, expected):
    record = Record(record_id="q", question="is it?", answers=("no",), **fields)
    batch = make(VQACollator(tokenizer, **options), record)
    assert batch["token_ids"].tolist() == [ids(expected)]


LEFT, RIGHT = ImageSource("left.png"), ImageSource("right.png")
TWO = {"images": (LEFT, RIGHT), "statement": "Is the left dog red?"}


def statement(**fields):
    return Record(record_id="s", **({"label": True} | TWO | fields))


def test_statements_and_their_truth(tokenizer):
    collator = StatementCollator(tokenizer)
    records = [statement(), statement(statement="two", label=False)]
    arranged = [collator.arrange(record, rng()) for record in records]
    assert arranged == records
    batch = collator.batch([collator.pair_sample(record, rng()) for record in arranged])
    assert batch["token_ids"].tolist() == [
        ids("[CLS] is [UNK] [UNK] dog red ? [SEP]"),
        ids("[CLS] two [SEP] [PAD] [PAD] [PAD] [PAD] [PAD]"),
    ]
    assert batch["label"].tolist() == [1, 0]


def test_half_of_the_pairs_change_places_and_their_sides_with_them(tokenizer):
    collator = StatementCollator(tokenizer, swap_probability=0.5)
    source = rng()
    found = [collator.arrange(statement(), source) for _ in range(400)]
    swapped = [record for record in found if record.images == (RIGHT, LEFT)]
    assert 150 < len(swapped) < 250  # five standard deviations
    assert {record.statement for record in swapped} == {"Is the right dog red?"}
    assert all(record == statement() for record in found if record.images == (LEFT, RIGHT))
    judged = StatementCollator(tokenizer, swap_probability=1.0, train=False)
    assert judged.arrange(statement(), rng()) == statement()


def test_what_is_no_statement_about_two_images(tokenizer):
    collator = StatementCollator(tokenizer)
    with pytest.raises(SampleProblem, match="record s: has 3 images, not two"):
        collator.arrange(statement(images=(LEFT, RIGHT, LEFT)), rng())
    with pytest.raises(SampleProblem, match="record s: has no statement"):
        collator.pair_sample(statement(statement=None), rng())
    with pytest.raises(SampleProblem, match="whether its statement is true") as caught:
        collator.pair_sample(statement(label=None), rng())
    assert caught.value.kind is SkipKind.BAD_LABEL
    judged = StatementCollator(tokenizer, train=False)
    sample = judged.pair_sample(statement(label=None), rng())
    assert judged.batch([sample])["label"].tolist() == [-100]


def test_images_that_give_a_reward_are_named_by_their_keys():
    same = [caption("x", "1", image_id="p"), caption("y", "2", image_id="p")]
    keys = make(ImageKeyCollator(), *same, caption("x", "3", image_id="q"))["image_key"].tolist()
    assert keys[0] == keys[1] != keys[2]


def test_vqa_without_answers(tokenizer):
    with pytest.raises(SampleProblem, match="record q") as caught:
        make(VQACollator(tokenizer), question([]))
    assert caught.value.kind is SkipKind.BAD_ANSWERS
    collator = VQACollator(tokenizer, train=False)
    assert set(make(collator, question([]), question([]))) == {"token_ids", "text_mask"}
    batch = make(collator, question([]), question(["no"]))
    assert batch["answer_row"].tolist() == [1]


def phrase(box, text="red dog"):
    return Record(record_id="g", phrase=text, box=box)


def test_grounding_scales_and_mirrors_the_box(tokenizer):
    collator = GroundingCollator(tokenizer)
    source = rng()
    box = phrase((20.0, 10.0, 40.0, 60.0))  # of an image of 200 x 100
    samples = [collator.sample(box, image, source) for image in (IMAGE, FLIPPED)]
    batch = collator.batch(samples)
    assert batch["token_ids"].tolist() == [ids("[CLS] red dog [SEP]")] * 2
    # centre (40, 40), mirrored (160, 40)
    expected = torch.tensor([[0.2, 0.4, 0.2, 0.6], [0.8, 0.4, 0.2, 0.6]])
    torch.testing.assert_close(batch["box_cxcywh"], expected)
    assert batch["image_size_px"].tolist() == [[200, 100], [200, 100]]


@pytest.mark.parametrize("box", [(300.0, 10.0, 40.0, 60.0), (20.0, 10.0, 0.0, 60.0)])
def test_grounding_names_useless_boxes(tokenizer, box):
    with pytest.raises(SampleProblem, match=r"record g.*200 x 100") as caught:
        make(GroundingCollator(tokenizer), phrase(box))
    assert caught.value.kind is SkipKind.BAD_BOX


def test_grounding_without_boxes(tokenizer):
    with pytest.raises(SampleProblem, match="no box"):
        make(GroundingCollator(tokenizer), phrase(None))
    batch = make(GroundingCollator(tokenizer, train=False), phrase(None))
    assert set(batch) == {"token_ids", "text_mask", "image_size_px"}
