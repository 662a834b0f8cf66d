"""FLAVA against transformers' model, called here with the same random weights."""

import copy
import warnings

import pytest
import torch

pytest.importorskip("transformers")

from tests.parity import flava_oracle as oracle
from triptych.core.outputs import ImageFeatures
from triptych.models.conversion import split_tensors
from triptych.models.flava import convert
from triptych.models.flava.config import FLAVAFusionConfig
from triptych.models.flava.family import flava_full
from triptych.models.flava.model import FLAVA
from triptych.tasks.pretraining.flava import FLAVAPretraining, FLAVAPretrainingConfig

STATES = {"atol": 1e-5, "rtol": 1e-5}
LOSSES = {"atol": 1e-5, "rtol": 1e-5}
GRADIENTS = {"atol": 1e-5, "rtol": 1e-4}


class Pair:
    """Both models and a batch."""

    def __init__(self, size):
        config = oracle.released_config(**oracle.SIZES[size])
        self.theirs = oracle.released_model(config)
        self.ours = oracle.our_model(self.theirs)
        self.batch = oracle.make_batch(config)


@pytest.fixture(scope="module", params=oracle.SIZES)
def pair(request):
    return Pair(request.param)


@torch.no_grad()
def test_states_of_all_encoders(pair):
    theirs, ours, batch = pair.theirs, pair.ours, pair.batch
    expected = oracle.released_output(theirs, batch | {"itm_labels": torch.ones(5).long()}, "pair")
    mask = batch["text_mask"]
    image = ours.encode_image(batch["image"])
    masked = ours.encode_image(batch["image"], hidden_patches=batch["hidden_patches"])
    text = ours.encode_text(batch["token_ids"], mask)
    masked_text = ours.encode_text(batch["mlm_token_ids"], mask)
    norm, text_norm = ours.visual_encoder.final_norm, ours.text_encoder.final_norm
    torch.testing.assert_close(norm(image.tokens), expected.image_embeddings, **STATES)
    torch.testing.assert_close(norm(masked.tokens), expected.image_masked_embeddings, **STATES)
    torch.testing.assert_close(image.pooled, expected.image_embeddings[:, 0], **STATES)
    for found, released in (
        (text, expected.text_embeddings),
        (masked_text, expected.text_masked_embeddings),
    ):
        torch.testing.assert_close(text_norm(found.tokens)[mask], released[mask], **STATES)
        torch.testing.assert_close(found.pooled, released[:, 0], **STATES)
    fused = ours.fuse(masked, masked_text)
    released = expected.multimodal_masked_embeddings
    num_image = image.tokens.shape[1]
    torch.testing.assert_close(fused.pooled, released[:, 0], **STATES)
    torch.testing.assert_close(fused.image_tokens, released[:, 1 : 1 + num_image], **STATES)
    words = released[:, 1 + num_image :]
    torch.testing.assert_close(fused.text_tokens[mask], words[mask], **STATES)
    torch.testing.assert_close(ours.match_logits(fused), expected.itm_logits, **STATES)
    similarity = ours.embed_image(image) @ ours.embed_text(text).T * ours.logit_scale.exp()
    torch.testing.assert_close(similarity, expected.contrastive_logits_per_image, **LOSSES)


@torch.no_grad()
def test_codes_of_the_image_tokenizer(pair):
    found = pair.ours.image_codes(pair.batch["codebook_image"])
    expected = pair.theirs.image_codebook.get_codebook_indices(pair.batch["codebook_image"])
    assert torch.equal(found, expected.flatten(1))
    assert len(found.unique()) > 1


@pytest.mark.parametrize("kind", ["pair", "image", "text"])
def test_losses_and_every_gradient(pair, kind):
    task = FLAVAPretraining(pair.ours, FLAVAPretrainingConfig())
    expected = oracle.released_output(pair.theirs, pair.batch, kind)
    found = task.losses(oracle.of_kind(pair.batch, kind))
    names = {"pair": ["gc", "itm", "mmm_image", "mmm_text"], "image": ["mim"], "text": ["mlm"]}
    assert list(found) == names[kind]
    for name, loss in found.items():
        released = getattr(expected.loss_info, oracle.THEIR_LOSSES[name])
        torch.testing.assert_close(loss, released, **LOSSES, msg=name)
    pair.theirs.zero_grad()
    pair.ours.zero_grad()
    expected.loss.backward()
    sum(found.values()).backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in pair.ours.named_parameters()
    }
    foreign = split_tensors(gradients, convert.key_table(pair.ours.config))
    squares = 0.0
    for name, parameter in pair.theirs.named_parameters():
        name = name.replace("_head.bias", "_head.decoder.bias")  # one parameter, two names
        released = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        mine = foreign[name].reshape(released.shape)
        torch.testing.assert_close(mine, released, **GRADIENTS, msg=name)
        squares += float(released.square().sum())
    norm = sum(float(g.square().sum()) for g in gradients.values()) ** 0.5
    assert norm == pytest.approx(squares**0.5, rel=1e-5)


