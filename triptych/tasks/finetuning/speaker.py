"""Say texts from a decoder's memory: by search, by chance, or out of a closed list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from triptych.generation.answers import AnswerTrie, rank_answers, search_answers
from triptych.generation.decoding import CachedDecoder
from triptych.generation.sampling import Samples, SamplingConfig, sample_texts
from triptych.generation.search import BeamConfig, Hypothesis, beam_search, greedy_search
from triptych.nn.decoder import DecoderMemory, TextDecoder
from triptych.text import Tokenizer

SCORES_AT_ONCE = 1 << 26
"""Word scores that a ranking holds at a time: 256 MiB."""


class Speaker:
    """A decoder with its words.

    Every text begins with [CLS] and the prompt, which is forced, and ends with [SEP]; what the
    methods return holds none of these.

    Args:
        decoder: In eval mode, unless dropout is wanted.
        tokenizer: Its words.
        prompt: Words that every text begins with, such as "a picture of"; empty for none.
    """

    def __init__(self, decoder: TextDecoder, tokenizer: Tokenizer, prompt: str = "") -> None:
        self.decoder, self.tokenizer = decoder, tokenizer
        self.prompt_ids = self.ids(prompt)

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a text, lower-cased, without [CLS] and [SEP]."""
        limit = self.decoder.config.max_positions
        plain = " ".join(text.lower().split())
        return self.tokenizer.encode([plain], max_tokens=limit, add_sep=False)[0][1:]

    def text(self, token_ids: Sequence[int]) -> str:
        """Return tokens as a text."""
        return self.tokenizer.decode(token_ids)

    def prompt(self, batch_size: int, device: torch.device | None = None) -> Tensor:
        """Return the prompt (B, T) int64; T is 0 without one."""
        row = torch.tensor([self.prompt_ids], dtype=torch.int64, device=device)
        return row.expand(batch_size, -1)

    def search(self, memory: DecoderMemory, config: BeamConfig) -> list[list[Hypothesis]]:
        """Return the n-best texts of each image, best first."""
        return beam_search(
            CachedDecoder(self.decoder, memory),
            start_id=self.tokenizer.cls_id,
            end_id=self.tokenizer.sep_id,
            config=config,
            prompt=self.prompt(memory.batch_size),
        )

    def greedy(self, memory: DecoderMemory, *, min_tokens: int, max_tokens: int) -> list[list[int]]:
        """Return the text of each image whose every token is the likeliest."""
        return greedy_search(
            CachedDecoder(self.decoder, memory),
            start_id=self.tokenizer.cls_id,
            end_id=self.tokenizer.sep_id,
            min_tokens=min_tokens,
            max_tokens=max_tokens,
            prompt=self.prompt(memory.batch_size),
        )

    def sample(
        self,
        memory: DecoderMemory,
        config: SamplingConfig,
        generator: torch.Generator | None = None,
    ) -> Samples:
        """Draw texts for each image."""
        return sample_texts(
            CachedDecoder(self.decoder, memory),
            start_id=self.tokenizer.cls_id,
            end_id=self.tokenizer.sep_id,
            config=config,
            generator=generator,
            prompt=self.prompt(memory.batch_size),
        )

    def answer_ids(self, answers: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the tokens of each answer of a closed list."""
        return [tuple(self.ids(answer)) for answer in answers]

    def rank(
        self, memory: DecoderMemory, answers: Sequence[Sequence[int]], top_k: int | None = None
    ) -> list[int]:
        """Return for each image the position of the likeliest answer of a closed list."""
        kept = min(top_k or len(answers), len(answers))
        best: list[int] = []
        for part in _parts(memory, kept * self.decoder.config.vocab_size):
            ranked = rank_answers(
                CachedDecoder(self.decoder, part),
                answers,
                start_id=self.tokenizer.cls_id,
                end_id=self.tokenizer.sep_id,
                top_k=top_k,
                prompt=self.prompt(part.batch_size),
            )
            best += ranked.index[:, 0].tolist()
        return best

    def search_list(
        self, memory: DecoderMemory, answers: Sequence[Sequence[int]], num_beams: int
    ) -> list[int]:
        """Return for each image the position of the answer that a beam search finds in a list."""
        end_id = self.tokenizer.sep_id
        found = search_answers(
            CachedDecoder(self.decoder, memory),
            AnswerTrie(answers, end_id, self.decoder.config.vocab_size),
            start_id=self.tokenizer.cls_id,
            end_id=end_id,
            num_beams=num_beams,
            prompt=self.prompt(memory.batch_size),
        )
        places = {tuple(ids): place for place, ids in reversed(list(enumerate(answers)))}
        return [places[texts[0].token_ids] for texts in found]


def _parts(memory: DecoderMemory, scores_per_image: int) -> Iterator[DecoderMemory]:
    """Yield the memory in parts of so many images that their scores fit."""
    size = max(1, SCORES_AT_ONCE // scores_per_image)
    if size >= memory.batch_size:
        yield memory
        return
    rows = torch.arange(memory.batch_size, device=memory.layers[0].key.device)
    for part in rows.split(size):  # type: ignore[no-untyped-call]
        yield memory.select(part)
