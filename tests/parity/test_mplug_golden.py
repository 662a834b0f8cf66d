"""Stages of the model against the outputs of the released code, run on the same small weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from triptych.core.outputs import ImageFeatures, TextFeatures
from triptych.generation.beam import BeamConfig, beam_search
from triptych.generation.cached import CachedDecoder
from triptych.models.mplug.config import MPLUGConfig
from triptych.models.mplug.convert import import_state_dict
from triptych.models.mplug.model import MPLUG
from triptych.nn.encoder import TextConfig
from triptych.nn.vision import VisionConfig

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
STATES = {"atol": 1e-5, "rtol": 1e-6}
LOGITS = {"atol": 1e-4, "rtol": 0.0}


class Golden:
    """One golden file, and our model with its weights."""

    def __init__(self, name: str) -> None:
        self.tensors = load_file(GOLDEN / f"{name}.safetensors")
        facts = json.loads((GOLDEN / f"{name}.json").read_text())
        prefix = "state_dict/"
        state = {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}
        width, text_width = facts["cfg/vision_width"], facts["bert/hidden_size"]
        stride, depth = facts["bert/stride_layer"], facts["bert/fusion_layers"]
        blocks = "visual_encoder.visual.transformer.resblocks."
        self.model = MPLUG(
            MPLUGConfig(
                vision=VisionConfig(
                    image_size=facts["cfg/image_res"],
                    patch_size=state["visual_encoder.visual.conv1.weight"].shape[-1],
                    embed_dim=width,
                    depth=len({k.split(".")[4] for k in state if k.startswith(blocks)}),
                    num_heads=width // 64,
                ),
                text=TextConfig(
                    vocab_size=facts["bert/vocab_size"],
                    embed_dim=text_width,
                    num_heads=facts["bert/num_attention_heads"],
                    mlp_ratio=facts["bert/intermediate_size"] / text_width,
                ),
                text_depth=facts["bert/text_encoder_layers"],
                fusion_depth=depth,
                connected_layers=tuple(j for j in range(1, depth) if j % stride == 0),
                decoder_depth=facts["bert/text_decode_layers"],
                proj_dim=facts["cfg/embed_dim"],
            )
        ).eval()
        self.report = import_state_dict(state, self.model)
        self.answers_per_image = torch.tensor(facts["k"])
        self.beam = BeamConfig(
            num_beams=facts["cfg/beam_size"],
            min_tokens=facts["cfg/min_length"],
            max_tokens=facts["cfg/max_length"],
        )

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    @property
    def mask(self) -> torch.Tensor:
        return self["q_mask"].bool()


@pytest.fixture(scope="module", params=["mplug_base_like", "mplug_large_like"])
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
