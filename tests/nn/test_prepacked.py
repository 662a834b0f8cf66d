import pytest
import torch

from triptych.generation.decoding import SHORT_TEXT, CachedDecoder
from triptych.generation.search import BeamConfig, beam_search
from triptych.nn.decoder import TextDecoder
from triptych.nn.encoder import TextConfig
from triptych.nn.init import init_weights
from triptych.nn.prepacked import MAX_ROWS, can_prepack

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
def test_only_long_texts_of_few_rows_without_gradients_are_worth_it(decoder):
    def prepacks(rows, steps, *, grad=False, bf16=False):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            memory = decoder.project_memory(torch.randn(rows, 5, 24), None)
            step = CachedDecoder(decoder, memory)
            for _ in range(steps):
                step.logits(torch.zeros(rows, 1, dtype=torch.int64))
            return step._twin is not None

    assert not prepacks(2, SHORT_TEXT)
    assert prepacks(2, SHORT_TEXT + 1)
    assert not prepacks(MAX_ROWS + 1, SHORT_TEXT + 1)
    assert not prepacks(2, SHORT_TEXT + 1, grad=True)
    assert not prepacks(2, SHORT_TEXT + 1, bf16=True)
    assert not can_prepack(decoder.double())


@needs_onednn
@pytest.mark.parametrize("change", ["in place", "behind autograd", "another tensor", "loaded"])
@torch.no_grad()
def test_changed_weights_are_packed_anew(decoder, change):
    def say():
        memory = decoder.project_memory(torch.ones(1, 5, 24), None)
        step = CachedDecoder(decoder, memory)
        states = [step.logits(torch.full((1, 1), 7)) for _ in range(SHORT_TEXT + 2)]
        return states[-1], step._twin

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
        expected, none = say()
    assert none is None
    torch.testing.assert_close(after, expected.detach(), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_search_finds_the_same(decoder, monkeypatch):
    memory = decoder.project_memory(torch.randn(2, 5, 24), None)
    config = BeamConfig(num_beams=4, min_tokens=9, max_tokens=12)
    found = beam_search(CachedDecoder(decoder, memory), start_id=1, end_id=2, config=config)
    monkeypatch.setattr("triptych.generation.decoding.can_prepack", lambda _: False)
    expected = beam_search(CachedDecoder(decoder, memory), start_id=1, end_id=2, config=config)
    for ours, plain in zip(found, expected, strict=True):
        assert [h.token_ids for h in ours] == [h.token_ids for h in plain]
        scores = [[h.score for h in side] for side in (ours, plain)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
