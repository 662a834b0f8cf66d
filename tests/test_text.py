import json
import unicodedata

import numpy as np
import pytest
import torch

from triptych.core.errors import ConfigError, DataError
from triptych.text import Tokenizer

TEXTS = [
    "A small red circle above a large blue square.",
    "two dogs playing on the beach, near the sea",
    "a man's t-shirt, 50% off (3.5 dollars)!",
    "the dog is jumping over a jumped jumper",
    "Café crème brûlée",
] * 3

VOCAB = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "un", "##aff", "##able",
         "cafe", ",", "##s", "dog", "[", "]", "sep", "##t"]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=200, num_unused=7)


def test_a_placeholder_knows_the_special_tokens_alone(tokenizer, tmp_path):
    empty = Tokenizer.without_words()
    assert (empty.vocab_size, empty.has_words, tokenizer.has_words) == (5, False, True)
    again = Tokenizer.load(empty.save(tmp_path))
    assert again.encode(["two dogs"], max_tokens=9) == [[2, 1, 1, 3]]  # [CLS] [UNK] [UNK] [SEP]


@pytest.fixture
def bert(tmp_path) -> Tokenizer:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(VOCAB) + "\n", encoding="utf-8")
    return Tokenizer.load(path)


def wordpiece(word: str, vocab: list[str]) -> list[str]:
    """Greedy longest match first, as BERT's paper code describes it."""
    pieces, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = ("##" if start else "") + word[start:end]
            if piece in vocab:
                pieces.append(piece)
                start = end
                break
        else:
            return ["[UNK]"]
    return pieces


def reference_ids(text: str, vocab: list[str]) -> list[int]:
    """Lower, strip accents, split off punctuation, then WordPiece: an independent loop."""
    plain = unicodedata.normalize("NFD", text.lower())
    plain = "".join(c for c in plain if unicodedata.category(c) != "Mn")
    spaced = "".join(f" {c} " if not c.isalnum() and not c.isspace() else c for c in plain)
    return [vocab.index(p) for word in spaced.split() for p in wordpiece(word, vocab)]


def test_special_ids_come_first_and_unused_follow(tokenizer):
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id)
    assert (*ids, tokenizer.mask_id) == (0, 1, 2, 3, 4)
    assert [tokenizer.unused_id(i) for i in range(7)] == list(range(5, 12))
    assert tokenizer.unused_ids == set(range(5, 12))
    with pytest.raises(DataError, match="num_unused"):
        tokenizer.unused_id(7)


def test_training_twice_gives_the_same_vocabulary():
    # `tokenizers` alone gives another vocabulary each time on such texts: many ties.
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), size=5)) for _ in range(150)]
    texts = [" ".join(rng.choice(words, size=8)) for _ in range(100)]
    first, second = (Tokenizer.train(texts, vocab_size=150) for _ in range(2))
    assert first.to_json() == second.to_json()


@pytest.mark.parametrize("text", [*TEXTS[:5], "jumpers réd", "t-shirts/dogs"])
def test_encode_equals_a_plain_wordpiece_loop(tokenizer, text):
    vocab = list(json.loads(tokenizer.to_json())["model"]["vocab"])
    by_id = sorted(vocab, key=json.loads(tokenizer.to_json())["model"]["vocab"].get)
    (ids,) = tokenizer.encode([text], max_tokens=1000)
    assert ids == [2, *reference_ids(text, by_id), 3]


def test_encode_with_a_bert_vocabulary(bert):
    # "unaffable" is the worked example of BERT's own tokenizer.
    found = bert.encode(["The unaffable Café, dogs zebra"], max_tokens=40)
    assert found == [[3, 6, 7, 8, 9, 10, 11, 13, 12, 2, 4]]


def test_text_is_never_read_as_a_special_token(bert):
    assert bert.encode(["the [SEP] dog"], max_tokens=40) == [[3, 6, 14, 16, 15, 13, 4]]


def test_tokenizer_json_with_registered_specials_loads_alike(bert, tmp_path):
    # Published tokenizer.json files register the specials and add a post-processor.
    plain = json.loads(bert.to_json())
    plain["added_tokens"] = [
        {"id": 4, "content": "[SEP]", "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
    ]  # fmt: skip
    plain["post_processor"] = {"type": "BertProcessing", "sep": ["[SEP]", 4], "cls": ["[CLS]", 3]}
    plain["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst",
                           "stride": 0}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(plain))
    text = ["the [SEP] dog unaffable"]
    again = Tokenizer.load(tmp_path)
    assert again.encode(text, max_tokens=40) == bert.encode(text, max_tokens=40)


