"""Self-critical sequence training: raise the CIDEr of generated captions (Rennie et al. 2017).

The gradient of the expected reward of a drawn caption w is E[(r(w) - b) ∇ log p(w)] for any
baseline b that does not depend on w. All three parts are those of one policy: captions are drawn
from the model's own distribution, with dropout off, and the same states are scored.

The released code differs: it takes the captions of a beam search with dropout on as if they were
drawn, divides their log-probabilities by a length penalty and by their length, and computes
document frequencies over the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from triptych.core.config import check
from triptych.core.errors import DataError
from triptych.core.outputs import Predictions
from triptych.data.collate import (
    ImageKeyCollator,
)
from triptych.data.collate.base import image_key
from triptych.data.records import Record
from triptych.distributed.collectives import shared_uniform
from triptych.evaluation import ptb
from triptych.evaluation.captions import CiderScorer, DocumentFrequencies
from triptych.evaluation.evaluator import evaluation_mode
from triptych.generation.sampling import Samples, SamplingConfig, token_log_probs
from triptych.models.mplug.model import MPLUG
from triptych.nn.decoder import DecoderMemory
from triptych.tasks.finetuning.captioning import Captioning, CaptioningConfig
from triptych.tasks.spec import (
    CollatorInputs,
    TaskConfig,
    TaskRecipe,
    TaskSpec,
    TrainedModels,
)
from triptych.text import Tokenizer

END_WORD = "<eos>"
"""Stands for the end of a caption; the tokeniser gives no such word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SCSTConfig(TaskConfig):
    """Settings of self-critical training.

    Attributes:
        captioning: What is trained; the model folder keeps its search settings.
        num_samples: Captions sampled for each image (released: the 5 of its beam).
        baseline: What a caption's reward is compared with: "mean", of the image's other samples, or
            "greedy", the reward of the greedy caption (Rennie et al.). (The released mean includes
            the sample itself, which only scales the gradient by 1 - 1 / num_samples.)
        min_tokens: Tokens before a sampled caption may end.
        max_tokens: Longest sampled caption, including [SEP] (paper: 20).
        reward_end: Whether the end counts as a word in the reward. Without it a truncated caption
            ("a man with a") loses nothing, and SCST learns to truncate.
    """

    captioning: CaptioningConfig = field(default_factory=CaptioningConfig)
    num_samples: int = 5
    baseline: Literal["mean", "greedy"] = "mean"
    min_tokens: int = 1
    max_tokens: int = 20
    reward_end: bool = True

    def __post_init__(self) -> None:
        """Reject a mean over no other sample, and lengths out of range."""
        least = 2 if self.baseline == "mean" else 1
        check(
            self.num_samples >= least,
            "num_samples",
            self.num_samples,
            f"be at least {least} with baseline {self.baseline!r}",
        )
        self.sampling()

    def sampling(self) -> SamplingConfig:
        """Return how captions are drawn: from the whole distribution, as it is."""
        return SamplingConfig(
            num_samples=self.num_samples, min_tokens=self.min_tokens, max_tokens=self.max_tokens
        )


class CiderReward:
    """CIDEr-D of captions, with the document frequencies of a training split.

    Args:
        captions: The captions of each image, by its key.
        reward_end: Whether the end of a caption counts as a word.

    Raises:
        DataError: There are captions of fewer than two images, so that every word is in every
            document and weighs nothing.
    """

    def __init__(self, captions: Mapping[int, Sequence[str]], *, reward_end: bool = True) -> None:
        if len(captions) < 2:
            raise DataError(
                f"CIDEr as a reward needs captions of two images or more, found {len(captions)}"
            )
        self.reward_end = reward_end
        self._references = {
            key: [self.words(text, ended=True) for text in texts] for key, texts in captions.items()
        }
        frequencies = DocumentFrequencies.from_references(self._references.values())
        self._scorer = CiderScorer(frequencies)

    def words(self, caption: str, *, ended: bool) -> str:
        """Return the tokenised caption, with its end as a word where that counts."""
        tokens = ptb.tokenize(caption)
        return f"{tokens} {END_WORD}".strip() if ended and self.reward_end else tokens

    def __call__(
        self, image_key: int, captions: Sequence[str], ended: Sequence[bool]
    ) -> list[float]:
        """Score captions of one image.

        Args:
            image_key: The image.
            captions: K captions as texts.
            ended: K, whether each came to its end or was cut.

        Returns:
            K rewards from 0 to 10.

        Raises:
            DataError: The image has no captions.
        """
        if image_key not in self._references:
            raise DataError(f"the image with key {image_key} has no caption to be rewarded by")
        generated = [self.words(text, ended=end) for text, end in zip(captions, ended, strict=True)]
        return [float(s) for s in self._scorer.score(generated, self._references[image_key])]


