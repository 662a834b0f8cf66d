"""SCST against REINFORCE written out, exact expectations, and CIDEr worked by hand."""

import math

import pytest
import torch

from tests.tasks.finetuning.tiny import images, plain_log_probs, tiny_model, tiny_tokenizer
from triptych.core.errors import ConfigError, DataError
from triptych.core.rng import seed_step
from triptych.evaluation.evaluator import evaluation_mode
from triptych.generation.sampling import Samples
from triptych.tasks.finetuning.captioning import CaptioningConfig
from triptych.tasks.finetuning.scst import SCST, CiderReward, SCSTConfig, policy_gradient_loss

CAPTIONS = {7: ["red star"], 8: ["blue circle"]}
LENGTHS = {"min_tokens": 1, "max_tokens": 3}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def _task(tokenizer, config=None, reward=None, **model):
    config = config or SCSTConfig(**LENGTHS)
    return SCST(tiny_model(tokenizer, **model), config, tokenizer, reward or CiderReward(CAPTIONS))


def _batch():
    return {"image": images(2), "image_key": torch.tensor([7, 8]), "index": torch.arange(2)}


def test_the_gradient_is_reinforces():
    """A policy of three tokens: ∇ log p(token) is one-hot minus p."""
    scores = torch.tensor([0.5, -0.2, 1.0], requires_grad=True)
    rewards, baseline = torch.tensor([[2.0, 5.0]]), torch.tensor([[1.0, 3.0]])
    drawn = torch.tensor([[0, 2]])
    log_probs = torch.log_softmax(scores, 0)[drawn]
    policy_gradient_loss(log_probs, rewards, baseline).backward()
    weights = [math.exp(value) for value in (0.5, -0.2, 1.0)]
    p = [weight / sum(weights) for weight in weights]
    gradient = [
        -((2 - 1) * ((token == 0) - p[token]) + (5 - 3) * ((token == 2) - p[token])) / 2
        for token in range(3)
    ]
    assert scores.grad.tolist() == pytest.approx(gradient, abs=1e-6)


def _every_text(tokenizer, words):
    """Return all texts of at most two tokens over some words, as samples of one image."""
    end = tokenizer.sep_id
    texts = [(word, other) for word in words for other in (end, *words)]
    token_ids = torch.tensor([texts])
    return Samples(
        token_ids, torch.ones_like(token_ids, dtype=torch.bool), token_ids[..., -1] == end
    )


