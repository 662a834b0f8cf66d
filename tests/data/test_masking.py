import numpy as np
import pytest

from triptych.data.masking import MaskingVocabulary, mask_tokens
from triptych.text import Tokenizer

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]", ",", "."]
VOCAB += [f"w{i}" for i in range(20)] + [f"##c{i}" for i in range(10)]
CLS, SEP, COMMA, DOT, WORD, PIECE = 2, 3, 7, 8, 9, 29
FIRST_RANDOM = COMMA


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> MaskingVocabulary:
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(VOCAB))
    return MaskingVocabulary.of(Tokenizer.load(path))


def masked_many(ids, vocabulary, num, **settings):
    rng = np.random.default_rng(0)
    found = [mask_tokens(np.array(ids), vocabulary, rng, **settings) for _ in range(num)]
    return np.stack([ids for ids, _ in found]), np.stack([labels for _, labels in found])


def test_share_of_chosen_tokens(vocabulary):
    # 200 words: the forced word (0.85^200) never matters, so the share is 0.15;
    # 300 * 200 draws have a standard deviation of 0.0015.
    ids = [CLS, *([WORD, WORD + 1] * 100), SEP]
    _, labels = masked_many(ids, vocabulary, 300)
    assert (labels[:, 1:-1] != -100).mean() == pytest.approx(0.15, abs=0.006)


@pytest.mark.parametrize("whole_word", [False, True])
def test_short_captions_are_chosen_by_the_stated_probability(vocabulary, whole_word):
    # p + (1 - p)^n / n for n = 3 words, with or without pieces: 0.15 + 0.6141 / 3 = 0.3547
    ids = [CLS, WORD, WORD + 1, WORD + 2, SEP]
    _, labels = masked_many(ids, vocabulary, 20000, whole_word=whole_word)
    share = (labels[:, 1:4] != -100).mean(axis=0)
    np.testing.assert_allclose(share, 0.35471, atol=0.012)


def test_chosen_tokens_split_80_10_10(vocabulary):
    ids = [CLS, *([WORD] * 200), SEP]
    masked, labels = masked_many(ids, vocabulary, 300, probability=0.5)
    new = masked[labels != -100]  # about 30,000: standard deviation of a share below 0.0025
    assert (new == 4).mean() == pytest.approx(0.8, abs=0.01)
    num_random = len(vocabulary.random_ids)
    assert (new == WORD).mean() == pytest.approx(0.1 + 0.1 / num_random, abs=0.01)
    others = new[(new != 4) & (new != WORD)]
    assert len(others) / len(new) == pytest.approx(0.1 * (1 - 1 / num_random), abs=0.01)
    assert others.min() == FIRST_RANDOM and set(others) == set(range(7, 39)) - {WORD}


def test_labels_hold_the_true_ids_and_the_rest_is_untouched(vocabulary):
    ids = np.array([CLS, WORD, PIECE, COMMA, WORD + 3, DOT, SEP])
    masked, labels = masked_many(ids, vocabulary, 500)
    chosen = labels != -100
    full = np.broadcast_to(ids, labels.shape)
    np.testing.assert_array_equal(labels[chosen], full[chosen])
    np.testing.assert_array_equal(masked[~chosen], full[~chosen])


@pytest.mark.parametrize("whole_word", [False, True])
def test_specials_and_unused_are_never_chosen(vocabulary, whole_word):
    ids = [CLS, WORD, 1, 5, 4, 0, 6, SEP]
    masked, labels = masked_many(ids, vocabulary, 300, probability=0.9, whole_word=whole_word)
    assert (labels[:, [0, 2, 3, 4, 5, 6, 7]] == -100).all()
    np.testing.assert_array_equal(masked[:, 2:], np.broadcast_to(ids[2:], (300, 6)))


@pytest.mark.parametrize("whole_word", [False, True])
@pytest.mark.parametrize("ids", [[CLS, WORD, SEP], [CLS, COMMA, WORD, DOT], [WORD, PIECE, DOT]])
def test_a_real_word_is_always_chosen(vocabulary, ids, whole_word):
    for probability in (0.0, 0.15):
        _, labels = masked_many(ids, vocabulary, 300, probability=probability,
                                whole_word=whole_word)  # fmt: skip
        assert (np.isin(labels, range(WORD, 39))).any(axis=1).all()


@pytest.mark.parametrize("whole_word", [False, True])
def test_a_caption_of_signs_alone_has_a_target_too(vocabulary, whole_word):
    _, labels = masked_many([CLS, COMMA, DOT, SEP], vocabulary, 300, whole_word=whole_word)
    assert (labels[:, 1:3] != -100).any(axis=1).all()
    assert (labels[:, [0, 3]] == -100).all()


def test_the_forced_word_is_uniform(vocabulary):
    ids = [CLS, COMMA, *range(WORD, WORD + 4), SEP]
    _, labels = masked_many(ids, vocabulary, 8000, probability=0.0)
    share = (labels != -100).mean(axis=0)
    np.testing.assert_allclose(share, [0, 0, 0.25, 0.25, 0.25, 0.25, 0], atol=0.02)


def test_nothing_to_mask(vocabulary):
    masked, labels = masked_many([CLS, 1, SEP], vocabulary, 20, probability=1.0)
    assert (masked == [CLS, 1, SEP]).all() and (labels == -100).all()


def test_whole_words_are_chosen_together(vocabulary):
    ids = [CLS, WORD, PIECE, PIECE + 1, WORD + 1, DOT, WORD + 2, PIECE, SEP]
    _, labels = masked_many(ids, vocabulary, 4000, whole_word=True)
    chosen = labels != -100
    assert (chosen[:, 1] == chosen[:, 2]).all() and (chosen[:, 1] == chosen[:, 3]).all()
    assert (chosen[:, 6] == chosen[:, 7]).all()
    assert (chosen[:, 1] != chosen[:, 4]).any() and (chosen[:, 1] != chosen[:, 6]).any()
    # by hand: 3 words with letters, one dot: a word has 0.15 + 0.85^3 / 3 = 0.3547, the dot 0.15
    np.testing.assert_allclose(chosen[:, [1, 4, 6, 5]].mean(axis=0),
                               [0.3547, 0.3547, 0.3547, 0.15], atol=0.025)  # fmt: skip


def test_pieces_alone_are_chosen_apart(vocabulary):
    _, labels = masked_many([CLS, WORD, PIECE, SEP], vocabulary, 300)
    assert ((labels[:, 1] != -100) != (labels[:, 2] != -100)).any()


def test_the_generator_decides_everything(vocabulary):
    ids = np.array([CLS, *([WORD] * 30), SEP])
    first, again = (mask_tokens(ids, vocabulary, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = mask_tokens(ids, vocabulary, np.random.default_rng(6))
    assert (first[0] != other[0]).any()
