"""FLAVA against the stored outputs of transformers 5.23 on small random weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from triptych.models.conversion import split_tensors
from triptych.models.flava import convert
from triptych.models.flava.family import flava_full
from triptych.models.flava.model import FLAVA
from triptych.tasks.pretraining.flava import FLAVAPretraining, FLAVAPretrainingConfig

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
STATES = {"atol": 1e-5, "rtol": 1e-5}
LOSSES = {"atol": 1e-4, "rtol": 0.0}
THEIR_LOSSES = {
    "pair": {
        "gc": "global_contrastive",
        "itm": "itm",
        "mmm_image": "mmm_image",
        "mmm_text": "mmm_text",
    },
    "image": {"mim": "mim"},
    "text": {"mlm": "mlm"},
}


class Golden:
    """The file, and our model with its weights."""

    def __init__(self):
        self.tensors = load_file(GOLDEN / "flava.safetensors")
        self.facts = json.loads((GOLDEN / "flava.json").read_text())
        prefix = "weights/"
        state = {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}
        base = convert.config_from_folder(self.facts["config"], flava_full())
        self.model = FLAVA(convert.config_for(state, base)).eval()
        self.report = convert.import_state_dict(state, self.model)

    def batch(self, kind):
        image = {
            "image": self["input/pixel_values"],
            "codebook_image": self["input/codebook_pixel_values"],
            "hidden_patches": self["input/bool_masked_pos"],
        }
        text = {
            "mlm_token_ids": self["input/input_ids_masked"],
            "mlm_labels": self["input/mlm_labels"],
            "text_mask": self["input/attention_mask"].bool(),
        }
        if kind == "image":
            return image
        if kind == "text":
            return text
        pair = {"token_ids": self["input/input_ids"], "itm_labels": self["input/itm_labels"]}
        return image | text | pair

    def __getitem__(self, name):
        return self.tensors[name]


@pytest.fixture(scope="module")
def golden():
    return Golden()


def test_every_tensor_of_the_file_is_loaded(golden):
    assert golden.report.is_complete
    assert set(golden.report.loaded) == set(golden.model.state_dict())


@torch.no_grad()
def test_states(golden):
    model, batch = golden.model, golden.batch("pair")
    mask, matched = batch["text_mask"], batch["itm_labels"] == 1
    image = model.encode_image(batch["image"], hidden_patches=batch["hidden_patches"])
    text = model.encode_text(batch["mlm_token_ids"], mask)
    expected = golden["pair/out/image_masked_embeddings"]
    found = model.visual_encoder.final_norm(image.tokens)
    torch.testing.assert_close(found, expected, **STATES)
    expected = golden["pair/out/text_masked_embeddings"]
    found = model.text_encoder.final_norm(text.tokens)
    torch.testing.assert_close(found[mask], expected[mask], **STATES)
    fused = model.fuse(image, text)
    expected = golden["pair/out/multimodal_masked_embeddings"]  # of the matched pairs
    found = torch.cat([fused.pooled[:, None], fused.image_tokens], dim=1)[matched]
    torch.testing.assert_close(found, expected[:, : found.shape[1]], **STATES)
    words = expected[:, found.shape[1] :][mask[matched]]
    torch.testing.assert_close(fused.text_tokens[matched][mask[matched]], words, **STATES)
    torch.testing.assert_close(model.match_logits(fused), golden["pair/out/itm_logits"], **LOSSES)


@pytest.mark.parametrize("kind", THEIR_LOSSES)
def test_losses_and_gradient_norms(golden, kind):
    model = golden.model
    losses = FLAVAPretraining(model, FLAVAPretrainingConfig()).losses(golden.batch(kind))
    assert set(losses) == set(THEIR_LOSSES[kind])
    for name, loss in losses.items():
        expected = golden[f"{kind}/loss/{THEIR_LOSSES[kind][name]}"]
        torch.testing.assert_close(loss, expected, **LOSSES, msg=name)
    model.zero_grad()
    sum(losses.values()).backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
    }
    foreign = split_tensors(gradients, convert.key_table(model.config))
    norms = golden.facts[f"{kind}/grad_norms"]
    assert len(norms) > 20
    for name, norm in norms.items():
        name = name.replace("_head.bias", "_head.decoder.bias")  # one parameter, two names
        assert float(foreign[name].norm()) == pytest.approx(norm, rel=1e-3, abs=1e-4), name
