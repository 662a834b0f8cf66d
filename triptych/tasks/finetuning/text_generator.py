"""Generate texts from a decoder's memory: by search, by sampling, or from a closed list."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from triptych.core.config import check
from triptych.core.errors import ConfigError
from triptych.generation.answers import AnswerTrie, rank_answers, search_answers
from triptych.generation.decoding import CachedDecoder, SlotDecoder, slots_for
from triptych.generation.sampling import Samples, SamplingConfig, sample_texts
from triptych.generation.search import BeamConfig, Hypothesis, beam_search, greedy_search
from triptych.nn.decoder import DecoderMemory, TextDecoder
from triptych.text import Tokenizer

SCORES_AT_ONCE = 1 << 26
"""Token scores that a ranking holds at a time: 256 MiB."""


IMAGES_ENCODED_AT_ONCE = 8
"""By image encoder and fusion network, apart from the decoder."""

Memories = DecoderMemory | Iterable[DecoderMemory]
"""What a decoder reads: of all images, or of some at a time, made when the decoder has room."""


def encode_in_parts(
    encode: Callable[[Mapping[str, Tensor]], DecoderMemory],
    batch: Mapping[str, Tensor],
    keys: Sequence[str],
) -> Iterator[DecoderMemory]:
    """Yield the memories of a batch, a few images at a time.

    Args:
        encode: From part of a batch to what the decoder reads.
        batch: The batch.
        keys: What of it is read; one row an image.
    """
    size = IMAGES_ENCODED_AT_ONCE
    for start in range(0, len(batch[keys[0]]), size):
        yield encode({key: batch[key][start : start + size] for key in keys})


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationSettings:
    """How texts are generated, where this differs from the settings of the model folder.

    Attributes:
        prompt: Words that every text begins with and that are not part of it; None is the folder's.
        num_beams: Width of the beam search.
        min_tokens: Tokens before a text may end.
        max_tokens: Longest text.
        length_penalty: Exponent of the length divisor of the search; see `BeamConfig`.
        stop: When the search of an image is done; see `BeamConfig`.
        top_p: Sample from the likeliest words whose probabilities add up to this.
        top_k: Sample from the k likeliest words.
        temperature: Sample; values below 1 favour likely words.
        seed: Seed of the samples.
    """

    prompt: str | None = None
    num_beams: int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    length_penalty: float | None = None
    stop: Literal["none_better", "top_ended"] | None = None
    top_p: float | None = None
    top_k: int | None = None
    temperature: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Reject a seed that is none, and flags of the search beside those of sampling."""
        check(0 <= self.seed < 2**63, "seed", self.seed, "be from 0 to 2^63 - 1")
        given = self.given()
        search, drawn = ([n for n in names if n in given] for names in (OF_SEARCH, OF_SAMPLING))
        if search and drawn:
            raise ConfigError(
                f"{', '.join(search)} excludes {', '.join(drawn)}: use beam search or sampling"
            )

    def given(self) -> dict[str, Any]:
        """Return what differs from the folder's settings, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: v for name, v in values.items() if v is not None and (name, v) != ("seed", 0)}

    def beam(self, default: BeamConfig) -> BeamConfig:
        """Return the beam search; what is not given is as in `default`.

        A `max_tokens` that leaves no room for the `min_tokens` of `default` lowers it.

        Raises:
            ConfigError: A number is out of range.
        """
        names = (*OF_SEARCH, *OF_LENGTH)
        given = {n: v for n, v in self.given().items() if n in names}
        if self.max_tokens is not None and self.min_tokens is None:
            given["min_tokens"] = max(0, min(default.min_tokens, self.max_tokens - 1))
        return replace(default, **given)

    def sampling(self, default: BeamConfig) -> SamplingConfig | None:
        """Return how texts are drawn, at the lengths of the search; None where they are not.

        Raises:
            ConfigError: A number is out of range.
        """
        chosen = {name: value for name, value in self.given().items() if name in OF_SAMPLING}
        if not chosen:
            return None
        beam = self.beam(default)
        return SamplingConfig(min_tokens=beam.min_tokens, max_tokens=beam.max_tokens, **chosen)


OF_SEARCH = ("num_beams", "length_penalty", "stop")
OF_SAMPLING = ("top_p", "top_k", "temperature")
OF_LENGTH = ("min_tokens", "max_tokens")


@runtime_checkable
class GeneratingTask(Protocol):
    """A task whose predictions are texts that its decoder generates."""

    def generate_with(self, settings: GenerationSettings) -> None:
        """Generate as these settings say from now on.

        Raises:
            ConfigError: One is out of range, or has no meaning for how the task generates.
        """
        ...


def sample_numbers(seed: int, index: Sequence[int], max_tokens: int) -> Tensor:
    """Return (B, 1, max_tokens) numbers in [0, 1) that decide the draws of some samples.

    They depend on the seed and on the place of a sample in its data alone, so that neither the
    batches nor an interruption change a drawn text.
    """
    rows = []
    for position in index:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + position) % 2**63)
        rows.append(torch.rand(1, max_tokens, generator=generator, dtype=torch.float64).float())
    return torch.stack(rows).clamp(max=1 - 2**-24)


class TextGenerator:
    """A decoder with its tokenizer.

    Every text begins with [CLS] and the prompt, which is forced, and ends with [SEP]; what the
    methods return holds none of these.

    Args:
        decoder: In eval mode, unless dropout is wanted.
        tokenizer: The tokenizer it was trained with.
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

    def search(self, memories: Memories, config: BeamConfig) -> list[list[Hypothesis]]:
        """Return the n-best texts of each image, best first."""
        return beam_search(
            self._slots(memories, config.num_beams),
            start_id=self.tokenizer.cls_id,
            end_id=self.tokenizer.sep_id,
            config=config,
            prompt=self.prompt(1),
        )

    def texts(
        self,
        memories: Memories,
        config: BeamConfig,
        settings: GenerationSettings,
        index: Sequence[int],
    ) -> list[str]:
        """Return one text for each image: the best of the search, or a drawn one.

        Args:
            memories: Of B images.
            config: The search, and the lengths of drawn texts.
            settings: Whether texts are drawn, and how.
            index: (B,) places of the samples in their data, which decide the draws.
        """
        sampling = settings.sampling(config)
        if sampling is None:
            return [self.text(found[0].token_ids) for found in self.search(memories, config)]
        numbers = sample_numbers(settings.seed, index, sampling.max_tokens)
        return [self.text(found[0]) for found in self.sample(memories, sampling, numbers).texts()]

    def greedy(self, memories: Memories, *, min_tokens: int, max_tokens: int) -> list[list[int]]:
        """Return the text of each image generated by taking the likeliest token at each step."""
        return greedy_search(
            self._slots(memories, 1),
            start_id=self.tokenizer.cls_id,
            end_id=self.tokenizer.sep_id,
            min_tokens=min_tokens,
            max_tokens=max_tokens,
            prompt=self.prompt(1),
        )

    def sample(self, memories: Memories, config: SamplingConfig, numbers: Tensor) -> Samples:
        """Draw texts for each image, as the numbers (B, K, max_tokens) decide."""
        return sample_texts(
            self._slots(memories, config.num_samples),
            start_id=self.tokenizer.cls_id,
            end_id=self.tokenizer.sep_id,
            config=config,
            numbers=numbers,
            prompt=self.prompt(1),
        )

    def draw(
        self, memory: DecoderMemory, config: SamplingConfig, generator: torch.Generator
    ) -> Samples:
        """Draw texts for each image from one stream of numbers."""
        return sample_texts(
            CachedDecoder(self.decoder, memory),
            start_id=self.tokenizer.cls_id,
            end_id=self.tokenizer.sep_id,
            config=config,
            generator=generator,
            prompt=self.prompt(1),
        )

    def _slots(self, memories: Memories, num_beams: int) -> SlotDecoder:
        """Return a decoder with a slot for each of some images."""
        parts = [memories] if isinstance(memories, DecoderMemory) else memories
        device = self.decoder.embedding.word.weight.device
        return SlotDecoder(self.decoder, parts, slots_for(num_beams, device))

    def answer_ids(self, answers: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the tokens of each answer of a closed list."""
        return [tuple(self.ids(answer)) for answer in answers]

    def rank(
        self, memories: Memories, answers: Sequence[Sequence[int]], top_k: int | None = None
    ) -> list[int]:
        """Return for each image the position of the likeliest answer of a closed list."""
        kept = min(top_k or len(answers), len(answers))
        best: list[int] = []
        for part in _parts(memories, kept * self.decoder.config.vocab_size):
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
        self, memories: Memories, answers: Sequence[Sequence[int]], num_beams: int
    ) -> list[int]:
        """Return for each image the position of the answer that a beam search finds in a list."""
        end_id = self.tokenizer.sep_id
        found = search_answers(
            self._slots(memories, num_beams),
            AnswerTrie(answers, end_id, self.decoder.config.vocab_size),
            start_id=self.tokenizer.cls_id,
            end_id=end_id,
            num_beams=num_beams,
            prompt=self.prompt(1),
        )
        positions = {tuple(ids): position for position, ids in reversed(list(enumerate(answers)))}
        return [positions[texts[0].token_ids] for texts in found]


def _parts(memories: Memories, scores_per_image: int) -> Iterator[DecoderMemory]:
    """Yield the memories in parts of so many images that their scores fit."""
    size = max(1, SCORES_AT_ONCE // scores_per_image)
    for memory in [memories] if isinstance(memories, DecoderMemory) else memories:
        if size >= memory.batch_size:
            yield memory
            continue
        rows = torch.arange(memory.batch_size, device=memory.layers[0].key.device)
        for part in rows.split(size):  # type: ignore[no-untyped-call]
            yield memory.select(part)
