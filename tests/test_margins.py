"""Margins: 0 or more where the rule takes a token, and never further below than rounding can explain."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medusa_runtime.acceptance.accept import choose, log_probabilities, threshold, warpers
from medusa_runtime.acceptance.rules import Greedy, Sampling, Typical
from medusa_runtime.buffers import TreeBuffers
from medusa_runtime.tree import CandidateTree
from medusa_tree.validation.margins import Weighed, cut_margins, drafted_margins

PLACE, STREAM = 17, 5
VOCAB = st.integers(2, 40)


@st.composite
def sampling(draw):
    return Sampling(
        draw(st.sampled_from([0.3, 1.0, 2.0])), draw(st.sampled_from([None, 1, 3, 100])), draw(st.sampled_from([1.0, 0.9, 0.5])),
        draw(st.sampled_from([0.0, 0.1])), draw(st.integers(0, 99)),
    )  # fmt: skip


def random_logits(vocab, seed, spread=2.0):
    return spread * torch.randn(vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chosen(rule, logits):
    """What the runtime takes."""
    root = TreeBuffers.of(CandidateTree(), torch.device("cpu"))
    return int(choose(rule, logits.float()[None, None], root, torch.tensor([PLACE]), torch.tensor([STREAM])))


@given(st.one_of(st.just(Greedy()), sampling()), VOCAB, st.integers(0, 10_000))
def test_the_runtimes_choice_has_a_margin_and_no_other_token(rule, vocab, seed):
    logits = random_logits(vocab, seed).float()  # as the runtime reads them
    weighed = Weighed.by(rule, logits, PLACE, STREAM)
    token = chosen(rule, logits)
    assert weighed.choice == token
    for other in range(vocab):
        assert (weighed.margin(other)[0] >= 0) == (other == token)


@given(sampling(), VOCAB, st.integers(0, 10_000))
def test_what_is_inside_is_what_transformers_keeps(rule, vocab, seed):
    z = random_logits(vocab, seed)
    kept = warpers(rule)(None, z[None])[0].isfinite()
    assert torch.equal(cut_margins(rule, z / rule.temperature) >= 0, kept)


@given(
    st.one_of(st.just(Greedy()), sampling()), VOCAB, st.integers(0, 10_000), st.sampled_from([0.01, 0.3, 2.0]), st.booleans()
)  # fmt: skip
def test_what_a_disturbed_pass_takes_is_no_further_below_than_the_disturbance(rule, vocab, seed, noise, extreme):
    """The promise that ties are judged by: logits up to noise / 2 off can only bring a token to the top whose margin is -noise."""
    logits = random_logits(vocab, seed, spread=1.0)
    off = torch.rand(vocab, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64) - 0.5
    disturbed = logits + noise * (off.sign() / 2 if extreme else off)
    margin, _ = Weighed.by(rule, logits, PLACE, STREAM).margin(Weighed.by(rule, disturbed, PLACE, STREAM).choice)
    assert margin >= -noise / (getattr(rule, "temperature", 0) or 1) - 1e-9


@pytest.mark.parametrize(
    ("rule", "token", "margin"),
    [
        (Sampling(top_k=2), 2, -1.0),  # the third: a whole logit behind the second
        (Sampling(top_p=0.6), 1, -0.3),  # 0.665 stands before it, where 0.6 may: a step in log-odds
        (Sampling(min_p=0.2), 2, -0.4),  # log 0.2 = -1.61, and it is 2 behind
    ],
)
def test_a_cut_has_a_distance(rule, token, margin):
    logits = torch.tensor([3.0, 2.0, 1.0, -9.0], dtype=torch.float64)
    assert float(cut_margins(rule, logits)[token]) == pytest.approx(margin, abs=0.1)
    lone = torch.full((4,), -50.0, dtype=torch.float64)
    lone[token] = 50.0  # the draw is for it, so that nothing but the cut is against it
    value, cut = Weighed(logits + lone, cut_margins(rule, logits)).margin(token)
    assert cut
    assert value == pytest.approx(margin, abs=0.1)


@given(st.integers(0, 10_000), st.sampled_from([0.5, 1.0]))
def test_a_drafted_token_has_a_margin_where_it_stands(seed, temperature):
    rule = Typical(0.09, 0.3, temperature)
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 2, (6, 20)))
    log_p = log_probabilities(rule, logits)
    stands = log_p > threshold(rule, log_p)[:, None]
    for token in range(20):
        margins = drafted_margins(rule, logits, torch.full((6,), token))
        near = margins.abs() < 1e-5  # the runtime's are float32
        assert torch.equal((margins > 0) | near, stands[:, token] | near)
