"""The one-pass task against one plain pass an objective, written with the model's own parts."""

import pytest
import torch
from torch.nn import functional as F

from tests.models.test_families import shrunken
from triptych.core.errors import ConfigError
from triptych.models.families import create_model
from triptych.models.mplug.model import MPLUG
from triptych.objectives.contrastive import positive_pairs, similarity
from triptych.tasks.pretraining import mplug
from triptych.tasks.pretraining.mplug import OBJECTIVES, MPLUGPretraining, MPLUGPretrainingConfig

CLS, SEP, MASK = 2, 3, 4
BATCH = 4


def make_batch(size=BATCH, image_size=32, vocab_size=30):
    """Return captions of 2 to 5 words, some masked, split after their first word."""
    generator = torch.Generator().manual_seed(5)
    words = [
        torch.randint(5, vocab_size, (2 + row % 4,), generator=generator).tolist()
        for row in range(size)
    ]
    captions = [[CLS, *w, SEP] for w in words]
    masked = [[CLS, MASK, *w[1:], SEP] for w in words]
    labels = [[-100, w[0], *[-100] * len(w)] for w in words]
    token_ids, text_mask = _pad(captions)
    prefix_ids, prefix_mask = _pad([[CLS, *w[:1]] for w in words])
    target_ids, target_mask = _pad([[CLS, *w[1:], SEP] for w in words])
    return {
        "image": torch.randn(size, 3, image_size, image_size, generator=generator),
        "token_ids": token_ids,
        "text_mask": text_mask,
        "mlm_token_ids": _pad(masked)[0],
        "mlm_labels": _pad(labels, -100)[0],
        "prefix_token_ids": prefix_ids,
        "prefix_mask": prefix_mask,
        "target_token_ids": target_ids,
        "target_mask": target_mask,
        "image_key": torch.tensor([1, 1, 2, 3])[:size],
        "caption_key": torch.tensor([10, 11, 12, 10])[:size],
        "index": torch.arange(size),
    }