@pytest.mark.parametrize("baseline", [0.0, 2.5])
def test_over_all_texts_the_gradient_is_that_of_the_expected_reward(tokenizer, baseline):
    """Σ p(w) (r(w) - b) ∇ log p(w) = ∇ Σ p(w) r(w), with all texts in place of drawn ones."""
    task = _task(tokenizer, SCSTConfig(min_tokens=1, max_tokens=2))
    words = [token for token in range(tokenizer.vocab_size) if token != tokenizer.sep_id]
    samples = _every_text(tokenizer, words)
    rewards = torch.rand(samples.ended.shape, generator=torch.Generator().manual_seed(3)) * 10
    model = task.captioning.model

    def log_probs():
        return task.log_probs(task.captioning.memory({"image": images(1)}), samples)

    probabilities = log_probs().exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-4)
    (probabilities * rewards).sum().backward()
    exact = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    share = probabilities.detach() * samples.ended.numel()  # so that the mean is an expectation
    policy_gradient_loss(log_probs(), share * (rewards - baseline), torch.zeros(1, 1)).backward()
    assert len(exact) > 20
    for name, parameter in model.named_parameters():
        if name in exact:
            torch.testing.assert_close(-parameter.grad, exact[name], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("prompt", ["", "a picture of"])
def test_log_probabilities_are_those_of_an_uncached_decoder(tokenizer, prompt):
    config = SCSTConfig(
        captioning=CaptioningConfig(prompt=prompt), num_samples=3, min_tokens=2, max_tokens=5
    )
    task = _task(tokenizer, config)
    model, end = task.captioning.model, tokenizer.sep_id
    memory = task.captioning.memory(_batch())
    torch.manual_seed(0)
    samples = task.captioning.text_generator.draw(
        memory, config.sampling(), torch.Generator().manual_seed(0)
    )
    found = task.log_probs(memory, samples)
    start = [tokenizer.cls_id, *tokenizer.encode([prompt], max_tokens=9, add_sep=False)[0][1:]]
    for image, texts in enumerate(samples.texts()):
        for number, text in enumerate(texts):
            drawn = [*text, end] if samples.ended[image, number] else list(text)
            one = memory.select(torch.tensor([image]))
            total = sum(plain_log_probs(model, one, start, drawn))
            for position in range(2):  # where the end is banned its share goes to the others
                read = [*start, *drawn[:position]]
                total -= math.log1p(-math.exp(plain_log_probs(model, one, read, [end])[0]))
            assert found[image, number].item() == pytest.approx(total, abs=1e-4)


def test_dropout_is_off_and_comes_back(tokenizer, monkeypatch):
    task = _task(tokenizer, dropout=0.5)
    task.modules.train()
    seen = {}

    def log_probs(memory, samples):
        seen["found"] = SCST.log_probs(task, memory, samples)
        seen["samples"] = samples
        return seen["found"]

    monkeypatch.setattr(task, "log_probs", log_probs)
    task.losses(_batch(), active=frozenset({"scst"}))
    assert all(module.training for module in task.modules.modules())
    with evaluation_mode(task.modules):
        expected = SCST.log_probs(task, task.captioning.memory(_batch()), seen["samples"])
    torch.testing.assert_close(seen["found"], expected)
    rough = SCST.log_probs(task, task.captioning.memory(_batch()), seen["samples"])
    assert (rough - expected).abs().max() > 0.1


def test_the_mean_leaves_the_sample_itself_out(tokenizer):
    found = _task(tokenizer)._baseline([7], None, torch.tensor([[1.0, 2.0, 6.0]]))
    assert found.tolist() == [[4.0, 3.5, 1.5]]


def test_the_greedy_baseline_is_the_reward_of_the_likeliest_words(tokenizer):
    task = _task(tokenizer, SCSTConfig(baseline="greedy", num_samples=1, **LENGTHS))
    asked = []

    def reward(key, texts, ended):
        asked.append((key, texts, ended))
        return [float(key)]

    task.reward = reward
    memory = task.captioning.memory(_batch())
    assert task._baseline([7, 8], memory, torch.zeros(2, 1)).tolist() == [[7.0], [8.0]]
    model = task.captioning.model
    for image, (_, (text,), (ended,)) in enumerate(asked):
        said = []
        for position in range(3):
            one = memory.select(torch.tensor([image]))
            words = range(tokenizer.vocab_size)
            scores = [
                plain_log_probs(model, one, [tokenizer.cls_id, *said], [word])[0] for word in words
            ]
            if position == 0:
                scores[tokenizer.sep_id] = -math.inf
            said.append(max(words, key=scores.__getitem__))
            if said[-1] == tokenizer.sep_id:
                break
        assert text == tokenizer.decode(said)
        assert ended == (said[-1] == tokenizer.sep_id)


def test_cider_with_the_end_as_a_word():
    """Frequencies over two images: "a" and the end are in both and weigh log(2 / 2) = 0.

    "a dog" of image 0, ended, is its reference: n = 1, 2, 3 give 1, and n = 4 has no n-gram. Cut
    off, it lacks "dog <eos>", one of two bigrams, and all trigrams; it has 1 bigram less, which
    costs exp(-1 / (2 · 36)).
    """
    reward = CiderReward({0: ["A dog."], 1: ["a cat"]})
    whole, cut = reward(0, ["a dog", "a dog"], [True, False])
    assert whole == pytest.approx(10 * 3 / 4)
    assert cut == pytest.approx(10 * (1 + 1 / math.sqrt(2)) / 4 * math.exp(-1 / 72))
    blind = CiderReward({0: ["a dog"], 1: ["a cat"]}, reward_end=False)
    assert blind(0, ["a dog", "a dog"], [True, False]) == pytest.approx([5, 5])


def test_rewards_belong_to_their_images(tokenizer):
    asked = []

    def reward(key, texts, ended):
        asked.append((key, list(texts), list(ended)))
        return [key + number for number in range(len(texts))]

    task = _task(tokenizer, SCSTConfig(num_samples=2, **LENGTHS), reward)
    end, words = tokenizer.sep_id, tokenizer.encode(["red star blue"], max_tokens=9)[0][1:4]
    token_ids = torch.tensor([[[words[0], end], words[:2]], [[words[1], end], [words[2], end]]])
    mask = torch.ones_like(token_ids, dtype=torch.bool)
    samples = Samples(token_ids, mask, token_ids[..., -1] == end)
    found = task._rewards([8, 7], samples)
    assert found.tolist() == [[8, 9], [7, 8]]
    assert asked == [
        (8, ["red", "red star"], [True, False]),
        (7, ["star", "blue"], [True, True]),
    ]


def test_loss_and_log_are_made_of_the_parts(tokenizer, monkeypatch):
    task = _task(tokenizer)
    rewards = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 0.0, 5.0, 0.0, 0.0]])
    monkeypatch.setattr(task, "_rewards", lambda keys, samples: rewards)
    monkeypatch.setattr(task, "log_probs", lambda memory, samples: -rewards.exp())
    found = task.losses(_batch(), active=frozenset({"scst"}))
    total = 0.0
    for row in rewards.tolist():
        for place, own in enumerate(row):
            others = sum(row[:place] + row[place + 1 :]) / 4
            total -= (own - others) * -math.exp(own)
    assert found["scst"].item() == pytest.approx(total / 10, rel=1e-5)
    assert found["reward"].item() == pytest.approx(2.0)
    assert found["baseline"].item() == pytest.approx(2.0)


