"""FLAVA's pre-training: plain passes, the ports' faults, several processes."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from tests.distributed.averaging import average_gradients
from tests.tasks.pretraining.flava_batches import (
    gradients,
    make_pairs,
    make_task,
    of_kind,
    small_config,
)
from triptych.core.errors import CapabilityError, ConfigError, DataError
from triptych.distributed.collectives import all_reduce_mean
from triptych.distributed.env import rank, run_processes
from triptych.models.dvae.config import DVAEConfig
from triptych.models.flava.model import FLAVA
from triptych.tasks.pretraining.flava import (
    BATCH_KINDS,
    FLAVAPretrainingConfig,
)
from triptych.tasks.pretraining.padding import cut_padding, true_positions
from triptych.train.step import set_recompute
from triptych.train.task import MixedTask

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def plain_losses(task, batch):
    """Compute a batch of pairs' losses with one full pass each, row by row where that is plain."""
    model, matched = task.model, batch["itm_labels"] == 1
    mask, hidden = batch["text_mask"], batch["hidden_patches"]
    image = model.encode_image(batch["image"])
    text = model.encode_text(batch["token_ids"], mask)
    logits = model.logit_scale.exp() * model.embed_image(image) @ model.embed_text(text).T
    rows = torch.arange(len(logits))[matched]
    gc = (F.cross_entropy(logits[rows], rows) + F.cross_entropy(logits.T[rows], rows)) / 2
    fused = model.fuse(
        model.encode_image(batch["image"], hidden_patches=hidden),
        model.encode_text(batch["mlm_token_ids"], mask),
    )
    itm = F.cross_entropy(model.match_logits(fused), batch["itm_labels"])
    patches = hidden & matched[:, None]
    codes = model.mmm_image_head(fused.image_tokens[:, 1:][patches])
    words = (batch["mlm_labels"] != -100) & matched[:, None]
    return {
        "gc": gc,
        "itm": itm,
        "mmm_image": F.cross_entropy(codes, batch["image_codes"][patches]),
        "mmm_text": F.cross_entropy(
            model.word_logits(fused.text_tokens[words]), batch["mlm_labels"][words]
        ),
    }


def test_one_trimmed_pass_equals_full_passes():
    task, batch = make_task(), make_pairs()
    found, expected = task.losses(batch), plain_losses(task, batch)
    assert list(found) == ["gc", "itm", "mmm_image", "mmm_text"]
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(gradients(task, found), gradients(task, expected), **CLOSE)


@pytest.mark.parametrize("name", ["gc", "itm", "mmm_image", "mmm_text"])
def test_each_objective_alone_is_the_same(name):
    task, batch = make_task(), make_pairs()
    alone = task.losses(batch, active=frozenset({name, "mim", "mlm"}))
    assert list(alone) == [name]
    torch.testing.assert_close(alone[name], task.losses(batch)[name], **CLOSE)


@pytest.mark.parametrize("kind", ["pair", "image", "text"])
@pytest.mark.parametrize("chunk_size", [1, 2, 4, 6, 100])
def test_chunks_equal_the_whole_batch(kind, chunk_size):
    task, batch = make_task(), of_kind(make_pairs(), kind)
    batch["mlm_labels" if kind == "text" else "hidden_patches"][1:3] = -100 if kind == "text" else 0
    counts = _targets(batch, kind)
    assert len(set(counts)) > 1  # a mean of the chunks' means would be another number
    assert 0 in counts  # and one chunk of a row has nothing to predict
    chunked = make_task(task.model, chunk_size=chunk_size)
    whole, parts = task.losses(batch), chunked.losses(batch)
    torch.testing.assert_close(parts, whole, **CLOSE)
    torch.testing.assert_close(gradients(chunked, parts), gradients(task, whole), **CLOSE)


def _targets(batch, kind):
    """Return what each row has to predict: a number of words, or of patches."""
    read = batch["mlm_labels"] != -100 if kind == "text" else batch["hidden_patches"]
    return read.flatten(1).sum(dim=1).tolist()


@pytest.mark.parametrize("kind", ["pair", "image", "text"])
def test_chunks_keep_the_activations_of_one_chunk(kind):
    task, batch = make_task(), of_kind(make_pairs(), kind)
    kept = {}
    for size in (None, 2):
        bound, largest = make_task(task.model, chunk_size=size), []

        def save(tensor, largest=largest):
            largest.append(tensor.numel() if tensor.dim() == 3 else 0)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            bound.losses(batch)
        kept[size] = sum(largest)
    assert kept[2] == 0 < kept[None]  # (B, S, D) states: only a chunk's backward pass has them


