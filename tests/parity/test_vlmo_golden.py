"""Outputs, losses and gradients against those of the released code, run on the same weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from triptych.models.vlmo.config import VLMoConfig
from triptych.models.vlmo.convert import config_for, import_state_dict, key_table
from triptych.models.vlmo.model import VLMo
from triptych.models.vlmo.trunk import TokenSequence
from triptych.objectives.contrastive import itc_loss, similarity
from triptych.objectives.mlm import token_loss
from triptych.tasks.pretraining.vlmo import VLMoPretraining, VLMoPretrainingConfig

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
STATES = {"atol": 1e-5, "rtol": 1e-6}
LOGITS = {"atol": 1e-4, "rtol": 0.0}
MLM_WEIGHT = 0.25  # in the released vision-language stage, whose loss the file holds
TEMPERATURES = ("logit_scale", "logit_vl_scale")


class Golden:
    """One golden file, and our model with its weights."""

    def __init__(self, name: str) -> None:
        self.tensors = load_file(GOLDEN / f"{name}.safetensors")
        self.facts = json.loads((GOLDEN / f"{name}.json").read_text())
        prefix = "state_dict/"
        state = {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}
        self.state = state
        absolute = "transformer.pos_embed" in state
        config = VLMoConfig(
            image_size=self.facts["config/image_size"],
            vocab_size=self.facts["config/vocab_size"],
            embed_dim=64,
            depth=4,
            num_heads=4,
            fused_from=3,
            positions="absolute" if absolute else "relative",
            layer_scale=None if absolute else 0.1,
            proj_dim=64,
        )
        self.model = VLMo(config_for(state, config)).eval()
        self.report = import_state_dict(state, self.model)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    @property
    def mask(self) -> torch.Tensor:
        return self["batch/text_masks"].bool()

    def encoded(self, ids="batch/text_ids"):
        return (
            self.model.encode_image(self["batch/image/0"]),
            self.model.encode_text(self[ids], self.mask),
        )


@pytest.fixture(scope="module", params=["vlmo_relative", "vlmo_absolute"])
def golden(request):
    return Golden(request.param)


def test_every_tensor_of_the_file_is_explained(golden):
    assert golden.report.is_complete
    assert golden.report.resized == []
    assert set(golden.report.loaded) == set(golden.model.state_dict())
    never_read = {"text positions, never read with relative ones"}
    reasons = {"index buffer", "temperature, kept beside the model"}
    absolute = golden.model.config.positions == "absolute"
    assert set(golden.report.dropped.values()) == reasons | (set() if absolute else never_read)


@torch.no_grad()
def test_dual_encoder(golden):
    image, text = golden.encoded()
    torch.testing.assert_close(image.tokens, golden["out/image_feats"], **STATES)
    torch.testing.assert_close(
        text.tokens[golden.mask], golden["out/text_feats"][golden.mask], **STATES
    )
    torch.testing.assert_close(golden.model.embed_image(image), golden["out/image_cls"], **STATES)
    torch.testing.assert_close(golden.model.embed_text(text), golden["out/text_cls"], **STATES)


@torch.no_grad()
def test_embeddings_of_both_branches(golden):
    model = golden.model
    image = TokenSequence(model.image_inputs(golden["batch/image/0"]))
    inputs = model.text_inputs(golden["batch/text_ids"])
    text = TokenSequence(text=inputs, text_mask=golden.mask)
    for kind, sequence in (("image", image), ("text", text)):
        own, fused = model.embed_both_ways(sequence)
        torch.testing.assert_close(own, golden[f"out/{kind}_cls"], **STATES)
        torch.testing.assert_close(fused, golden[f"out/{kind}_cls_vl"], **STATES)


@torch.no_grad()
def test_fusion_encoder(golden):
    fused = golden.model.fuse(*golden.encoded())
    torch.testing.assert_close(fused.image_tokens, golden["out/fusion_image"], **STATES)
    torch.testing.assert_close(
        fused.text_tokens[golden.mask], golden["out/fusion_text"][golden.mask], **STATES
    )
    torch.testing.assert_close(fused.pooled, golden["out/fusion_cls"], **STATES)
    torch.testing.assert_close(golden.model.match_logits(fused), golden["out/itm_logits"], **LOGITS)


@torch.no_grad()
def test_word_logits(golden):
    fused = golden.model.fuse(*golden.encoded("batch/text_ids_mlm"))
    found = golden.model.word_logits(fused.text_tokens)
    expected = golden["out/mlm_logits"]
    torch.testing.assert_close(found[golden.mask], expected[golden.mask], **LOGITS)


@torch.no_grad()
def test_the_task_computes_the_released_losses(golden):
    task = VLMoPretraining(golden.model, VLMoPretrainingConfig(fused_itc=True))
    for scale, name in zip(task.logit_scales, TEMPERATURES, strict=True):
        scale.copy_(golden[f"state_dict/{name}"])
    keys = torch.arange(len(golden.mask))
    batch = {
        "image": golden["batch/image/0"],
        "token_ids": golden["batch/text_ids"],
        "text_mask": golden.mask,
        "mlm_token_ids": golden["batch/text_ids_mlm"],
        "mlm_labels": golden["batch/text_labels_mlm"],
        "image_key": keys,
        "caption_key": keys,
    }
    found = task.losses(batch, active=frozenset({"itc", "mlm"}))
    torch.testing.assert_close(found["itc"], golden["loss_mlm_itc/itc_loss"], **LOGITS)
    mlm = MLM_WEIGHT * found["mlm"]
    torch.testing.assert_close(mlm, golden["loss_mlm_itc/mlm_loss"], **LOGITS)


def _losses(golden, scales):
    """Return MLM and ITC as the released step computes them; ITC is the mean of both branches."""
    model = golden.model
    ids, labels = golden["batch/text_ids_mlm"], golden["batch/text_labels_mlm"]
    image, text = model.image_inputs(golden["batch/image/0"]), model.text_inputs(ids)
    read = labels != -100
    _, states = model.trunk(TokenSequence(image, text, golden.mask))
    mlm = token_loss(model.word_logits(states[read]), labels[read])

    captions = model.text_inputs(golden["batch/text_ids"])
    images = model.embed_both_ways(TokenSequence(image))
    texts = model.embed_both_ways(TokenSequence(text=captions, text_mask=golden.mask))
    diagonal = torch.eye(len(image))
    terms = []
    for one, other, scale in zip(images, texts, scales, strict=True):
        sim = similarity(one, other, torch.exp(-scale))
        terms.append(itc_loss(sim, sim.T, diagonal, diagonal))
    return mlm, torch.stack(terms).mean()


def test_losses_and_gradient_norms(golden):
    scales = [golden[f"state_dict/{name}"].clone().requires_grad_() for name in TEMPERATURES]
    golden.model.zero_grad()
    mlm, itc = _losses(golden, scales)
    expected_mlm, expected_itc = (
        golden[f"loss_mlm_itc/{name}"] for name in ("mlm_loss", "itc_loss")
    )
    torch.testing.assert_close(MLM_WEIGHT * mlm, expected_mlm, **LOGITS)
    torch.testing.assert_close(itc, expected_itc, **LOGITS)

    (MLM_WEIGHT * mlm + itc).backward()
    found = {name: float(s.grad) for name, s in zip(TEMPERATURES, scales, strict=True)}
    parameters = dict(golden.model.named_parameters())
    for ours, (theirs,) in key_table(golden.model.config).items():
        if parameters[ours].grad is not None:
            found[theirs] = float(parameters[ours].grad.norm())
    expected = golden.facts["grad_norms_mlm_plus_itc"]
    read = {name for name, norm in found.items() if norm > 0}
    assert read == set(expected)
    for name, norm in expected.items():
        assert abs(found[name]) == pytest.approx(norm, rel=1e-4, abs=1e-6), name