def test_padding_attended_as_the_released_weights_were_trained():
    config = oracle.released_config(**oracle.SIZES["deeper"])
    theirs = oracle.released_model(config)
    ours = oracle.our_model(theirs, pad_attention="attended", padded_text_len=oracle.LENGTH + 6)
    fuse = theirs.flava.multimodal_model.forward

    def without_mask(states, attention_mask=None, **how):
        return fuse(states, attention_mask=None, **how)

    theirs.flava.multimodal_model.forward = without_mask
    batch = oracle.make_batch(config)
    wide = dict(batch)
    for name, value in (("token_ids", 0), ("mlm_token_ids", 0), ("mlm_labels", -100)):
        wide[name] = torch.nn.functional.pad(batch[name], (0, 6), value=value)
    wide["text_mask"] = torch.nn.functional.pad(batch["text_mask"], (0, 6))
    expected = oracle.released_output(theirs, wide, "pair")
    found = FLAVAPretraining(ours, FLAVAPretrainingConfig()).losses(batch)
    for name, loss in found.items():
        released = getattr(expected.loss_info, oracle.THEIR_LOSSES[name])
        torch.testing.assert_close(loss, released, **LOSSES, msg=name)
    theirs.zero_grad()
    ours.zero_grad()
    expected.loss.backward()
    sum(found.values()).backward()
    words = theirs.flava.text_model.embeddings.word_embeddings.weight.grad
    torch.testing.assert_close(ours.text_encoder.embedding.word.weight.grad, words, **GRADIENTS)
    masked = oracle.our_model(theirs)
    other = FLAVAPretraining(masked, FLAVAPretrainingConfig()).losses(batch)
    assert abs(other["mmm_text"] - found["mmm_text"]) > 1e-4


@torch.no_grad()
def test_a_multimodal_encoder_of_another_width():
    from transformers import FlavaModel

    config = oracle.released_config(**oracle.SIZES["tiny"])
    config.multimodal_config.hidden_size = 48
    config.multimodal_config.intermediate_size = 80
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = FlavaModel(config).eval()
    base = convert.config_from_folder(config.to_dict(), flava_full())
    ours = FLAVA(convert.config_for(theirs.state_dict(), base)).eval()
    assert ours.config.fusion == FLAVAFusionConfig(
        embed_dim=48, depth=1, num_heads=2, mlp_ratio=80 / 48
    )
    report = convert.import_state_dict(theirs.state_dict(), ours)
    assert report.unexpected == []
    assert all("_head." in name for name in report.missing)
    batch = oracle.make_batch(config)
    expected = theirs(
        input_ids=batch["token_ids"],
        pixel_values=batch["image"],
        attention_mask=batch["text_mask"].long(),
    )
    image = ours.encode_image(batch["image"])
    text = ours.encode_text(batch["token_ids"], batch["text_mask"])
    fused = ours.fuse(image, text)
    released = expected.multimodal_embeddings
    torch.testing.assert_close(fused.pooled, released[:, 0], **STATES)
    words = released[:, 1 + image.tokens.shape[1] :][batch["text_mask"]]
    torch.testing.assert_close(fused.text_tokens[batch["text_mask"]], words, **STATES)


@torch.no_grad()
def test_a_larger_image_takes_resized_positions():
    config = oracle.released_config(**oracle.SIZES["tiny"])
    theirs = oracle.released_model(config)
    base = convert.config_from_folder(config.to_dict(), flava_full())
    larger = convert.config_for(theirs.state_dict(), base, image_size=48)
    ours = FLAVA(larger).eval()
    report = convert.import_state_dict(theirs.state_dict(), ours)
    assert report.resized == ["visual_encoder.position_embedding"]
    image = torch.randn(2, 3, 48, 48)
    released = theirs.flava.get_image_features(image, interpolate_pos_encoding=True)
    states = ours.visual_encoder.final_norm(ours.encode_image(image).tokens)
    torch.testing.assert_close(states, released.last_hidden_state, **STATES)
    projected = torch.nn.functional.normalize(released.pooler_output[:, 0], dim=-1)
    features = ImageFeatures(ours.encode_image(image).tokens)
    torch.testing.assert_close(ours.embed_image(features), projected, **STATES)


def test_where_the_port_changes_its_input_ours_does_not(pair):
    batch = oracle.of_kind(pair.batch, "image")
    codes = pair.ours.image_codes(batch["codebook_image"])
    batch = {name: t for name, t in batch.items() if name != "codebook_image"}
    batch["image_codes"] = codes
    before = copy.deepcopy(batch)
    FLAVAPretraining(pair.ours, FLAVAPretrainingConfig()).losses(batch)
    assert all(torch.equal(batch[name], tensor) for name, tensor in before.items())
    pair.theirs(
        pixel_values=batch["image"],
        bool_masked_pos=batch["hidden_patches"],
        mim_labels=codes,
        return_loss=True,
    )
    assert bool((codes == -100).any())  # transformers writes into the caller's labels
