"""Every causal LM that transformers knows: its greedy text is transformers' own, plain and with a tree, or it is refused."""

from importlib.util import find_spec

import numpy as np
import pytest
import transformers
from architectures import DOCS, LABELS, NOT_BUILT, in_docs, outcome, summary

POPULAR = {
    "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "gemma4_text", "phi",
    "phi3", "phimoe", "gpt2", "gpt_neox", "olmo2", "olmoe", "deepseek_v3", "granite", "cohere2", "starcoder2", "smollm3", "glm4",
    "exaone4", "ernie4_5", "seed_oss",
}  # fmt: skip
WINDOWS_IN_THE_MASK = ["qwen2_moe (sliding window)", "doge", "doge (sliding window)"]
SHARED_CACHES = ["gemma3n_text", "gemma4_text (shared caches)"]


@pytest.mark.filterwarnings("ignore")  # of the many classes' own
@pytest.mark.parametrize("label", LABELS)
def test_equal_or_refused(label):
    """Across a window, on both sides of a RoPE switch, to the end of the context; alone, and two prompts of unequal length."""
    seen = outcome(label)
    if seen.kind == "not built":
        assert label in NOT_BUILT, seen.why
    elif seen.kind == "refused":
        assert label not in POPULAR, seen.why
        assert "\n" not in seen.why
    else:
        assert seen.kind == "equal", seen.why


def test_what_was_wrong_without_a_word_is_refused_for_what_it_does():
    for label in WINDOWS_IN_THE_MASK:
        assert "is not run as transformers runs it" in outcome(label).why
    assert "behind the sliding_window of 6" in outcome(WINDOWS_IN_THE_MASK[0]).why
    assert (
        "RecurrentGemmaForCausalLM is not run as transformers runs it: in a step without a tree"
        in outcome("recurrent_gemma").why
    )
    for label in SHARED_CACHES:
        assert "does not run with tree attention and its cache (AttributeError" in outcome(label).why
    for label in ("llama (dynamic RoPE)", "phi3 (longrope)", "minicpm3 (longrope)", "phi3 (sliding window)"):
        assert outcome(label).kind == "equal"


def test_the_texts_show_something():
    """Few of them repeat one token: a fault would change them."""
    shares = [outcome(label).distinct for label in LABELS if outcome(label).kind == "equal"]
    assert np.mean(shares) > 0.7
    assert np.mean(np.array(shares) > 0.35) > 0.95


@pytest.mark.skipif(find_spec("timm") is not None, reason="with timm more can be built than the docs say")
def test_the_counts_stand_in_docs():
    """Made by ``python tests/architectures.py``."""
    held = in_docs(DOCS.read_text())[1]
    if f"transformers {transformers.__version__}," not in held:
        pytest.skip("the docs are of another version of transformers")
    assert held == summary()