def _pad(rows, value=0):
    width = max(map(len, rows))
    ids = torch.tensor([row + [value] * (width - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return ids, mask


def make_task(**changes):
    torch.manual_seed(0)
    settings = {"queue_size": 7, "momentum": 0.9, "alpha": 0.4} | changes
    task = MPLUGPretraining(MPLUG(shrunken("mplug_tiny")), MPLUGPretrainingConfig(**settings))
    task.modules.train()
    if "teacher" in task.modules:
        with torch.no_grad():
            for parameter in task.modules["teacher"].parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    if "queue" in task.modules:
        embeddings = F.normalize(torch.randn(2, 3, 8), dim=-1)
        keys = torch.tensor([[1, 90], [91, 12], [92, 93]])  # two share a key with the batch
        task.modules["queue"].push(embeddings[0], embeddings[1], keys)
    return task


@pytest.fixture
def batch():
    return make_batch()


@pytest.fixture
def likeliest_negative(monkeypatch):
    """Replace the random draw by the likeliest negative."""

    def draw(queries, candidates, temperature, query_keys, candidate_keys):
        positives = positive_pairs(query_keys, candidate_keys)
        logits = similarity(queries, candidates, temperature).masked_fill(positives, -torch.inf)
        return logits.argmax(dim=1), ~positives.all(dim=1)

    monkeypatch.setattr(mplug, "sample_hard_negatives", draw)


def _is_positive(batch, row, image_key, caption_key):
    return bool(batch["image_key"][row] == image_key or batch["caption_key"][row] == caption_key)


def _embeddings(model, batch):
    image = model.embed_image(model.encode_image(batch["image"]))
    text = model.embed_text(model.encode_text(batch["token_ids"], batch["text_mask"]))
    return image, text


def plain_itc(task, batch):
    """ALBEF's equations, row by row."""
    image, text = _embeddings(task.model, batch)
    keys = list(zip(batch["image_key"].tolist(), batch["caption_key"].tolist(), strict=True))
    if "teacher" in task.modules:
        with torch.no_grad():
            image_m, text_m = _embeddings(task.modules["teacher"].module, batch)
    else:
        image_m, text_m = image, text
    own_image_m, own_text_m = image_m, text_m
    if "queue" in task.modules:
        old_image, old_text, old_keys = task.modules["queue"].features()
        image_m, text_m = torch.cat([image_m, old_image]), torch.cat([text_m, old_text])
        keys += [tuple(pair) for pair in old_keys.tolist()]
    tau, losses = task.temperature, []
    for row in range(len(image)):
        positive = torch.tensor([float(_is_positive(batch, row, *pair)) for pair in keys])
        for query, query_m, candidates in (
            (image[row], own_image_m[row], text_m),
            (text[row], own_text_m[row], image_m),
        ):
            target = positive / positive.sum()
            if task.alpha() > 0:
                soft = torch.softmax((candidates @ query_m / tau).detach(), 0)
                target = task.alpha() * soft + (1 - task.alpha()) * target
            losses.append(-(torch.log_softmax(candidates @ query / tau, 0) * target).sum())
    return torch.stack(losses).mean()


def plain_itm(task, batch):
    """One fusion pass a pair."""
    model, logits, labels = task.model, [], []
    image, text = _embeddings(model, batch)
    sims = (image @ text.T).detach()

    def score(image_row, text_row):
        states = model.encode_image(batch["image"][image_row][None])
        words = model.encode_text(
            batch["token_ids"][text_row][None], batch["text_mask"][text_row][None]
        )
        return model.match_logits(model.fuse(states, words))[0]

    keys = list(zip(batch["image_key"].tolist(), batch["caption_key"].tolist(), strict=True))
    for row in range(len(keys)):
        logits.append(score(row, row))
        labels.append(1)
        allowed = [c for c in range(len(keys)) if not _is_positive(batch, row, *keys[c])]
        if allowed:
            logits.append(score(row, max(allowed, key=lambda c: float(sims[row, c]))))
            logits.append(score(max(allowed, key=lambda c: float(sims[c, row])), row))
            labels += [0, 0]
    return F.cross_entropy(torch.stack(logits), torch.tensor(labels))


def _mlm_logits(model, batch):
    text = model.encode_text(batch["mlm_token_ids"], batch["text_mask"])
    return model.word_logits(model.fuse(model.encode_image(batch["image"]), text).text_tokens)


def _prefix_logits(model, batch):
    image = model.encode_image(batch["image"])
    prefix = model.encode_text(batch["prefix_token_ids"], batch["prefix_mask"])
    memory = model.decoder_memory(image, model.fuse(image, prefix))
    return model.decoder.word_logits(model.decode(batch["target_token_ids"][:, :-1], memory))


def _plain_words(task, logits_of, batch, labels, *, distill):
    loss = F.cross_entropy(logits_of(task.model, batch).transpose(1, 2), labels)
    if not distill:
        return loss
    read = labels != -100
    with torch.no_grad():
        targets = torch.softmax(logits_of(task.modules["teacher"].module, batch)[read], -1)
    distilled = F.cross_entropy(logits_of(task.model, batch)[read], targets)
    return (1 - task.alpha()) * loss + task.alpha() * distilled


def plain_losses(task, batch):
    target = batch["target_token_ids"].masked_fill(~batch["target_mask"], -100)[:, 1:]
    config = task.config
    return {
        "itc": plain_itc(task, batch),
        "itm": plain_itm(task, batch),
        "mlm": _plain_words(
            task, _mlm_logits, batch, batch["mlm_labels"], distill=config.distill_mlm
        ),
        "prefix_lm": _plain_words(
            task, _prefix_logits, batch, target, distill=config.distill_prefix_lm
        ),
    }


SETTINGS = {
    "teacher and queue": {},
    "queue alone": {"momentum": 0.0},
    "neither": {"momentum": 0.0, "queue_size": 0},
    "distillation": {"distill_mlm": True, "distill_prefix_lm": True},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_one_pass_equals_one_pass_an_objective(settings, batch, likeliest_negative):
    task = make_task(**settings)
    losses = task.losses(batch, active=OBJECTIVES)
    expected = plain_losses(task, batch)
    assert list(losses) == ["itc", "itm", "mlm", "prefix_lm"]
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], atol=1e-5, rtol=1e-5, msg=name)
    trained = {n: p for n, p in task.modules.named_parameters() if p.requires_grad}
    mine = torch.autograd.grad(sum(losses.values()), trained.values())
    plain = torch.autograd.grad(sum(expected.values()), trained.values())
    for name, one, other in zip(trained, mine, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_each_objective_alone_is_the_same(name, batch, likeliest_negative):
    task = make_task()
    every, alone = task.losses(batch), task.losses(batch, active=frozenset({name}))
    assert list(alone) == [name]
    torch.testing.assert_close(alone[name], every[name], atol=1e-5, rtol=1e-5)


def test_padding_changes_no_loss(batch, likeliest_negative):
    task = make_task(distill_mlm=True, distill_prefix_lm=True)
    wide = dict(batch)
    for name, mask, extra in (
        ("token_ids", "text_mask", 3),
        ("mlm_token_ids", "text_mask", 3),
        ("prefix_token_ids", "prefix_mask", 6),
        ("target_token_ids", "target_mask", 2),
    ):
        noisy = batch[name].masked_fill(~batch[mask], 9)
        wide[name] = F.pad(noisy, (0, extra), value=8)
        wide[mask] = F.pad(batch[mask], (0, extra))
    wide["mlm_labels"] = F.pad(batch["mlm_labels"], (0, 3), value=-100)
    torch.testing.assert_close(task.losses(wide), task.losses(batch), atol=1e-5, rtol=1e-5)


def test_order_of_the_batch_changes_no_loss(batch, likeliest_negative):
    task, order = make_task(), torch.tensor([2, 0, 3, 1])
    shuffled = {name: tensor[order] for name, tensor in batch.items()}
    torch.testing.assert_close(task.losses(shuffled), task.losses(batch), atol=1e-5, rtol=1e-5)


def test_every_parameter_of_mplug_tiny_learns():
    torch.manual_seed(0)
    model = create_model("mplug_tiny", image_size=32, vocab_size=30)
    task = MPLUGPretraining(model, MPLUGPretrainingConfig(queue_size=8))
    sum(task.losses(make_batch()).values()).backward()
    for name, parameter in task.modules.named_parameters():
        if name.startswith("teacher."):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert bool(parameter.grad.any()), name
            assert bool(parameter.grad.isfinite().all()), name


def _state(task):
    return {name: tensor.clone() for name, tensor in task.modules.state_dict().items()}


def test_nothing_but_gradients_moves_before_after_step(batch):
    task = make_task()
    before = _state(task)
    for _ in range(2):
        sum(task.losses(batch).values()).backward()
    between = _state(task)
    assert all(torch.equal(before[name], between[name]) for name in before)
    with torch.no_grad():
        task.model.itm_head.bias.add_(1.0)
        task.temperature.fill_(3.0)
    task.after_step(1)
    after = _state(task)
    torch.testing.assert_close(
        after["teacher.module.itm_head.bias"],
        before["teacher.module.itm_head.bias"] * 0.9 + 0.1 * after["model.itm_head.bias"],
    )
    assert after["state.temperature"] == 0.5
    assert after["queue.state"].tolist() == [(3 + 2 * BATCH) % 7, 7]


def test_queue_receives_the_teachers_embeddings_with_their_keys(batch):
    task = make_task()
    with torch.no_grad():
        image_m, text_m = _embeddings(task.modules["teacher"].module, batch)
    task.losses(batch)
    task.after_step(1)
    image, text, keys = task.modules["queue"].features()
    torch.testing.assert_close(image[3:7], image_m)
    torch.testing.assert_close(text[3:7], text_m)
    assert keys[3:7].tolist() == [[1, 10], [1, 11], [2, 12], [3, 10]]
    task.after_step(2)
    assert task.modules["queue"].state.tolist() == [0, 7]


def test_alpha_grows_over_its_ramp_and_is_restored():
    task = make_task(alpha_ramp_steps=4)
    values = []
    for step in range(1, 7):
        values.append(task.alpha())
        task.after_step(step)
    assert values == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.4])
    other = make_task(alpha_ramp_steps=4)
    other.load_extra_state({"step": 2})
    assert other.alpha() == pytest.approx(0.2)
    assert make_task(momentum=0.0).alpha() == 0.0


def test_one_pair_has_no_negative():
    task, batch = make_task(), make_batch(size=1)
    losses = task.losses(batch)
    torch.testing.assert_close(losses["itm"], plain_itm(task, batch))
    assert all(bool(loss.isfinite()) for loss in losses.values())


def test_no_draw_ever_pairs_an_image_with_its_own_caption(batch, monkeypatch):
    task, drawn = make_task(), []
    real = mplug.sample_hard_negatives

    def spy(*arguments):
        columns, has_negative = real(*arguments)
        drawn.append(columns.tolist())
        return columns, has_negative

    monkeypatch.setattr(mplug, "sample_hard_negatives", spy)
    for _ in range(20):
        task.losses(batch, active=frozenset({"itm"}))
    keys = list(zip(batch["image_key"].tolist(), batch["caption_key"].tolist(), strict=True))
    assert len(drawn) == 40
    for columns in drawn:
        for row, column in enumerate(columns):
            assert not _is_positive(batch, row, *keys[column])


def test_predictions_are_the_embeddings_of_both_sides(batch):
    task = make_task()
    found = task.predict(batch)
    image, text = _embeddings(task.model, batch)
    torch.testing.assert_close(found.embeddings["image"], image)
    torch.testing.assert_close(found.embeddings["text"], text)
    assert list(found.index) == [0, 1, 2, 3]


def test_a_batch_holds_exactly_the_keys_that_are_read(batch):
    assert set(batch) == MPLUGPretraining.batch_keys


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("momentum", 1.0),
        ("alpha", 1.5),
        ("queue_size", -1),
        ("temperature", 0.9),
    ],
)
def test_impossible_settings_name_the_field(field, value):
    with pytest.raises(ConfigError, match=field):
        MPLUGPretrainingConfig(**{field: value})


def test_distillation_needs_a_teacher():
    with pytest.raises(ConfigError, match="distill_mlm"):
        MPLUGPretrainingConfig(momentum=0.0, distill_mlm=True)
