"""Ties: a reference of the model's own weights, the noise of its dtype, and what is made of places where texts part."""

import numpy as np
import pytest
import torch
from conftest import BUSHY, random_prompts, tiny_base, tiny_heads, tiny_model
from torch import nn

from medusa_runtime import MedusaModel, Sampling, Typical
from medusa_runtime.acceptance.rules import GREEDY
from medusa_runtime.decode import generate
from medusa_runtime.tree import CandidateTree
from medusa_tree.validation.partings import Partings, parting, rounding_rate
from medusa_tree.validation.reference import Reference
from medusa_tree.validation.texts import unruly
from medusa_tree.validation.ties import ROWS, TIE, enough, judge


def half_model(family="llama"):
    base = tiny_base(family).bfloat16()
    return MedusaModel(base, tiny_heads(tiny_base(family)), name="half")


def judged(*args):
    return judge(*args).differences


def weights(module: nn.Module):
    return {name: (t.dtype, t.clone()) for name, t in module.state_dict().items()}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gpt_neox", "gemma2"])
def test_the_reference_is_the_same_weights_in_float32(family):
    """As a model of them alone gives it, by its own forward; the model in use stays as it is, and decodes as before."""
    model, text = half_model(family), random_prompts(3)[2]
    before, attention = weights(model), model.base.config._attn_implementation
    tokens = generate(model, [text], BUSHY, 8).tokens
    reference = Reference(model)
    assert reference.name == "float32"
    own, wide = reference.logits(text, 5)
    alone = tiny_base(family).bfloat16().float()
    with torch.no_grad():
        exact = alone(torch.tensor([text])).logits[0, -5:]
        rounded = tiny_base(family).bfloat16()(torch.tensor([text])).logits[0, -5:]
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide, exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own, rounded.float(), rtol=0.05, atol=0.1)
    assert float((own - wide).abs().max()) > 100 * float((wide - exact).abs().max())
    assert model.base.config._attn_implementation == attention
    for name, (dtype, value) in weights(model).items():
        assert dtype == before[name][0]
        assert torch.equal(value, before[name][1])
    assert generate(model, [text], BUSHY, 8).tokens == tokens


def test_a_float32_model_is_judged_in_float64():
    model = tiny_model()
    own, wide = Reference(model).logits([5, 6, 7], 2)
    assert (own.dtype, wide.dtype) == (torch.float32, torch.float64)
    assert 0 < float((own - wide).abs().max()) < 1e-4


def test_a_parting_is_judged_by_the_references_logits():
    """The two tokens, which of them it takes, and how far it is from the other, of texts made by hand."""
    model, prompts = half_model(), random_prompts(2)
    plain = generate(model, prompts, CandidateTree(), 12).tokens
    reference = Reference(model)
    _, wide = reference.logits([*prompts[1], *plain[1][:-1]], 12)
    at = int(wide.topk(2).values.diff(dim=-1)[:, 0].argmin())  # where the model is surest
    order = wide[at].argsort(descending=True).tolist()
    assert order[0] == plain[1][at]

    def with_token(token):
        return [plain[0], [*plain[1][:at], token, *plain[1][at + 1 :]]]

    for rank in (1, 20):
        (found,) = judged(reference, prompts, plain, with_token(order[rank]))
        assert (found.prompt, found.position, found.plain_token, found.tree_token) == (1, at, order[0], order[rank])
        assert found.preferred == order[0]
        assert found.gap == pytest.approx(float(wide[at, order[0]] - wide[at, order[rank]]), rel=1e-4)
        assert found.near_tie == (found.gap <= TIE * found.noise)
        assert found.to_json()["reference_prefers"] == "plain"
        assert not found.near_tie
    (found,) = judged(reference, prompts, with_token(order[19]), with_token(order[20]))
    assert found.to_json()["reference_prefers"] == "another"
    assert found.gap == pytest.approx(float(wide[at, order[0]] - wide[at, order[20]]), rel=1e-4)


def test_a_text_that_ends_where_the_other_goes_on_is_no_tie():
    model, prompts = half_model(), random_prompts(1)
    plain = generate(model, prompts, CandidateTree(), 6).tokens
    (found,) = judged(Reference(model), prompts, plain, [plain[0][:4]])
    assert (found.position, found.plain_token, found.tree_token, found.near_tie) == (4, plain[0][4], None, False)
    assert found.to_json()["gap"] is None


def test_the_noise_is_that_of_the_dtype():
    """Some 2^-9 of the logits' size in bfloat16, and 65,536 times less in float32."""
    levels = []
    for model in (half_model(), tiny_model()):
        prompts = random_prompts(4)
        plain = generate(model, prompts, CandidateTree(), 20).tokens
        other = [[*plain[0][:5], (plain[0][5] + 1) % 48], *plain[1:]]
        (found,) = judged(Reference(model), prompts, plain, other)
        levels.append(found.noise)
    assert 1e-3 < levels[0] < 0.2
    assert 1e-8 < levels[1] < 1e-4
    assert levels[0] > 1000 * levels[1]


