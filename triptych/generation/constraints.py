"""Closed lists of texts: a trie of them, and a search that finds nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.core.errors import DataError
from triptych.generation.beam import BeamConfig, Hypothesis, beam_search
from triptych.generation.step import DecodeStep


class AnswerTrie:
    """The texts of a closed list as a tree of tokens; each path from the root ends with the end.

    An `Allowed` constraint for `beam_search` and `greedy_search`.

    Args:
        answers: Token ids of each text, without start and end.
        end_id: Token that ends a text.
        vocab_size: Words V.

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

    def next_tokens(self, said: Sequence[int]) -> list[int]:
        """Return what may follow; nothing where no text of the list begins like this."""
        node = 0
        for token in said:
            if token not in self._children[node]:
                return []
            node = self._children[node][token]
        return list(self._children[node])

    def __call__(self, said: Tensor) -> Tensor:
        """Return (B, R, V) bool, True = may follow the tokens (B, R, T)."""
        batch, beams, _ = said.shape
        mask = torch.zeros(batch * beams, self.vocab_size, dtype=torch.bool)
        for row, tokens in enumerate(said.flatten(0, 1).tolist()):
            mask[row, self.next_tokens(tokens)] = True
        return mask.view(batch, beams, -1).to(said.device)


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

    With as many beams as the list has texts the result is exact, equal to `rank_answers` where
    there is no length penalty; with fewer it is an approximation, but always of the list.

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
            raise DataError(f"answer {number} of the list has no token that can be said")