@pytest.mark.parametrize("kind", ["pair", "image", "text"])
@pytest.mark.parametrize("way", ["keep all", "selective", "full"])
def test_what_blocks_keep_changes_no_gradient(kind, way):
    task, batch = make_task(), of_kind(make_pairs(), kind)
    assert task.model.fusion.blocks[0].recompute_cheap
    plain = task.losses(batch)
    expected = gradients(task, plain)
    if way == "keep all":
        task.model.set_recompute_cheap(False)
    else:
        assert set_recompute(task.modules, way) == 6
    found = task.losses(batch)
    torch.testing.assert_close(found, plain, atol=0.0, rtol=0.0)
    torch.testing.assert_close(gradients(task, found), expected, atol=0.0, rtol=0.0)


def test_a_batch_of_mismatches_trains_itm_alone_and_keeps_the_graph():
    task, batch = make_task(), make_pairs(itm_labels=(0,) * 6)
    losses = task.losses(batch)
    for name in ("gc", "mmm_image", "mmm_text"):
        assert float(losses[name].detach()) == 0.0
        assert losses[name].requires_grad
    itm_alone = gradients(task, {"itm": losses["itm"]})
    torch.testing.assert_close(gradients(task, task.losses(batch)), itm_alone, **CLOSE)
    assert any(bool(g.any()) for g in itm_alone.values())


@pytest.mark.parametrize("kind", ["pair", "image", "text"])
def test_an_empty_mask_gives_zero_and_no_nan(kind):
    batch = make_pairs()
    batch["hidden_patches"] = torch.zeros_like(batch["hidden_patches"])
    batch["mlm_labels"] = torch.full_like(batch["mlm_labels"], -100)
    task = make_task()
    losses = task.losses(of_kind(batch, kind))
    masked = set(losses) - {"gc", "itm"}
    assert masked == {"pair": {"mmm_image", "mmm_text"}, "image": {"mim"}, "text": {"mlm"}}[kind]
    assert all(float(losses[name].detach()) == 0.0 for name in masked)
    assert all(losses[name].requires_grad for name in masked)
    found = gradients(task, {name: losses[name] for name in masked})
    assert all(not g.any() and bool(g.isfinite().all()) for g in found.values())


def test_the_port_trains_on_mismatches_and_returns_nan_where_ours_does_not():
    pytest.importorskip("transformers")
    from tests.parity import flava_oracle as oracle

    config = oracle.released_config(**oracle.SIZES["tiny"])
    theirs = oracle.released_model(config)
    batch = oracle.make_batch(config)
    mismatched = batch | {"itm_labels": torch.zeros(5, dtype=torch.int64)}
    released = oracle.released_output(theirs, mismatched, "pair").loss_info
    assert float(released.global_contrastive.detach()) > 0.5
    assert float(released.mmm_text.detach()) > 0.5
    ours = make_task(oracle.our_model(theirs))
    losses = ours.losses(mismatched)
    assert [float(losses[name].detach()) for name in ("gc", "mmm_image", "mmm_text")] == [
        0.0,
        0.0,
        0.0,
    ]
    torch.testing.assert_close(losses["itm"], released.itm, **CLOSE)

    empty = batch | {"mlm_labels": torch.full_like(batch["mlm_labels"], -100)}
    assert math.isnan(float(oracle.released_output(theirs, empty, "text").loss_info.mlm.detach()))
    assert float(ours.losses(oracle.of_kind(empty, "text"))["mlm"].detach()) == 0.0

    column = batch | {"itm_labels": batch["itm_labels"][:, None]}
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        oracle.released_output(theirs, column, "pair")
    torch.testing.assert_close(ours.losses(column), ours.losses(batch))


def test_labels_of_matches_may_be_a_column():
    task, batch = make_task(), make_pairs()
    column = batch | {"itm_labels": batch["itm_labels"][:, None]}
    torch.testing.assert_close(task.losses(column), task.losses(batch))