class SCST:
    """Captioning by policy gradient.

    Args:
        model: A model that already generates captions.
        config: Samples, baseline and lengths.
        tokenizer: The model's tokenizer.
        reward: Scores captions by image.
    """

    batch_keys = frozenset({"image", "image_key", "index"})
    objective_names = frozenset({"scst"})
    not_sharded = "SCST draws captions, which take other numbers of steps in each process"

    def __init__(
        self, model: MPLUG, config: SCSTConfig, tokenizer: Tokenizer, reward: CiderReward
    ) -> None:
        self.config, self.reward = config, reward
        self.captioning = Captioning(model, config.captioning, tokenizer)

    @property
    def modules(self) -> nn.ModuleDict:
        """The model."""
        return self.captioning.modules

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return the loss, and the rewards of the samples and of the baseline for the log.

        Args:
            batch: `image` (B, 3, H, W) and `image_key` (B,).
            active: Not read: there is one objective.

        Returns:
            "scst": -mean over samples of (reward - baseline) · log-probability, whose gradient is
            that of the expected reward, negated; "reward" and "baseline": means, 0 to 10.
        """
        del active
        keys = batch["image_key"].tolist()
        with evaluation_mode(self.modules):
            memory = self.captioning.memory(batch)
            sampling, device = self.config.sampling(), memory.layers[0].key.device
            shape = (len(keys), sampling.num_samples, sampling.max_tokens)
            samples = self.captioning.text_generator.sample(
                memory, sampling, shared_uniform(*shape, device=device)
            )
            rewards = self._rewards(keys, samples).to(device)  # (B, K)
            baseline = self._baseline(keys, memory, rewards)
            log_probs = self.log_probs(memory, samples)
        return {
            "scst": policy_gradient_loss(log_probs, rewards, baseline),
            "reward": rewards.mean(),
            "baseline": baseline.mean(),
        }

    def log_probs(self, memory: DecoderMemory, samples: Samples) -> Tensor:
        """Return (B, K) float32 Σ log p of the drawn tokens, the end included, with gradient."""
        writer, count = self.captioning.text_generator, samples.token_ids.shape[1]
        token_ids = samples.token_ids.flatten(0, 1)  # (B·K, T)
        mask = samples.mask.flatten(0, 1)
        rows = torch.arange(memory.batch_size, device=token_ids.device).repeat_interleave(count)
        start = torch.full_like(token_ids[:, :1], writer.tokenizer.cls_id)
        prompt = writer.prompt(len(token_ids), token_ids.device)
        inputs = torch.cat([start, prompt, token_ids[:, :-1]], dim=1)
        states = writer.decoder(inputs, memory.select(rows))[:, prompt.shape[1] :]  # (B·K, T, D)
        logits = writer.decoder.word_logits(states[mask])  # (drawn tokens, V)
        position = torch.arange(token_ids.shape[1], device=mask.device).expand_as(mask)[mask]
        early = position < self.config.min_tokens  # the end could not be drawn here
        ends = torch.arange(logits.shape[-1], device=mask.device) == writer.tokenizer.sep_id
        logits = logits.masked_fill(early[:, None] & ends, -torch.inf)
        log_probs = token_log_probs(logits, self.config.sampling())
        drawn = log_probs.gather(1, token_ids[mask][:, None])[:, 0]
        summed = torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, drawn).sum(dim=1)
        return summed.view(-1, count)

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Generate a caption for each image; reads `image` and `index`."""
        return self.captioning.predict(batch)

    def after_step(self, step: int) -> None:
        """Do nothing: the policy is the model."""
        self.captioning.after_step(step)

    def _rewards(self, keys: Sequence[int], samples: Samples) -> Tensor:
        """Score the samples: (B, K) float32."""
        writer = self.captioning.text_generator
        rows = zip(keys, samples.texts(), samples.ended.tolist(), strict=True)
        return torch.tensor(
            [self.reward(key, [writer.text(t) for t in texts], ends) for key, texts, ends in rows]
        )

    def _baseline(self, keys: Sequence[int], memory: DecoderMemory, rewards: Tensor) -> Tensor:
        """Return what each sample's reward is compared with: (B, K), or (B, 1) for greedy."""
        if self.config.baseline == "mean":
            count = rewards.shape[1]
            return (rewards.sum(dim=1, keepdim=True) - rewards) / (count - 1)
        limit = self.config.max_tokens
        found = self.captioning.text_generator.greedy(
            memory, min_tokens=self.config.min_tokens, max_tokens=limit
        )
        text = self.captioning.text_generator.text
        scores = [
            self.reward(key, [text(ids)], [len(ids) < limit])
            for key, ids in zip(keys, found, strict=True)
        ]
        return torch.tensor(scores, device=rewards.device)


def policy_gradient_loss(log_probs: Tensor, rewards: Tensor, baseline: Tensor) -> Tensor:
    """Return -mean((reward - baseline) · log-probability), REINFORCE (Williams 1992).

    Args:
        log_probs: (B, K) with gradient.
        rewards: (B, K).
        baseline: (B, K) or (B, 1), which no sample's own reward enters.
    """
    return -((rewards - baseline).detach() * log_probs).mean()


def build_reward(config: SCSTConfig, records: Iterable[Record]) -> CiderReward:
    """Return the reward of captions: CIDEr-D with the captions and frequencies of the records.

    Raises:
        DataError: There are captions of fewer than two images.
    """
    captions: dict[int, list[str]] = {}
    for record in records:
        if record.caption and (record.image is not None or record.video is not None):
            captions.setdefault(image_key(record), []).append(record.caption)
    return CiderReward(captions, reward_end=config.reward_end)


def _build_scst(
    config: SCSTConfig, model: MPLUG, tokenizer: Tokenizer, records: Iterable[Record]
) -> SCST:
    return SCST(model, config, tokenizer, build_reward(config, records))


def _image_keys(config: SCSTConfig, inputs: CollatorInputs) -> ImageKeyCollator:
    del config, inputs
    return ImageKeyCollator()


SPEC = TaskSpec(
    config=SCSTConfig,
    trained_for="captioning",
    build=_build_scst,
    collator=_image_keys,
    needs=("image|video", "caption"),
    models=TrainedModels(capabilities=("decode",)),
    recipes=(TaskRecipe("mplug.scst", "mplug"),),
    serves=("caption",),
    also_scored=("caption", "perplexity"),
    stored=lambda config: config.captioning,
)