@pytest.mark.parametrize("baseline", ["mean", "greedy"])
def test_the_reward_rises(tokenizer, baseline):
    """Each image wants another word: the best reward is 10, any word's share at first 10 / 66."""
    wanted = {7: "red", 8: "blue"}

    def reward(key, texts, ended):
        return [10 * text.split().count(wanted[key]) / 3 for text in texts]

    task = _task(tokenizer, SCSTConfig(baseline=baseline, num_samples=16, **LENGTHS), reward)
    with torch.no_grad():
        for parameter in task.captioning.model.decoder.head.parameters():
            parameter.mul_(0.3)  # all words are nearly as likely
    seed_step(0, 0, 0)
    optimizer = torch.optim.Adam(task.modules.parameters(), lr=0.02)
    rewards = []
    for _ in range(40):
        losses = task.losses(_batch(), active=frozenset({"scst"}))
        optimizer.zero_grad()
        losses["scst"].backward()
        optimizer.step()
        rewards.append(losses["reward"].item())
    assert sum(rewards[:5]) / 5 < 0.5
    assert sum(rewards[-5:]) / 5 > 2


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match=r"num_samples = 1: must be at least 2 with baseline"):
        SCSTConfig(num_samples=1)
    assert SCSTConfig(num_samples=1, baseline="greedy").sampling().num_samples == 1
    with pytest.raises(ConfigError, match="min_tokens = 20"):
        SCSTConfig(min_tokens=20)
    with pytest.raises(DataError, match=r"captions of two images or more, found 1"):
        CiderReward({1: ["a b"]})
    with pytest.raises(DataError, match="image with key 3 has no caption"):
        CiderReward(CAPTIONS)(3, ["a"], [True])


def test_samples_draw_from_the_whole_distribution():
    sampling = SCSTConfig(num_samples=4).sampling()
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (1.0, 0, 1.0)
    assert sampling.num_samples == 4
