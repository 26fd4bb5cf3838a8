"""One model, several users: requests from threads, and copies of the model."""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch
from conftest import BUSHY, random_prompts, tiny_model

from medusa_runtime import stream


@pytest.mark.parametrize("fixed", [False, True])
def test_requests_from_several_threads_each_get_their_own_text(fixed, monkeypatch):
    """Of different batches and lengths, so that their steps fall between one another's; one reader gives up on the way."""
    model = tiny_model()
    if fixed:  # as where steps are captured: the workspace goes from one request to the next
        monkeypatch.setattr(type(model), "fixed", property(lambda self: True))
    requests = [random_prompts(1 + i % 3, seed=i) for i in range(12)]
    want = [model.generate(prompts, tree=BUSHY, max_new_tokens=24).tokens for prompts in requests]
    next(stream(model, requests[0], BUSHY, 24))

    def serve(prompts):
        return model.generate(prompts, tree=BUSHY, max_new_tokens=24).tokens

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(serve, requests)) == want


def test_a_copy_decodes_by_itself():
    """It shares neither weights nor what a pass leaves behind, and takes turns of its own."""
    model, prompts = tiny_model(), random_prompts(2)
    want = model.generate(prompts, tree=BUSHY, max_new_tokens=24).tokens
    copy = deepcopy(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    with model.turn:
        assert copy.generate(prompts, tree=BUSHY, max_new_tokens=24).tokens == want
    assert copy.turn is not model.turn
