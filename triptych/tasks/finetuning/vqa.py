"""Visual question answering as generation (paper, section 5.2.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from triptych.core.config import check
from triptych.core.errors import ConfigError
from triptych.core.outputs import Predictions
from triptych.data.collate import (
    VQACollator,
)
from triptych.data.records import Record
from triptych.evaluation.metrics import (
    Metric,
    VQAMetric,
)
from triptych.generation.search import BeamConfig
from triptych.models.base import GenerativeModel
from triptych.nn.decoder import DecoderMemory
from triptych.tasks.finetuning.base import ModelTask, fused_memory, target_log_probs
from triptych.tasks.finetuning.text_generator import (
    OF_SEARCH,
    GenerationSettings,
    Memories,
    TextGenerator,
    encode_in_parts,
)
from triptych.tasks.spec import (
    CollatorInputs,
    Evaluation,
    TaskConfig,
    TaskRecipe,
    TaskSpec,
    TrainedModels,
)
from triptych.text import Tokenizer
from triptych.train.chance import Chance


@dataclass(frozen=True, kw_only=True, slots=True)
class VQAConfig(TaskConfig):
    """Settings of visual question answering.

    Attributes:
        beam: The search (released: 5 beams, 1 to 10 tokens).
        append_words: Whether OCR words and object names, if a record has them, follow its question
            (paper and released code: yes).
        answer_list: Answers to choose from; if empty, the decoder generates freely (paper).
        list_search: How an answer of the list is chosen: "rank" scores every answer (ALBEF, BLIP),
            "beam" searches the trie of the answers with `beam.num_beams` beams.
        rank_top_k: Answers that "rank" scores in full, those with the likeliest first tokens
            (released video question answering: 128); exact if at least the length of the list.
    """

    beam: BeamConfig = field(
        default_factory=lambda: BeamConfig(num_beams=5, min_tokens=1, max_tokens=10)
    )
    append_words: bool = True
    answer_list: tuple[str, ...] = ()
    list_search: Literal["rank", "beam"] = "rank"
    rank_top_k: int = 128

    def __post_init__(self) -> None:
        """Reject an empty ranking."""
        check(self.rank_top_k >= 1, "rank_top_k", self.rank_top_k, "be at least 1")


class VQA(ModelTask[GenerativeModel]):
    """Generate the answer, freely unless the config names a list of answers.

    Args:
        model: The model to train.
        config: The search.
        tokenizer: The model's tokenizer.

    Raises:
        DataError: An answer of the list has no token.
    """

    batch_keys = frozenset(
        {
            "image",
            "token_ids",
            "text_mask",
            "answer_token_ids",
            "answer_mask",
            "answer_weight",
            "answer_row",
            "index",
        }
    )
    objective_names = frozenset({"vqa"})

    def __init__(self, model: GenerativeModel, config: VQAConfig, tokenizer: Tokenizer) -> None:
        super().__init__(model)
        self.config = config
        self.text_generator = TextGenerator(model.decoder, tokenizer)
        self.generation = GenerationSettings()
        self._answer_ids = self.text_generator.answer_ids(config.answer_list)

    def memory(self, batch: Mapping[str, Tensor]) -> DecoderMemory:
        """Fuse image and question to what the decoder reads."""
        return fused_memory(self.model, batch["image"], batch["token_ids"], batch["text_mask"])

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return {"vqa": Σ weight · cross-entropy summed over the answer / images}."""
        del active
        memory = self.memory(batch).select(batch["answer_row"])
        log_probs = target_log_probs(
            self.model.decoder, batch["answer_token_ids"], batch["answer_mask"], memory
        )
        return {"vqa": -(batch["answer_weight"] * log_probs.sum(dim=1)).sum() / len(batch["image"])}

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Answer each question; reads `image`, `token_ids`, `text_mask` and `index`."""
        index = batch["index"].tolist()
        memories = encode_in_parts(self.memory, batch, ("image", "token_ids", "text_mask"))
        return Predictions(index=index, texts=self._generate(memories, index))

    def generate_with(self, settings: GenerationSettings) -> None:
        """Generate as these settings say from now on; see `GeneratingTask`.

        Raises:
            ConfigError: Answers are chosen from a closed list, to which most settings mean nothing.
        """
        if self.config.answer_list:
            usable = {"prompt", *(OF_SEARCH[:1] if self.config.list_search == "beam" else ())}
            useless = [name for name in settings.given() if name not in usable]
            if useless:
                raise ConfigError(
                    f"{', '.join(useless)}: the model chooses its answers from a closed list of "
                    f"{len(self.config.answer_list)} (by {self.config.list_search}), so that this "
                    "changes nothing: omit it"
                )
        self.generation = settings
        self.config = replace(self.config, beam=settings.beam(self.config.beam))
        settings.sampling(self.config.beam)
        if settings.prompt is not None:
            self.text_generator.prompt_ids = self.text_generator.ids(settings.prompt)

    def _generate(self, memories: Memories, index: Sequence[int]) -> list[str]:
        answers, writer = self.config.answer_list, self.text_generator
        if not answers:
            return writer.texts(memories, self.config.beam, self.generation, index)
        if self.config.list_search == "beam":
            beams = self.config.beam.num_beams
            positions = writer.search_list(memories, self._answer_ids, beams)
        else:
            positions = writer.rank(memories, self._answer_ids, self.config.rank_top_k)
        return [answers[position] for position in positions]


def vqa_metrics(records: Sequence[Record], *, from_list: bool) -> list[Metric]:
    """Return VQA accuracy, of free answers or of those from a closed list."""
    answers = {i: r.answers for i, r in enumerate(records)}
    types = {i: r.question_type for i, r in enumerate(records)}
    return [VQAMetric(answers, types, from_list=from_list)]


def _vqa_collator(config: VQAConfig, inputs: CollatorInputs) -> VQACollator:
    return VQACollator(
        inputs.tokenizer,
        max_question_tokens=inputs.lengths.question,
        max_answer_tokens=inputs.lengths.answer,
        append_words=config.append_words,
        train=inputs.train,
    )


SPEC = TaskSpec(
    config=VQAConfig,
    trained_for="vqa",
    build=lambda config, model, tokenizer, _: VQA(model, config, tokenizer),
    collator=_vqa_collator,
    needs=("image|video", "question", "answers"),
    models=TrainedModels(capabilities=("decode",)),
    recipes=(
        TaskRecipe("mplug.vqa", "mplug", default=True),
        TaskRecipe("mplug.vqa_vg", "mplug", teaches=()),
    ),
    serves=("answer",),
    evaluations=(
        Evaluation(
            "vqa",
            "answers",
            lambda config, records, _: vqa_metrics(records, from_list=bool(config.answer_list)),
            reads_clips=True,
            reads=("question",),
            kept=("text",),
            forms=("vqa",),
        ),
    ),
    chances=lambda config: {
        "vqa": Chance(labels="answer_token_ids", mask="answer_mask", skip=1, summed=True)
    },
)
