"""Closed lists of texts: rank all by probability, or search a trie that holds nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.core.config import check
from triptych.core.errors import DataError
from triptych.generation.decoding import DecodeStep, check_length, prompt_length, read_prompt
from triptych.generation.search import BeamConfig, Hypothesis, beam_search


class AnswerTrie:
    """The texts of a closed list as a tree of tokens; each path from the root ends with the end.

    An `Allowed` constraint for `beam_search` and `greedy_search`.

    Args:
        answers: Token ids of each text, without start and end.
        end_id: Token that ends a text.
        vocab_size: Vocabulary size V.

    Raises:
        DataError: The list is empty, or a text has no token.
    """

    def __init__(self, answers: Sequence[Sequence[int]], end_id: int, vocab_size: int) -> None:
        check_answers(answers)
        self.vocab_size = vocab_size
        self.max_tokens = 1 + max(map(len, answers))
        """Tokens of the longest text, the end token included."""
        self._children: list[dict[int, int]] = [{}]  # next token to node; node 0 is the root
        for answer in answers:
            self._add([*answer, end_id])

    def _add(self, token_ids: Sequence[int]) -> None:
        node = 0
        for token in token_ids:
            children = self._children[node]
            if token not in children:
                children[token] = len(self._children)
                self._children.append({})
            node = children[token]

    def next_tokens(self, generated: Sequence[int]) -> list[int]:
        """Return what may follow; nothing where no text of the list begins like this."""
        node = 0
        for token in generated:
            if token not in self._children[node]:
                return []
            node = self._children[node][token]
        return list(self._children[node])

    def __call__(self, generated: Tensor) -> Tensor:
        """Return (B, R, V) bool, True = may follow the tokens (B, R, T)."""
        batch, beams, _ = generated.shape
        mask = torch.zeros(batch * beams, self.vocab_size, dtype=torch.bool)
        for row, tokens in enumerate(generated.flatten(0, 1).tolist()):
            mask[row, self.next_tokens(tokens)] = True
        return mask.view(batch, beams, -1).to(generated.device)


def search_answers(
    step: DecodeStep,
    trie: AnswerTrie,
    *,
    start_id: int,
    end_id: int,
    num_beams: int = 5,
    length_penalty: float = 0.0,
    prompt: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """Find the likeliest texts of a closed list by beam search.

    With as many beams as texts the result is exact and equal to `rank_answers` where
    there is no length penalty; with fewer it is approximate, but always a text of the list.

    Args:
        step: A decoder that has read nothing yet.
        trie: The list.
        start_id: First token that the decoder reads.
        end_id: Token that ends a text, the trie's.
        num_beams: Running texts of an image.
        length_penalty: Exponent of the length divisor; 0 compares probabilities.
        prompt: (B, T) int64 tokens after the start token, the same number for each image.

    Returns:
        For each image up to `num_beams` texts of the list, best first; at least one.
    """
    config = BeamConfig(
        num_beams=num_beams,
        min_tokens=0,
        max_tokens=trie.max_tokens,
        length_penalty=length_penalty,
    )
    return beam_search(
        step, start_id=start_id, end_id=end_id, config=config, prompt=prompt, allowed=trie
    )


def check_answers(answers: Sequence[Sequence[int]]) -> None:
    """Raise a DataError where the list is empty or a text of it has no token."""
    if not answers:
        raise DataError("the list of answers is empty: name at least one")
    for number, answer in enumerate(answers):
        if len(answer) == 0:
            raise DataError(f"answer {number} of the list has no token that can be generated")


@dataclass(frozen=True, slots=True)
class RankedAnswers:
    """The likeliest texts of a list for each image, best first.

    Attributes:
        index: (B, K) int64 positions in the list.
        log_probs: (B, K) float32 Σ log p over the tokens, the end token included.
    """

    index: Tensor
    log_probs: Tensor


@torch.no_grad()
def rank_answers(
    step: DecodeStep,
    answers: Sequence[Sequence[int]],
    *,
    start_id: int,
    end_id: int,
    top_k: int | None = None,
    prompt: Tensor | None = None,
) -> RankedAnswers:
    """Order a closed list by the probability that the decoder gives to each text.

    The texts are beams of one pass over the memory, which is never copied. First the K texts with
    the likeliest first token are kept (Li et al. 2021, section 5), then these are scored whole; K
    texts of B images take B·K·V numbers at a time.

    Deviation from the released `rank_answer`, which counts the first token twice: here each token
    counts once, so that with all texts kept the order is that of the model's probabilities.

    Args:
        step: A decoder that has read nothing yet.
        answers: Token ids of each text, without start and end.
        start_id: First token that the decoder reads.
        end_id: Token that ends a text.
        top_k: Texts K that are scored whole (released: 128); None scores all, which is exact.
        prompt: (B, T) int64 tokens after the start token, the same number for each image.

    Raises:
        DataError: The list is empty, or a text has no token.
        ConfigError: `top_k` is below 1, or a text exceeds the decoder's positions.
    """
    check_answers(answers)
    check(top_k is None or top_k >= 1, "top_k", top_k, "be at least 1, or absent for all")
    token_ids, mask = _table(answers, end_id)  # (A, T)
    check_length(step, prompt_length(prompt), token_ids.shape[1])
    first = torch.log_softmax(read_prompt(step, start_id, prompt)[:, 0].float(), dim=-1)  # (B, V)
    token_ids, mask = token_ids.to(first.device), mask.to(first.device)
    count = min(top_k or len(answers), len(answers))
    scores, chosen = first[:, token_ids[:, 0]].topk(count, dim=1)  # (B, K)
    step.reorder(torch.arange(step.batch_size).repeat_interleave(count))
    kept, kept_mask = token_ids[chosen], mask[chosen]  # (B, K, T)
    for position in range(1, kept.shape[2]):
        log_probs = torch.log_softmax(step.logits(kept[..., position - 1]).float(), dim=-1)
        gathered = log_probs.gather(2, kept[..., position, None])[..., 0]  # (B, K)
        scores = scores + gathered.masked_fill(~kept_mask[..., position], 0.0)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return RankedAnswers(chosen.gather(1, order), scores)


def _table(answers: Sequence[Sequence[int]], end_id: int) -> tuple[Tensor, Tensor]:
    """Return ids (A, T), the end token included and as padding, and which are real (A, T)."""
    longest = 1 + max(map(len, answers))
    token_ids = torch.full((len(answers), longest), end_id)
    for row, answer in zip(token_ids, answers, strict=True):
        row[: len(answer)] = torch.tensor(answer)
    lengths = torch.tensor([len(answer) + 1 for answer in answers])
    return token_ids, torch.arange(longest) < lengths[:, None]
