"""Stages of the model against the outputs of the released code, run on the same small weights."""

import pytest
import torch
from torch.nn import functional as F

from triptych.core.outputs import ImageFeatures, TextFeatures
from triptych.generation.decoding import CachedDecoder
from triptych.generation.search import beam_search
from triptych.models.mplug.convert import import_state_dict
from triptych.models.mplug.model import MPLUG
from triptych.tasks.finetuning.vqa import VQA, VQAConfig

from .mplug_golden import NAMES, GoldenFile

STATES = {"atol": 1e-5, "rtol": 1e-6}
LOGITS = {"atol": 1e-4, "rtol": 0.0}


class Golden:
    """One golden file, and our model with its weights."""

    def __init__(self, name: str) -> None:
        file = GoldenFile(name)
        self.tensors, self.beam = file.tensors, file.beam
        self.model = MPLUG(file.config).eval()
        self.report = import_state_dict(file.state, self.model)
        self.answers_per_image = torch.tensor(file.facts["k"])

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    @property
    def mask(self) -> torch.Tensor:
        return self["q_mask"].bool()


@pytest.fixture(scope="module", params=NAMES)
def golden(request):
    return Golden(request.param)


def test_every_tensor_of_the_file_is_explained(golden):
    heads = ("image_projection.", "text_projection.", "itm_head.", "mlm_head.")
    assert golden.report.unexpected == []
    assert golden.report.reinitialised == {}
    assert golden.report.resized == []
    assert all(name.startswith(heads) for name in golden.report.missing)
    assert set(golden.report.loaded) | set(golden.report.missing) == set(golden.model.state_dict())


@torch.no_grad()
def test_image_states(golden):
    visual = golden.model.visual_encoder(golden["image"])
    torch.testing.assert_close(visual, golden["visual"], **STATES)
    projected = golden.model.encode_image(golden["image"]).tokens
    torch.testing.assert_close(projected, golden["visual_proj"], **STATES)


@torch.no_grad()
def test_text_states(golden):
    text = golden.model.encode_text(golden["q_ids"], golden.mask).tokens
    torch.testing.assert_close(text[golden.mask], golden["text"][golden.mask], **STATES)


@torch.no_grad()
def test_fusion_states(golden):
    fused = golden.model.fuse(
        ImageFeatures(golden["visual_proj"]), TextFeatures(golden["text"], golden.mask)
    )
    torch.testing.assert_close(fused.image_tokens, golden["fusion_v"], **STATES)
    text = fused.text_tokens
    torch.testing.assert_close(text[golden.mask], golden["fusion_l"][golden.mask], **STATES)


def _memory(golden):
    image = golden.model.encode_image(golden["image"])
    text = golden.model.encode_text(golden["q_ids"], golden.mask)
    return golden.model.decoder_memory(image, golden.model.fuse(image, text))


@torch.no_grad()
def test_decoder_logits_and_vqa_loss(golden):
    rows = torch.arange(len(golden.answers_per_image)).repeat_interleave(golden.answers_per_image)
    states = golden.model.decode(golden["a_ids"], _memory(golden).select(rows))
    logits = golden.model.decoder.word_logits(states)
    real = golden["a_mask"].bool()
    torch.testing.assert_close(logits[real], golden["logits"][real], **LOGITS)

    labels = golden["a_ids"].masked_fill(~real, -100)[:, 1:]
    per_answer = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels, reduction="none").sum(1)
    loss = (golden["weights"] * per_answer).sum() / len(golden["image"])
    torch.testing.assert_close(loss, golden["vqa_loss"], **LOGITS)


class _Words:
    """The ids that the released code begins and ends texts with."""

    cls_id, sep_id = 101, 102

    def encode(self, texts, **options):
        return [[self.cls_id] for _ in texts]


@torch.no_grad()
def test_the_task_computes_the_released_loss(golden):
    rows = torch.arange(len(golden.answers_per_image)).repeat_interleave(golden.answers_per_image)
    batch = {
        "image": golden["image"],
        "token_ids": golden["q_ids"],
        "text_mask": golden.mask,
        "answer_token_ids": golden["a_ids"],
        "answer_mask": golden["a_mask"].bool(),
        "answer_weight": golden["weights"],
        "answer_row": rows,
    }
    found = VQA(golden.model, VQAConfig(), _Words()).losses(batch, active=frozenset({"vqa"}))
    torch.testing.assert_close(found["vqa"], golden["vqa_loss"], **LOGITS)


@torch.no_grad()
def test_beam_search_finds_the_released_n_best(golden):
    found = beam_search(
        CachedDecoder(golden.model.decoder, _memory(golden)),
        start_id=101,
        end_id=102,
        config=golden.beam,
    )
    for sample, hypotheses in enumerate(found):
        assert len(hypotheses) == golden.beam.num_beams
        for rank, hypothesis in enumerate(hypotheses):
            assert [101, *hypothesis.token_ids] == golden[f"beam_ids/{sample}/{rank}"].tolist()
            expected = float(golden[f"beam_scores/{sample}/{rank}"])
            assert hypothesis.score == pytest.approx(expected, abs=1e-4)
