"""WordPiece text: train, load, save, encode and decode.

The vocabulary, lower-casing and splitting are BERT's, done by the `tokenizers` library. [CLS] and
[SEP] are added here and not by the library's post-processor, and no text is ever read as a
special token: a caption that holds the characters "[SEP]" is split like any other text.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from triptych.core.config import check
from triptych.core.errors import DataError
from triptych.core.files import write_atomic
from triptych.core.reading import read_text, reading

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUATION = "##"
ASCII = string.ascii_lowercase + string.digits + string.punctuation
MAX_ALPHABET = 1000  # distinct characters kept, as BERT's vocabulary builder does
PROBES = ("a dog \u2603 \U0010fffd", "x" * 200)
"""Words, a character and a length that no vocabulary knows."""

MAX_WORD_CHARS = 100  # a longer word is [UNK] (BERT)

_UNUSED = re.compile(r"\[unused(\d+)\]")
_BEFORE = re.compile(r" ([.,!?;:%)\]])")
_AFTER = re.compile(r"([(\[]) ")
_INSIDE = re.compile(r"(?<=\w) ([-'/’]) (?=\w)")
_NUMBER = re.compile(r"(?<=\d)([.,:]) (?=\d)")


class Tokenizer:
    """Lower-case WordPiece with BERT's rules.

    Attributes:
        vocab_size: Number of tokens, V.
        pad_id: Id of [PAD]; likewise `unk_id`, `cls_id`, `sep_id`, `mask_id`.
        special_ids: The five ids above.
        unused_ids: Ids of [unused0], [unused1] and so on: spare rows of the embedding table.
        is_continuation: (V,) bool, True = the piece continues a word (it starts with ##).
        is_word: (V,) bool, True = the piece holds a letter or a digit and is neither special nor
            unused.
    """

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        """Wrap a tokenizer of the `tokenizers` library.

        Args:
            inner: A WordPiece tokenizer whose ids are 0..V-1; it must not pad, truncate or add
                tokens of its own.

        Raises:
            DataError: A special token is missing.
        """
        vocab: dict[str, int] = inner.get_vocab(with_added_tokens=True)
        missing = [token for token in SPECIAL_TOKENS if token not in vocab]
        if missing:
            raise DataError(f"the vocabulary lacks {', '.join(missing)}: it is not BERT's kind")
        self._inner = inner
        self._vocab = vocab
        self.vocab_size = max(vocab.values()) + 1
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            vocab[token] for token in SPECIAL_TOKENS
        )
        self.special_ids = frozenset(vocab[token] for token in SPECIAL_TOKENS)
        self._pieces = [""] * self.vocab_size
        for token, token_id in vocab.items():
            self._pieces[token_id] = token
        self.unused_ids = frozenset(i for i, p in enumerate(self._pieces) if _UNUSED.fullmatch(p))
        self._silent = self.special_ids | self.unused_ids
        self.is_continuation = np.array([p.startswith(CONTINUATION) for p in self._pieces])
        self.is_word = np.array(
            [
                i not in self._silent and any(c.isalnum() for c in piece)
                for i, piece in enumerate(self._pieces)
            ]
        )

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, num_unused: int = 100) -> Tokenizer:
        """Learn a vocabulary from texts; the same texts give the same vocabulary.

        Ids: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, then [unused0..num_unused-1], then
        characters, then pieces. A vocabulary that is not tiny knows every ASCII character, also
        those that the texts lack.

        Args:
            texts: The captions, questions and answers of the user's data; gone through twice, so
                that only those of an iterator are kept in memory.
            vocab_size: Largest number of tokens; little text gives fewer.
            num_unused: Spare tokens; grounding takes its coordinate tokens from these.

        Raises:
            ConfigError: `vocab_size` leaves no room for pieces.
            DataError: There is no text.
        """
        reserved = [*SPECIAL_TOKENS, *(f"[unused{i}]" for i in range(num_unused))]
        least = len(reserved) + 2
        must = f"be at least {least}: {len(SPECIAL_TOKENS)} special and {num_unused} unused tokens"
        check(vocab_size >= least, "vocab_size", vocab_size, f"{must} come first")
        normalizer, splitter = _normalizer(), pre_tokenizers.BertPreTokenizer()
        kept = list(texts) if isinstance(texts, Iterator) else texts
        alphabet = _alphabet(kept, normalizer, (vocab_size - len(reserved)) // 2)
        if not alphabet:
            raise DataError("cannot train a tokenizer: the texts are empty")
        # The library numbers ##-characters in the random order of a hash map, and breaks ties
        # between merges by those numbers. Naming them in advance fixes both.
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=reserved + [CONTINUATION + char for char in alphabet],
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        )
        learner = tokenizers.Tokenizer(models.WordPiece(unk_token=UNK))
        learner.normalizer, learner.pre_tokenizer = normalizer, splitter
        learner.train_from_iterator(kept, trainer)
        return cls(_build(learner.get_vocab(), normalizer, splitter))

    @classmethod
    def without_words(cls) -> Tokenizer:
        """Return a placeholder that knows the special tokens alone: every word is [UNK]."""
        vocab = {token: token_id for token_id, token in enumerate(SPECIAL_TOKENS)}
        return cls(_build(vocab, _normalizer(), pre_tokenizers.BertPreTokenizer()))

    @property
    def has_words(self) -> bool:
        """Whether it knows more than special and unused tokens."""
        return len(self._silent) < self.vocab_size

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Load a `tokenizer.json`, a BERT `vocab.txt`, or a folder that holds one of them.

        Raises:
            DataError: There is no such file, or it is not a WordPiece vocabulary.
        """
        path = Path(path)
        if path.is_dir():
            names = ("tokenizer.json", "vocab.txt")
            found = [path / name for name in names if (path / name).is_file()]
            if not found:
                raise DataError(f"{path}: holds neither tokenizer.json nor vocab.txt")
            path = found[0]
        text = read_text(path)
        with reading(path):
            tokenizer = cls(
                _from_json(text, path) if path.suffix == ".json" else _from_vocab(text, path)
            )
            # what is only wrong where a word is unknown is wrong now, not in the midst of a run
            tokenizer.encode(PROBES, max_tokens=16)
            return tokenizer

    def save(self, folder: str | Path) -> Path:
        """Write `tokenizer.json` into `folder` and return its path."""
        path = Path(folder) / "tokenizer.json"
        write_atomic(path, self.to_json())
        return path

    def to_json(self) -> str:
        """Return the content of `tokenizer.json`."""
        return str(self._inner.to_str(pretty=True)) + "\n"

    def unused_id(self, index: int) -> int:
        """Return the id of `[unused<index>]`.

        Raises:
            DataError: The vocabulary has no such token.
        """
        token_id = self._vocab.get(f"[unused{index}]")
        if token_id is None:
            raise DataError(
                f"the vocabulary has {len(self.unused_ids)} unused tokens and no [unused{index}]: "
                "train the tokenizer with a larger num_unused"
            )
        return token_id

    def encode(
        self, texts: Sequence[str], *, max_tokens: int, add_sep: bool = True
    ) -> list[list[int]]:
        """Return `[CLS] pieces [SEP]` for each text.

        Args:
            texts: What to encode.
            max_tokens: Longest result, [CLS] and [SEP] counted; the pieces are cut, never [SEP].
            add_sep: Whether to end with [SEP].
        """
        room = max(max_tokens - 1 - add_sep, 0)
        tail = [self.sep_id] if add_sep else []
        found = self._inner.encode_batch(list(texts), add_special_tokens=False)
        return [[self.cls_id, *encoding.ids[:room], *tail] for encoding in found]

    def encode_words(self, text: str) -> tuple[list[int], list[int]]:
        """Return the pieces of a text, without [CLS] and [SEP], and where each word starts.

        A word is what white space separates, so "t-shirt" is one. Words that give no piece
        (control characters) have no start.

        Returns:
            Piece ids, and for each word the position of its first piece.
        """
        encoding = self._inner.encode(text.split(), is_pretokenized=True, add_special_tokens=False)
        starts: list[int] = []
        words: list[int | None] = encoding.word_ids
        for position, word in enumerate(words):
            if position == 0 or word != words[position - 1]:
                starts.append(position)
        return list(encoding.ids), starts

    def pad(self, id_lists: Sequence[Sequence[int] | np.ndarray]) -> tuple[Tensor, Tensor]:
        """Pad to the longest with [PAD].

        Returns:
            token_ids (B, L) int64 and text_mask (B, L) bool, True = real token.
        """
        lengths = np.array([len(ids) for ids in id_lists], dtype=np.int64)
        longest = int(lengths.max(initial=0))
        token_ids = np.full((len(id_lists), longest), self.pad_id, dtype=np.int64)
        for row, ids in zip(token_ids, id_lists, strict=True):
            row[: len(ids)] = ids
        mask = np.arange(longest) < lengths[:, None]  # (B, L)
        return torch.from_numpy(token_ids), torch.from_numpy(mask)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids up to the first [SEP], without special and unused tokens.

        Pieces are joined, and the spaces around punctuation that splitting made are removed:
        "a man ' s t - shirt ." is "a man's t-shirt."
        """
        words: list[str] = []
        for token_id in ids:
            if token_id == self.sep_id:
                break
            if token_id in self._silent:
                continue
            piece = self._pieces[token_id]
            if piece.startswith(CONTINUATION) and words:
                words[-1] += piece[len(CONTINUATION) :]
            else:
                words.append(piece.removeprefix(CONTINUATION))
        text = _INSIDE.sub(r"\1", _AFTER.sub(r"\1", _BEFORE.sub(r"\1", " ".join(words))))
        return _NUMBER.sub(r"\1", text)


def _normalizer() -> normalizers.Normalizer:
    return normalizers.BertNormalizer(lowercase=True)


def _alphabet(texts: Iterable[str], normalizer: normalizers.Normalizer, room: int) -> list[str]:
    """Return the most frequent characters, in code order; with room, all of ASCII as well.

    Captions without a digit would otherwise make every number of a later question unknown.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    chars = [char for char in counts if not char.isspace()]
    chars.sort(key=lambda char: (-counts[char], char))
    if chars and room >= 4 * len(ASCII):
        chars = [*ASCII, *(char for char in chars if char not in ASCII)]
    return sorted(chars[: min(MAX_ALPHABET, room)])


def _build(
    vocab: dict[str, int],
    normalizer: normalizers.Normalizer,
    splitter: pre_tokenizers.PreTokenizer,
) -> tokenizers.Tokenizer:
    """Return a WordPiece tokenizer that knows the vocabulary and no added tokens."""
    model = models.WordPiece(vocab, unk_token=UNK, max_input_chars_per_word=MAX_WORD_CHARS)
    inner = tokenizers.Tokenizer(model)
    inner.normalizer, inner.pre_tokenizer = normalizer, splitter
    return inner


def _from_json(text: str, path: Path) -> tokenizers.Tokenizer:
    try:
        plain: dict[str, Any] = json.loads(text)
        kind = plain["model"]["type"]
        if kind != "WordPiece":
            raise DataError(f"{path}: holds a {kind} model, and WordPiece is needed")
        known = plain["model"]["vocab"]
        plain["added_tokens"] = [a for a in plain["added_tokens"] if a["content"] not in known]
        for key in ("truncation", "padding", "post_processor"):
            plain[key] = None
        return tokenizers.Tokenizer.from_str(json.dumps(plain))
    except DataError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{path}: is not a tokenizer.json: {error}") from error


def _from_vocab(text: str, path: Path) -> tokenizers.Tokenizer:
    tokens = [line.rstrip("\r") for line in text.split("\n")]
    while tokens and not tokens[-1]:
        tokens.pop()
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        twice = next(token for token, count in Counter(tokens).items() if count > 1)
        raise DataError(f"{path}: the token {twice!r} stands on two lines")
    return _build(vocab, _normalizer(), pre_tokenizers.BertPreTokenizer())