def test_save_and_load_behave_identically(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    texts = [*TEXTS[:5], "unseen words ÅÖ 東京 [MASK] \x00 ok"]
    assert again.encode(texts, max_tokens=30) == tokenizer.encode(texts, max_tokens=30)
    assert again.to_json() == tokenizer.to_json()
    np.testing.assert_array_equal(again.is_continuation, tokenizer.is_continuation)


@pytest.mark.parametrize(
    ("max_tokens", "add_sep", "expected"),
    [
        (5, True, [3, 6, 13, 6, 4]),
        (3, True, [3, 6, 4]),
        (2, True, [3, 4]),
        (4, False, [3, 6, 13, 6]),
        (9, False, [3, 6, 13, 6, 13]),
    ],
)
def test_truncation_keeps_the_end_token(bert, max_tokens, add_sep, expected):
    found = bert.encode(["the dog the dog"], max_tokens=max_tokens, add_sep=add_sep)
    assert found == [expected]


def test_pad_fills_to_the_longest(tokenizer):
    token_ids, mask = tokenizer.pad([[2, 9, 3], [2], []])
    assert torch.equal(token_ids, torch.tensor([[2, 9, 3], [2, 0, 0], [0, 0, 0]]))
    assert torch.equal(mask, torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=torch.bool))
    assert token_ids.dtype is torch.int64


@pytest.mark.parametrize("text", [t.lower() for t in TEXTS[:4]])
def test_decode_returns_the_text(tokenizer, text):
    (ids,) = tokenizer.encode([text], max_tokens=100)
    assert tokenizer.decode([*ids, 40, 41]) == text


def test_decode_drops_specials_and_joins_pieces(bert):
    assert bert.decode([3, 0, 6, 1, 7, 8, 9, 5, 13, 12, 4, 13]) == "the unaffable dogs"
    assert bert.decode([12, 13]) == "s dog"


def test_encode_words_gives_the_same_pieces_and_the_word_starts(bert):
    text = "the unaffable,dogs \x01 dog"
    ids, starts = bert.encode_words(text)
    assert [3, *ids, 4] == bert.encode([text], max_tokens=40)[0]
    assert ids == [6, 7, 8, 9, 11, 13, 12, 13]
    assert starts == [0, 1, 7]


def test_piece_facts(bert):
    assert [VOCAB[i] for i in np.flatnonzero(bert.is_continuation)] == [
        "##aff", "##able", "##s", "##t"
    ]  # fmt: skip
    assert not bert.is_word[[0, 1, 2, 3, 4, 5, 11, 14]].any()
    assert bert.is_word[[6, 7, 8, 9, 10, 12, 13, 16]].all()


def test_too_small_a_vocabulary_is_an_error():
    with pytest.raises(ConfigError, match=r"vocab_size = 50.*107"):
        Tokenizer.train(["a b"], vocab_size=50)


def test_no_text_is_an_error():
    with pytest.raises(DataError, match="empty"):
        Tokenizer.train(["", "  "], vocab_size=500)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("tokenizer.json", "{}", "not a tokenizer.json"),
        ("tokenizer.json", '{"model": {"type": "BPE"}}', "BPE"),
        ("vocab.txt", "a\nb\n", "lacks"),
        ("vocab.txt", "a\na\n", "two lines"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path, name, content, match):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=match):
        Tokenizer.load(tmp_path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="neither"):
        Tokenizer.load(tmp_path)
    with pytest.raises(DataError, match="nowhere"):
        Tokenizer.load(tmp_path / "nowhere.json")


def test_a_roomy_vocabulary_spells_what_its_texts_lack():
    tokenizer = Tokenizer.train(["a red circle"], vocab_size=1000)
    said = "why 1,234 boxes?"
    (ids,) = tokenizer.encode([said], max_tokens=50)
    assert tokenizer.unk_id not in ids
    assert tokenizer.decode(ids).replace(" ", "") == said.replace(" ", "")
    tight = Tokenizer.train(["a red circle"], vocab_size=200)
    assert tight.unk_id in tight.encode([said], max_tokens=50)[0]