@pytest.mark.parametrize("kind", ["pair", "image", "text"])
def test_no_tensor_of_the_batch_changes(kind):
    task, batch = make_task(), of_kind(make_pairs(), kind)
    before = copy.deepcopy(batch)
    sum(task.losses(batch).values()).backward()
    assert set(batch) == set(before)
    assert all(torch.equal(batch[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("kind", ["pair", "text"])
def test_padding_changes_no_loss(kind):
    task, batch = make_task(), of_kind(make_pairs(), kind)
    wide = dict(batch)
    for name in ("token_ids", "mlm_token_ids"):
        if name in wide:
            noisy = batch[name].masked_fill(~batch["text_mask"], 9)
            wide[name] = F.pad(noisy, (0, 5), value=8)
    wide["mlm_labels"] = F.pad(batch["mlm_labels"], (0, 5), value=-100)
    wide["text_mask"] = F.pad(batch["text_mask"], (0, 5))
    torch.testing.assert_close(task.losses(wide), task.losses(batch), **CLOSE)
    assert cut_padding(wide)["mlm_labels"].shape == batch["mlm_labels"].shape


def test_order_of_the_batch_changes_no_loss():
    task, batch, order = make_task(), make_pairs(), torch.tensor([2, 0, 5, 3, 1, 4])
    shuffled = {name: tensor[order] for name, tensor in batch.items()}
    torch.testing.assert_close(task.losses(shuffled), task.losses(batch), **CLOSE)


def test_a_swapped_caption_is_no_negative_of_its_own_image():
    # row 1 shows image 1 with the caption of row 0
    task, batch = make_task(), make_pairs(size=3, itm_labels=(1, 0, 1))
    for name in ("token_ids", "text_mask"):
        batch[name][1] = batch[name][0]
    keys = {"image_key": torch.tensor([0, 1, 2]), "caption_key": torch.tensor([7, 7, 9])}
    model = task.model
    image = model.embed_image(model.encode_image(batch["image"]))
    text = model.embed_text(model.encode_text(batch["token_ids"], batch["text_mask"]))
    logits = model.logit_scale.exp() * image @ text.T
    i2t, t2i = -torch.log_softmax(logits, 1), -torch.log_softmax(logits.T, 1)
    expected = ((i2t[0, 0] + i2t[0, 1]) / 2 + t2i[0, 0] + i2t[2, 2] + t2i[2, 2]) / 4
    found = task.losses(batch | keys, active=frozenset({"gc"}))["gc"]
    torch.testing.assert_close(found, expected, **CLOSE)


def test_codes_come_from_the_models_own_codebook():
    torch.manual_seed(0)
    codebook = DVAEConfig(image_size=24, num_codes=11, hidden_dim=4, blocks_per_group=1)
    model = FLAVA(small_config(codebook=codebook))
    batch = make_pairs()
    batch["codebook_image"] = torch.rand(6, 3, 24, 24)
    codes = model.image_codes(batch["codebook_image"])
    assert codes.shape == (6, 9)
    given = make_task(model).losses(batch | {"image_codes": codes})
    del batch["image_codes"]
    torch.testing.assert_close(make_task(model).losses(batch), given)
    torch.testing.assert_close(make_task(model, chunk_size=2).losses(batch), given, **CLOSE)
    assert all(p.grad is None and not p.requires_grad for p in model.codebook.parameters())


def test_what_is_missing_is_named():
    task, batch = make_task(), make_pairs()
    with pytest.raises(DataError, match="itm_labels"):
        task.losses({k: t for k, t in batch.items() if k != "itm_labels"})
    with pytest.raises(DataError, match=r"image.*mlm_token_ids"):
        task.losses({"index": batch["index"]})
    without = {k: t for k, t in of_kind(batch, "image").items() if k != "image_codes"}
    with pytest.raises(DataError, match="codebook_image"):
        task.losses(without)
    with pytest.raises(CapabilityError, match="no image codebook"):
        task.losses(without | {"codebook_image": torch.rand(6, 3, 24, 24)})


def test_every_parameter_learns_from_the_three_kinds():
    task, batch = make_task(), make_pairs()
    total = {}
    for kind in BATCH_KINDS:
        total |= task.losses(of_kind(batch, kind))
    assert set(total) == task.objective_names
    for name, gradient in gradients(task, total).items():
        assert bool(gradient.any()), name
        assert bool(gradient.isfinite().all()), name


def test_kinds_tell_what_batches_hold():
    task, batch = make_task(), make_pairs()
    assert isinstance(task, MixedTask)
    for kind, facts in task.batch_kinds.items():
        part = of_kind(batch, kind)
        assert facts.batch_keys <= part.keys()
        assert set(task.losses(part)) == facts.objectives


def test_after_step_clamps_the_scale_and_nothing_else_moves_it():
    task = make_task()
    with torch.no_grad():
        task.model.logit_scale.fill_(9.0)
    task.losses(make_pairs())
    assert task.model.logit_scale.item() == 9.0
    task.after_step(1)
    assert task.model.logit_scale.exp().item() == pytest.approx(100, rel=1e-4)
    with torch.no_grad():
        task.model.logit_scale.fill_(-1.0)
    task.after_step(2)
    assert task.model.logit_scale.item() == 0.0


def test_predictions_are_the_embeddings_of_both_sides():
    task, batch = make_task(), make_pairs()
    found = task.predict(batch)
    norms = [found.embeddings[side].norm(dim=-1) for side in ("image", "text")]
    torch.testing.assert_close(norms, [torch.ones(6)] * 2)
    text = task.model.encode_text(batch["token_ids"], batch["text_mask"])
    torch.testing.assert_close(found.embeddings["text"], task.model.embed_text(text))
    assert list(found.index) == list(range(6))


def test_places_are_those_that_are_read():
    read = torch.tensor([[False, True, True], [False, False, False], [True, False, False]])
    positions, valid = true_positions(read)
    assert valid.tolist() == [[True, True], [False, False], [True, False]]
    assert positions[0].tolist() == [1, 2]
    assert int(positions[2, 0]) == 0
    assert true_positions(torch.zeros(2, 3, dtype=torch.bool))[1].tolist() == [[False], [False]]


@pytest.mark.parametrize(("field", "value"), [("max_logit_scale", 0.0), ("chunk_size", 0)])
def test_impossible_settings_name_the_field(field, value):
    with pytest.raises(ConfigError, match=field):
        FLAVAPretrainingConfig(**{field: value})


SPLITS = {1: (8,), 2: (4, 4), 4: (2, 2, 2, 2)}
CASES = {
    "pair": ("pair", {}),
    "text": ("text", {}),
    "chunks": ("pair", {"chunk_size": 2}),
    "text chunks": ("text", {"chunk_size": 2}),
    "local": ("pair", {"contrastive": "local"}),
    "empty": ("empty", {}),
    "empty chunks": ("empty", {"chunk_size": 2}),
}

WHOLE = {"chunks": "pair", "text chunks": "text", "empty chunks": "empty"}
"""What a case in chunks must equal."""


def _loss_and_gradients(kind, settings, split):
    """Do one step's backward pass on this process's rows, as the trainer does it."""
    task = make_task(**settings)
    pairs = make_pairs(8, itm_labels=(1, 0, 1, 1, 0, 1, 1, 0))
    batch = of_kind(pairs, "text" if kind == "text" else "pair")
    if kind == "empty":  # the last rows, all that the second of two processes has, train nothing
        batch["itm_labels"] = torch.tensor([1, 0, 1, 1, 0, 0, 0, 0])
        batch["mlm_labels"][4:] = -100
        batch["hidden_patches"][4:] = False
    if kind == "pair":
        batch |= {
            "image_key": torch.arange(8),
            "caption_key": torch.tensor([0, 3, 2, 3, 4, 5, 6, 1]),
        }
    bounds = [0, *torch.tensor(split).cumsum(0).tolist()]
    own = slice(bounds[rank()], bounds[rank() + 1])
    losses = task.losses({name: tensor[own] for name, tensor in batch.items()})
    sum(losses.values()).backward()
    parameters = list(task.modules.parameters())
    average_gradients(parameters)
    found = [None if p.grad is None else p.grad.flatten().tolist() for p in parameters]
    return {name: float(all_reduce_mean(loss)) for name, loss in losses.items()}, found


def _all_cases(split):
    return {name: _loss_and_gradients(*case, split) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def joined():
    return _all_cases(SPLITS[1])


def _largest_difference(found, expected):
    assert [g is None for g in found] == [g is None for g in expected]
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if b is not None]
    return max(float((torch.tensor(a) - torch.tensor(b)).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("num_processes", [2, 4])
def test_several_processes_equal_one_with_the_joined_batch(joined, num_processes):
    split = run_processes(_all_cases, num_processes, SPLITS[num_processes])
    for name, (losses, found) in split.items():
        expected_losses, expected = joined[WHOLE.get(name, name)]
        assert losses == pytest.approx(expected_losses, abs=1e-5), name
        if name == "local":  # the same value, another gradient; in one process the same
            assert _largest_difference(found, expected) > 1e-3
            assert _largest_difference(expected, joined["pair"][1]) < 1e-6
        else:
            assert _largest_difference(found, expected) < 1e-5, name
