import pytest
import torch
from torch import nn

from triptych.generation.decoding import CachedDecoder
from triptych.generation.search import BeamConfig, beam_search
from triptych.nn.decoder import TextDecoder
from triptych.nn.encoder import TextConfig
from triptych.nn.init import init_weights
from triptych.nn.prepacked import kept_twin, packed_dtype, prepack, round_linear_weights

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    config = TextConfig(vocab_size=50, embed_dim=24, num_heads=2, max_positions=16)
    decoder = TextDecoder(config, 2).eval()
    init_weights(decoder, 0.3)
    torch.nn.init.normal_(decoder.head.bias)
    return decoder


@needs_onednn
@torch.no_grad()
def test_the_copy_computes_the_same_and_shares_the_rest(decoder):
    twin = decoder.prepacked()
    memory = decoder.project_memory(torch.randn(2, 5, 24), None)
    first, second = decoder.new_cache(), twin.new_cache()
    for ids in torch.randint(0, 50, (4, 2, 3)):
        expected = decoder.step(ids, memory, first)
        torch.testing.assert_close(twin.step(ids, memory, second), expected, atol=1e-5, rtol=1e-5)
    assert twin.embedding.word.weight is decoder.embedding.word.weight
    assert twin.blocks[0].mlp_norm.weight is decoder.blocks[0].mlp_norm.weight
    assert isinstance(decoder.blocks[0].mlp.up, torch.nn.Linear)  # the original is as it was


@needs_onednn
def test_copies_are_made_without_gradients_alone(decoder):
    def packed(*, grad=False, bf16=False):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return packed_dtype(decoder)

    assert packed() == torch.float32
    assert packed(bf16=True) == torch.bfloat16
    assert packed(grad=True) is None
    decoder.double()
    assert packed() is None


@needs_onednn
@torch.no_grad()
def test_bf16_weights_are_rounded_once_and_compute_what_autocast_does(decoder):
    memory = decoder.project_memory(torch.randn(2, 5, 24), None)
    ids = torch.randint(0, 50, (4, 2, 3))
    with torch.autocast("cpu", torch.bfloat16):
        twin = kept_twin(decoder, decoder.prepacked)
        assert kept_twin(decoder, decoder.prepacked) is twin
        first, second = decoder.new_cache(), twin.new_cache()
        for one in ids:
            expected = decoder.step(one, memory, first)
            found = twin.step(one, memory, second)
            assert found.dtype == expected.dtype == torch.bfloat16
            torch.testing.assert_close(found, expected, atol=0.1, rtol=0.05)
    assert twin.blocks[0].mlp.up._packed.dtype == torch.bfloat16
    assert {p.dtype for p in decoder.parameters()} == {torch.float32}  # the model is as it was
    assert kept_twin(decoder, decoder.prepacked) is not twin  # outside of autocast


@needs_onednn
@torch.no_grad()
@pytest.mark.parametrize("sizes", [(24, 96), (96, 24), (768, 3072), (3072, 768)])
def test_a_row_does_not_depend_on_the_rows_beside_it(sizes):
    width, out = sizes
    layer = nn.Sequential(nn.Linear(width, out))
    x = torch.randn(64, width)
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            packed = prepack(layer)
            whole = packed(x)
            for size in (1, 2, 5, 7, 16, 60):
                parts = [packed(x[start : start + size]) for start in range(0, 64, size)]
                assert torch.equal(torch.cat(parts), whole), size


@needs_onednn
@pytest.mark.parametrize("change", ["in place", "behind autograd", "another tensor", "loaded"])
@torch.no_grad()
def test_changed_weights_are_packed_anew(decoder, change):
    def say():
        memory = decoder.project_memory(torch.ones(1, 5, 24), None)
        step = CachedDecoder(decoder, memory)
        states = [step.logits(torch.full((1, 1), 7)) for _ in range(3)]
        return states[-1], step._reader

    before, first = say()
    again, same = say()
    assert same is first
    torch.testing.assert_close(again, before)
    weight = decoder.blocks[1].mlp.up.weight
    if change == "in place":
        weight[-1, -1] += 3
    elif change == "behind autograd":
        weight.data.mul_(-1)
    elif change == "another tensor":
        decoder.blocks[1].mlp.up.weight = torch.nn.Parameter(-weight)
    else:
        decoder.load_state_dict({k: -v for k, v in decoder.state_dict().items()})
    after, second = say()
    assert second is not first
    assert (after - before).abs().max() > 1e-3
    with torch.enable_grad():  # which computes without a copy
        expected, reader = say()
    assert reader is decoder
    torch.testing.assert_close(after, expected.detach(), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_search_finds_the_same(decoder, monkeypatch):
    memory = decoder.project_memory(torch.randn(2, 5, 24), None)
    config = BeamConfig(num_beams=4, min_tokens=9, max_tokens=12)
    found = beam_search(CachedDecoder(decoder, memory), start_id=1, end_id=2, config=config)
    monkeypatch.setattr("triptych.generation.decoding.packed_dtype", lambda _: None)
    expected = beam_search(CachedDecoder(decoder, memory), start_id=1, end_id=2, config=config)
    for ours, plain in zip(found, expected, strict=True):
        assert [h.token_ids for h in ours] == [h.token_ids for h in plain]
        scores = [[h.score for h in side] for side in (ours, plain)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)


@torch.no_grad()
def test_weights_that_are_rounded_in_place_compute_what_autocast_does(decoder):
    memory, ids = torch.randn(2, 5, 24), torch.randint(0, 50, (2, 6))

    def states():
        with torch.autocast("cpu", torch.bfloat16):
            return decoder.read_once(ids, None, memory, None)

    before = states()
    round_linear_weights(decoder, torch.bfloat16)
    assert decoder.blocks[0].mlp.up.weight.dtype == torch.bfloat16
    assert decoder.embedding.word.weight.dtype == torch.float32
    assert torch.equal(states(), before)
