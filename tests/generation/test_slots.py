"""Texts that grow in slots, which other images take, against one image at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.generation.test_beam import END, START, TableStep
from triptych.generation.decoding import CachedDecoder, SlotDecoder, slots_for
from triptych.generation.sampling import SamplingConfig, sample_texts
from triptych.generation.search import BeamConfig, beam_search, greedy_search
from triptych.nn.decoder import TextDecoder
from triptych.nn.encoder import TextConfig
from triptych.nn.init import init_weights

WIDTH, VOCABULARY = 64, 60


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(3)
    sizes = TextConfig(vocab_size=VOCABULARY, embed_dim=WIDTH, num_heads=2, max_positions=40)
    decoder = TextDecoder(sizes, depth=2).eval()
    init_weights(decoder, 0.3)
    decoder.head.bias.data[END] = 1.0  # texts end, at various lengths
    return decoder


def _memories(decoder, sizes, seed, num_states=9):
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for size in sizes:
        mask = torch.rand(size, num_states, generator=generator) < 0.8
        mask[:, 0] = True
        states = torch.randn(size, num_states, WIDTH, generator=generator)
        parts.append(decoder.project_memory(states, mask))
    return parts


def _one_by_one(memories):
    return [memory.select(torch.tensor([row])) for memory in memories for row in
            range(memory.batch_size)]  # fmt: skip


searches = st.fixed_dictionaries(
    {
        "sizes": st.lists(st.integers(1, 5), min_size=1, max_size=3),
        "slots": st.integers(1, 6),
        "num_beams": st.integers(1, 5),
        "max_tokens": st.integers(3, 14),
        "prompt": st.integers(0, 3),
        "seed": st.integers(0, 999),
        "stop": st.sampled_from(["none_better", "top_ended"]),
    }
)


@settings(max_examples=25, deadline=None)
@given(case=searches)
@torch.no_grad()
def test_refilled_beams_say_what_one_image_alone_says(decoder, case):
    memories = _memories(decoder, case["sizes"], case["seed"])
    config = BeamConfig(
        num_beams=case["num_beams"], max_tokens=case["max_tokens"], stop=case["stop"]
    )
    prompt = torch.arange(5, 5 + case["prompt"])[None]
    options = {"start_id": START, "end_id": END, "config": config, "prompt": prompt}
    together = beam_search(SlotDecoder(decoder, iter(memories), case["slots"]), **options)
    assert len(together) == sum(case["sizes"])
    for memory, found in zip(_one_by_one(memories), together, strict=True):
        alone = beam_search(SlotDecoder(decoder, [memory], 1), **options)[0]
        assert found == alone  # scores too: bitwise


@settings(max_examples=15, deadline=None)
@given(case=searches)
@torch.no_grad()
def test_refilled_lines_say_what_one_image_alone_says(decoder, case):
    memories, size = _memories(decoder, case["sizes"], case["seed"]), case["max_tokens"]
    prompt = torch.arange(5, 5 + case["prompt"])[None]
    ids = {"start_id": START, "end_id": END, "prompt": prompt}
    generator = torch.Generator().manual_seed(case["seed"])
    shape = (sum(case["sizes"]), case["num_beams"], size)
    numbers = torch.rand(shape, generator=generator)
    config = SamplingConfig(num_samples=shape[1], max_tokens=size, top_p=0.95)

    def slots(parts):
        return SlotDecoder(decoder, parts, case["slots"])

    greedy = greedy_search(slots(memories), max_tokens=size, **ids)
    drawn = sample_texts(slots(memories), config=config, numbers=numbers, **ids)
    assert drawn.token_ids.shape[2] == int(drawn.mask.sum(dim=2).max())
    for row, memory in enumerate(_one_by_one(memories)):
        assert greedy[row] == greedy_search(slots([memory]), max_tokens=size, **ids)[0]
        alone = sample_texts(slots([memory]), config=config, numbers=numbers[row, None], **ids)
        assert drawn.texts()[row] == alone.texts()[0]


def test_waiting_images_take_the_places_of_those_that_are_done():
    def step(waiting):
        made = TableStep(12 - waiting, 6, seed=5)
        made.waiting, made.images_so_far = waiting, 12 - waiting
        return made

    config = BeamConfig(num_beams=3, max_tokens=8)
    expected = beam_search(step(0), start_id=START, end_id=END, config=config)
    assert len({len(found[0].token_ids) for found in expected}) > 1
    for waiting in (1, 7, 11):
        found = beam_search(step(waiting), start_id=START, end_id=END, config=config)
        assert found == expected


@torch.no_grad()
def test_memories_are_asked_for_when_a_place_is_free(decoder):
    asked = []

    def stream():
        for number, memory in enumerate(_memories(decoder, [2] * 4, 0)):
            asked.append((number, step.decoded if asked else 0))
            yield memory

    class Counting(SlotDecoder):
        decoded = 0

        def logits(self, token_ids):
            self.decoded += 1
            assert token_ids.shape[0] <= 2
            return super().logits(token_ids)

    step = Counting.__new__(Counting)
    step.__init__(decoder, stream(), 2)
    greedy_search(step, start_id=START, end_id=-1, max_tokens=5)
    assert asked == [(0, 0), (1, 5), (2, 10), (3, 15)]


@torch.no_grad()
def test_the_callers_memory_stays_as_it_is(decoder):
    memory = _memories(decoder, [6], 1)[0]
    before = [x.clone() for x in memory.tensors()]
    step = SlotDecoder(decoder, [memory], 2)
    greedy_search(step, start_id=START, end_id=END, max_tokens=9)
    greedy_search(CachedDecoder(decoder, memory), start_id=START, end_id=END, max_tokens=9)
    assert all(torch.equal(x, y) for x, y in zip(memory.tensors(), before, strict=True))


def test_slots_hold_so_many_rows():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [slots_for(rows, cpu) for rows in (1, 5, 10, 100)] == [32, 12, 6, 1]
    assert [slots_for(rows, gpu) for rows in (1, 5, 100)] == [32, 32, 5]