def test_when_sampling_draws_and_temperature_count():
    """Under the draw that made the plain text, its token is the reference's choice; gaps are in scaled logits."""
    model, prompts = tiny_model(), random_prompts(3)
    rule = Sampling(0.5, top_p=0.9, seed=4)
    streams = [3, 14, 15]
    plain = generate(model, prompts, CandidateTree(), 12, rule=rule, streams=streams).tokens
    other = [[*text[:6], (text[6] + 1) % 48, *text[7:]] for text in plain]
    found = judged(Reference(model), prompts, plain, other, rule, streams)
    assert [d.preferred for d in found] == [text[6] for text in plain]
    assert not any(d.near_tie for d in found)
    wrong = judged(Reference(model), prompts, plain, other, rule, [0, 1, 2])
    assert [d.preferred for d in wrong] != [text[6] for text in plain]


def test_texts_are_taken_until_there_are_rows_enough():
    texts = [[0] * 400] * 5
    assert enough(texts) == [0, 1, 2]
    assert enough(texts, [4]) == [4, 0, 1]
    assert enough(texts, [0, 1, 2, 3]) == [0, 1, 2, 3], "those that part are all judged"
    assert sum(len(texts[i]) for i in enough(texts)) >= ROWS


def test_typical_text_is_held_to_its_rule_and_other_text_is_not_let_pass():
    model, prompts, rule = tiny_model(), random_prompts(4), Typical(0.15, 0.5)
    made = generate(model, prompts, BUSHY, 24, rule=rule)
    tokens, found = unruly(Reference(model), prompts, made.tokens, made.emitted, rule)
    assert (tokens, found) == (96, [])
    spoilt = [[*text[:10], (text[10] + 1) % 48, *text[11:]] for text in made.tokens]
    _, found = unruly(Reference(model), prompts, spoilt, made.emitted, rule)
    assert {u.prompt for u in found} == {0, 1, 2, 3}
    assert min(u.position for u in found) == 10
    one_a_step = [[1] * len(text) for text in made.tokens]
    _, found = unruly(Reference(model), prompts, made.tokens, one_a_step, rule)
    assert found, "as the first tokens of steps, those that were drafted must be the likeliest"


def test_where_texts_part():
    assert parting([1, 2], [1, 2]) is None
    assert parting([1, 2], [1, 3]) == 1
    assert parting([1, 2], [1, 2, 3]) == 2
    rates = Partings.between([[1, 2, 3], [1, 2, 3]], [[1, 2, 3], [1, 9, 3]])
    assert (rates.count, rates.tokens) == (1, 5)
    assert rates.per_thousand == 200


def test_rates_of_partings_have_exact_intervals_and_an_exact_test():
    assert Partings(0, 1000).interval == pytest.approx((0, 3.689), abs=1e-3)  # -log 0.025
    assert Partings(10, 1000).interval == pytest.approx((4.795, 18.390), abs=1e-3)  # Garwood's table
    assert Partings(0, 100).beyond(Partings(3, 100)) == 1
    assert Partings(3, 100).beyond(Partings(0, 100)) == pytest.approx((2 / 3) ** 3)
    assert Partings(8, 1000).beyond(Partings(4, 1000)) > 0.5, "twice the rate is allowed"
    assert Partings(40, 1000).beyond(Partings(4, 1000)) < 1e-3
    assert Partings(3, 100).beyond(Partings(3, 100)) > Partings(3, 50).beyond(Partings(3, 100))


def test_what_rounding_alone_could_do():
    """Against two passes drawn at random."""
    rng = np.random.default_rng(0)
    margins = rng.exponential(1.0, 200_000)
    one, other = (margins + rng.normal(0, 0.3, margins.shape) > 0 for _ in range(2))
    assert rounding_rate(torch.from_numpy(margins), 0.3) == pytest.approx((one != other).mean(), rel=0.02)
    assert Partings(9, 1000).by_rounding(0.01) > 0.5
    assert Partings(30, 1000).by_rounding(0.01) < 1e-5


def test_positions_where_two_tokens_are_near_are_where_rounding_tells():
    """The rate is of the model's own margins: high in half precision where they are small, next to nothing in float32."""
    for rule in (GREEDY, Sampling(0.8, top_p=0.9, seed=2)):
        rates = []
        for model in (half_model(), tiny_model()):
            prompts = random_prompts(4)
            plain = generate(model, prompts, CandidateTree(), 20, rule=rule).tokens
            rates.append(judge(Reference(model), prompts, plain, plain, rule).rounding)
        assert 1e-3 < rates[0] < 0.1
        assert 0 <= rates[1] < 1e-4
