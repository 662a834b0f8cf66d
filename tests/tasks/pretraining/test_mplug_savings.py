"""What the one-pass task saves, counted: projections of images and rows of the vocabulary."""

import pytest
import torch

from benchmarks.speed.mplug_plain import plain_losses
from tests.tasks.pretraining.test_mplug import BATCH, make_batch
from tests.tasks.pretraining.test_mplug_plain import make_task
from triptych.models.mplug.model import MPLUG
from triptych.nn.attention import CrossAttention
from triptych.nn.decoder import TextDecoder
from triptych.tasks.pretraining.mplug import OBJECTIVES

NUM_TEXTS = 5 * BATCH  # pairs, their negatives of both kinds, masked texts, prefixes
ALL = tuple(range(6))

pytestmark = pytest.mark.usefixtures("packed_at_any_width")


@pytest.fixture
def prepared(monkeypatch):
    """Return what is told of each memory: the fusion layer that asked, and the memory's rows."""
    calls, real = [], CrossAttention.prepare

    def prepare(self, memory, num_queries):
        calls.append((self, len(memory)))
        return real(self, memory, num_queries)

    monkeypatch.setattr(CrossAttention, "prepare", prepare)
    return calls


def fusion_calls(model, calls):
    """Return (layer, rows) of the calls of a model's fusion network, in order."""
    layers = {
        id(block.cross_attention): layer
        for layer, block in enumerate(model.fusion.blocks)
        if block.cross_attention is not None
    }
    return [(layers[id(who)], rows) for who, rows in calls if id(who) in layers]


@pytest.mark.parametrize("connected", [(), (3,), (2, 5), (0, 4), ALL])
def test_an_image_is_prepared_once_a_layer_for_all_its_texts(prepared, connected):
    """Until the first connected layer, whose output differs from text to text."""
    task = make_task(distill=False, connected_layers=connected)
    task.losses(make_batch(image_size=task.model.image_size))
    first = min(connected, default=6)
    expected = [
        (layer, BATCH if layer < first else NUM_TEXTS) for layer in ALL if layer not in connected
    ]
    assert fusion_calls(task.model, prepared) == expected


def test_asymmetric_networks_prepare_the_batch_alone(prepared):
    task = make_task(distill=False, fusion="asymmetric_co_attention")
    task.losses(make_batch(image_size=task.model.image_size))
    assert fusion_calls(task.model, prepared) == [(layer, BATCH) for layer in ALL]


def test_the_teacher_prepares_an_image_once_too(prepared):
    task = make_task(distill=True)  # layer 3 is connected
    task.losses(make_batch(image_size=task.model.image_size))
    teacher = task.modules["teacher"].module
    taught = 2 * BATCH  # masked texts and prefixes
    expected = [(layer, BATCH if layer < 3 else taught) for layer in ALL if layer != 3]
    assert fusion_calls(teacher, prepared) == expected


def test_the_plain_way_prepares_a_row_a_text(prepared):
    """Four passes: pairs, negatives, masked texts, prefixes. So the spy does see a difference."""
    task = make_task(distill=False, connected_layers=())
    plain_losses(task, make_batch(image_size=task.model.image_size))
    rows = [BATCH, 2 * BATCH, BATCH, BATCH]
    expected = [(layer, count) for count in rows for layer in ALL]
    assert fusion_calls(task.model, prepared) == expected


@pytest.fixture
def scored(monkeypatch):
    """Return (owner, rows) of each call of a vocabulary head."""
    calls = []
    for kind in (MPLUG, TextDecoder):

        def word_logits(self, states, real=kind.word_logits):
            calls.append((self, tuple(states.shape[:-1])))
            return real(self, states)

        monkeypatch.setattr(kind, "word_logits", word_logits)
    return calls


@pytest.mark.parametrize("distill", [False, True])
def test_the_vocabulary_is_scored_where_there_is_a_label_and_nowhere_else(scored, distill):
    task = make_task(distill=distill)
    batch = make_batch(image_size=task.model.image_size)
    masked = int((batch["mlm_labels"] != -100).sum())
    targets = int(batch["target_mask"].sum()) - BATCH  # all but [CLS]
    assert (masked, targets) == (BATCH, 14)  # one masked word each; 1 to 4 words and [SEP]
    task.losses(batch)
    expected = [(task.model, (masked,)), (task.model.decoder, (targets,))]
    if distill:
        teacher = task.modules["teacher"].module
        expected.insert(1, (teacher, (masked,)))
        expected.append((teacher.decoder, (targets,)))
    assert [(id(who), rows) for who, rows in scored] == [(id(who), rows) for who, rows in expected]


def test_the_plain_way_scores_every_place(scored):
    task = make_task(distill=False)
    batch = make_batch(image_size=task.model.image_size)
    plain_losses(task, batch)
    caption, target = batch["mlm_labels"].numel(), batch["target_token_ids"][:, 1:].numel()
    assert [torch.Size(shape).numel() for _, shape in scored] == [caption, target]


def test_without_a_label_the_vocabulary_is_not_scored_for_it(scored):
    task = make_task(distill=True)
    batch = make_batch(image_size=task.model.image_size)
    task.losses(batch, active=OBJECTIVES - {"mlm", "prefix_lm"})
    assert scored == []
