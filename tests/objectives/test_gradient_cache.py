"""Chunks against the whole batch: losses, every gradient, dropout, memory, and the gather."""

import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.distributed.averaging import average_gradients
from triptych.core.errors import ConfigError
from triptych.distributed.collectives import all_gather, all_gather_with_grad
from triptych.distributed.env import rank, run_processes
from triptych.objectives.contrastive import itc_loss, positive_pairs, similarity, soft_targets
from triptych.objectives.gradient_cache import encode_in_chunks

BATCH, WIDTH = 7, 6


class Tower(nn.Module):
    """Two linear layers with dropout between them, and an embedding of length 1."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(WIDTH, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 5)
        )

    def forward(self, x):
        return F.normalize(self.layers(x), dim=-1)


def make_model(dropout=0.0):
    torch.manual_seed(0)
    model = nn.ModuleDict({"image": Tower(dropout), "text": Tower(dropout)})
    model.register_parameter("temperature", nn.Parameter(torch.tensor(0.2)))
    return model


def make_batch(size=BATCH):
    torch.manual_seed(1)
    keys = torch.arange(size)
    keys[-1] = keys[0]  # two images with one caption
    return torch.randn(size, WIDTH), torch.randn(size, WIDTH), keys


def contrastive(model, image, text, keys):
    """The loss of these rows against everybody's."""
    everyone = all_gather(keys[:, None])
    all_image, all_text = all_gather_with_grad(image), all_gather_with_grad(text)
    targets = soft_targets(positive_pairs(keys[:, None], everyone), None, 0.0)
    return itc_loss(
        similarity(image, all_text, model.temperature),
        similarity(text, all_image, model.temperature),
        targets,
        targets,
    )


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def whole_batch(model, image, text, keys):
    model.zero_grad()
    loss = contrastive(model, model["image"](image), model["text"](text), keys)
    loss.backward()
    return loss.detach(), gradients(model)


def in_chunks(model, image, text, keys, chunk_size):
    model.zero_grad()
    embeddings = encode_in_chunks(
        lambda i, t: (model["image"](i), model["text"](t)), image, text, chunk_size=chunk_size
    )
    loss = contrastive(model, *embeddings, keys)
    loss.backward()
    return loss.detach(), gradients(model)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, BATCH, 100])
def test_loss_and_gradients_are_those_of_the_whole_batch(chunk_size):
    model, batch = make_model(), make_batch()
    loss, expected = whole_batch(model, *batch)
    found_loss, found = in_chunks(model, *batch, chunk_size)
    torch.testing.assert_close(found_loss, loss, atol=1e-6, rtol=1e-6)
    assert found.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for name in expected:
        assert expected[name].abs().max() > 1e-4, name
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)


def test_a_single_embedding_comes_back_as_a_tensor():
    tower, (image, _, _) = make_model()["image"], make_batch()
    torch.testing.assert_close(encode_in_chunks(tower, image, chunk_size=2), tower(image))


def test_dropout_is_replayed():
    """The reference keeps every chunk's graph, so nothing has to be replayed."""
    model, (image, text, keys) = make_model(dropout=0.5), make_batch()
    torch.manual_seed(7)
    parts = [(model["image"](i), model["text"](t)) for i, t in zip(image.split(3), text.split(3))]
    loss = contrastive(model, *(torch.cat(column) for column in zip(*parts)), keys)
    loss.backward()
    expected, after = gradients(model), torch.rand(3)
    torch.manual_seed(7)
    found_loss, found = in_chunks(model, image, text, keys, 3)
    torch.testing.assert_close(found_loss, loss.detach(), atol=1e-6, rtol=1e-6)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)
    assert torch.equal(torch.rand(3), after)  # and later draws are those of an ordinary run


def test_at_most_one_chunk_lives():
    """Counts the hidden states of all chunks that are alive when each is made."""
    alive, seen = [], []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(WIDTH, 4), nn.Linear(4, 3)

        def forward(self, x):
            hidden = self.first(x).sin()
            alive.append(weakref.ref(hidden))
            seen.append(sum(reference() is not None for reference in alive))
            return self.second(hidden * hidden)

    model, x = Watched(), torch.randn(8, WIDTH)
    embedding = encode_in_chunks(model, x, chunk_size=2)
    assert seen == [1, 1, 1, 1]
    assert sum(reference() is not None for reference in alive) == 0
    (embedding @ embedding.T).logsumexp(dim=1).sum().backward()
    assert seen == [1] * 8  # four chunks, each once more
    kept = [model(part) for part in x.split(2)]
    assert seen[-1] == len(kept) == 4  # without chunks all of them live


def test_other_losses_on_the_same_rows_add_up():
    model, (image, text, keys) = make_model(), make_batch()

    def total(encode):
        model.zero_grad()
        embedding, squares = encode(
            lambda i: (model["image"](i), model["image"].layers(i).square().sum()[None])
        )
        loss = contrastive(model, embedding, model["text"](text), keys) + squares.sum() / BATCH
        loss.backward()
        return loss.detach(), gradients(model)

    loss, expected = total(lambda encode: encode(image))
    found_loss, found = total(lambda encode: encode_in_chunks(encode, image, chunk_size=3))
    torch.testing.assert_close(found_loss, loss)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)


def test_evaluation_encodes_once():
    calls = []

    def encode(x):
        calls.append(len(x))
        return x * 2

    x = torch.randn(5, 2)
    with torch.no_grad():
        assert torch.equal(encode_in_chunks(encode, x, chunk_size=2), x * 2)
    assert calls == [2, 2, 1]
    with pytest.raises(ConfigError, match="chunk_size = 0"):
        encode_in_chunks(encode, x, chunk_size=0)


def _on_one_of_several(sizes, chunk_size):
    """Train on this process's rows; return averaged loss weights and gradients."""
    model = make_model()
    start = sum(sizes[: rank()])
    image, text, keys = (t[start : start + sizes[rank()]] for t in make_batch(sum(sizes)))
    loss, _ = in_chunks(model, image, text, keys, chunk_size)
    average_gradients(list(model.parameters()))
    losses = all_gather(loss[None])
    return losses.numpy(), {name: grad.numpy() for name, grad in gradients(model).items()}


def test_through_the_gather_it_is_the_joined_batch():
    """Two processes with three rows each, in chunks of two, against one with all six."""
    losses, found = run_processes(_on_one_of_several, 2, (3, 3), 2)
    loss, expected = whole_batch(make_model(), *make_batch(6))
    assert losses.mean() == pytest.approx(float(loss), abs=1e-6)
    for name in expected:
        found_here = torch.from_numpy(found[name])
        torch.testing.assert_close(found_here, expected[name], atol=1e-6, rtol=1e-5)
