"""VLMo fine-tuned: retrieval by the dual encoder, classifiers and NLVR2 by the fusion encoder."""

import pytest
import torch
from torch.nn import functional as F

from tests.tasks.pretraining.test_vlmo import build, make_batch
from triptych.core.errors import ConfigError
from triptych.core.outputs import ImageFeatures
from triptych.core.rng import seed_step
from triptych.models.base import PairReader, match_pairs
from triptych.models.vlmo.model import VLMo
from triptych.tasks.finetuning.image_text_classification import (
    AnswerClassification,
    AnswerClassificationConfig,
)
from triptych.tasks.finetuning.nlvr2 import NLVR2, VLMO_NLVR2, NLVR2Config
from triptych.tasks.finetuning.retrieval import (
    EncodedSet,
    Retrieval,
    StateStore,
    VLMoRetrievalConfig,
    encode_images,
    encode_texts,
    score_pairs,
)


def model_of(name="relative"):
    return build(name).model


def two_images(size=4):
    batch = make_batch(size)
    second = torch.randn(size, 3, 32, 32)
    label = torch.tensor([0, 1, 1, 0])[:size]
    return batch | {"image": torch.stack([batch["image"], second], dim=1), "label": label}


@pytest.mark.parametrize("name", ["relative", "absolute", "shared"])
@torch.no_grad()
def test_the_state_of_a_pair_is_that_of_fusing_encoded_sides(name):
    model, batch = model_of(name), make_batch()
    assert isinstance(model, PairReader)
    ids, mask = batch["token_ids"], batch["text_mask"]
    found = model.pair_state(batch["image"], ids, mask)
    expected = model.fuse(model.encode_image(batch["image"]), model.encode_text(ids, mask))
    torch.testing.assert_close(found, expected.pooled, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_matching_pairs_by_index_equals_fusing_them():
    model, batch = model_of(), make_batch()
    image = model.encode_image(batch["image"])
    text = model.encode_text(batch["token_ids"], batch["text_mask"])
    index = torch.tensor([2, 0, 0, 4, 1])
    expected = model.match_logits(model.fuse(image.select(index), text))
    found = match_pairs(model, ImageFeatures.join([image]), text, index)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "memory_mib"), [("relative", 64), ("absolute", 64), ("relative", 0)]
)
@torch.no_grad()
def test_scores_of_pairs_are_those_of_fusing_them_one_by_one(name, memory_mib, monkeypatch):
    """Texts of different lengths come from different batches; each side is encoded once."""
    model = model_of(name).eval()
    batches = [make_batch(3, length=12, seed=2), make_batch(4, length=6, seed=3)]
    images = make_batch(4, seed=4)["image"]
    embedded = {"image_inputs": 0, "text_inputs": 0}

    def counted(method):
        original = getattr(model, method)

        def call(rows, *more, **options):
            embedded[method] += len(rows)
            return original(rows, *more, **options)

        return call

    for method in embedded:
        monkeypatch.setattr(model, method, counted(method))
    batches_of_images = [{"image": rows} for rows in images.split(3)]
    store = StateStore(memory_mib)  # of 0 MiB: all states lie in files
    image, image_embedding = encode_images(model, batches_of_images, len(images), store)
    text, text_embedding = encode_texts(model, batches, 7, 12, store)
    encoded = EncodedSet(image, text, image_embedding, text_embedding)
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(7))[torch.randperm(28)]
    found = score_pairs(model, encoded, pairs, local_batch_size=5)
    assert embedded == {"image_inputs": 4, "text_inputs": 7}

    monkeypatch.undo()
    texts = [(batch["token_ids"][row], batch["text_mask"][row])
             for batch in batches for row in range(len(batch["token_ids"]))]  # fmt: skip
    assert len({int(mask.sum()) for _, mask in texts}) > 2
    for (i, t), score in zip(pairs.tolist(), found.tolist(), strict=True):
        ids, mask = texts[t]
        one = model.encode_text(ids[mask][None], mask[mask][None])
        logits = model.match_logits(model.fuse(model.encode_image(images[i][None]), one))[0]
        assert score == pytest.approx(float(logits[1] - logits[0]), abs=1e-5)
    for row, (ids, mask) in enumerate(texts):
        one = model.embed_text(model.encode_text(ids[mask][None], mask[mask][None]))[0]
        torch.testing.assert_close(text_embedding[row], one, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_nlvr2_scores_are_those_of_both_pairs_side_by_side():
    model, batch = model_of(), two_images()
    task = NLVR2(model, VLMO_NLVR2)
    text = model.encode_text(batch["token_ids"], batch["text_mask"])
    states = []
    for place in (0, 1):
        inputs = model.image_inputs(batch["image"][:, place], image_type=place)
        image = model.encode_image(batch["image"][:, place])
        image = type(image)(image.tokens, inputs=inputs)
        states.append(model.fuse(image, text).pooled)
    scores = task.modules["head"](torch.cat(states, dim=1))
    expected = F.cross_entropy(scores, batch["label"])
    found = task.losses(batch, active=task.objective_names)["classification"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    # released: dense 2D to 2D, LayerNorm, GELU, dense to 2
    shapes = [tuple(p.shape) for p in task.modules["head"].parameters()]
    assert shapes == [(32, 32), (32,), (32,), (32,), (2, 32), (2,)]


def test_the_second_image_starts_with_the_type_of_the_first_and_leaves_it():
    model = model_of()
    first = model.modality_embedding.weight.detach().clone()
    task = NLVR2(model, VLMO_NLVR2)
    types = model.modality_embedding.weight
    assert torch.equal(types, first[[0, 1, 1]])
    assert model.config.num_image_types == 2
    task.losses(two_images(), active=task.objective_names)["classification"].backward()
    assert bool((types.grad.abs().sum(dim=1) > 0).all())
    assert not torch.equal(types.grad[1], types.grad[2])
    VLMo(model.config).load_state_dict(model.state_dict())
    NLVR2(model, VLMO_NLVR2)
    assert model.config.num_image_types == 2


def test_answers_are_scored_from_the_pooled_pair():
    model, batch = model_of(), make_batch()
    task = AnswerClassification(model, AnswerClassificationConfig(answers=("a", "b", "c")))
    batch["answer_scores"] = torch.tensor([[1.0, 0.3, 0.0]]).repeat(5, 1)
    found = task.losses(batch, active=task.objective_names)["vqa"]
    fused = model.fuse(
        model.encode_image(batch["image"]),
        model.encode_text(batch["token_ids"], batch["text_mask"]),
    )
    scores = task.modules["head"](fused.pooled)
    expected = F.binary_cross_entropy_with_logits(scores, batch["answer_scores"], reduction="sum")
    torch.testing.assert_close(found, expected / 5, atol=1e-5, rtol=1e-5)


def test_retrieval_is_the_contrast_of_pretraining():
    pretraining, batch = build(), make_batch()
    task = Retrieval(pretraining.model, VLMoRetrievalConfig())
    keys = {key: batch[key] for key in task.batch_keys}
    found = task.losses(keys, active=frozenset({"itc"}))
    expected = pretraining.losses(batch, active=frozenset({"itc"}))
    assert torch.equal(found["itc"], expected["itc"])
    seed_step(3, 0, 0)
    itm = task.losses(keys, active=frozenset({"itm"}))["itm"]
    seed_step(3, 0, 0)
    assert torch.equal(itm, pretraining.losses(batch, active=frozenset({"itm"}))["itm"])
    assert not any(p.requires_grad for p in task.modules["model"].mlm_head.parameters())
    embeddings = task.predict(keys).embeddings
    torch.testing.assert_close(embeddings["text"].norm(dim=1), torch.ones(5))


def test_shares_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="swap_probability"):
        NLVR2Config(swap_probability=1.5)
