"""A request, before it is decoded: which trees and rule it is decoded with, and whether model, memory and context can take it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace

from .acceptance.rules import GREEDY, Rule, Sampling
from .book import TreeBook
from .errors import InputError
from .tree import CandidateTree
from .tree_model import TreeModel
from .treefile import TreeFile


def check_request(model: TreeModel, prompts: Sequence[Sequence[int]], book: TreeBook, max_new_tokens: int) -> int:
    """Cache slots this request needs, or an InputError that names what does not fit."""
    if book.heads > model.num_heads:
        mend = f"cut the tree with --max-depth {model.num_heads}" if model.num_heads else "name heads with --heads"
        raise InputError(f"the tree is {book.heads} deep but {model.name} has {model.num_heads} Medusa head(s); {mend}")
    if book.heads and book.width > model.medusa_heads.rows:
        raise InputError(
            f"the tree uses rank {book.width - 1}, but the heads propose only {model.medusa_heads.rows} tokens"
        )
    if book.beside:
        check_tokens([book.beside], model.vocab_size, model.name, ["the text that is looked up in besides"])
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}; ask for at least 1")
    check_context(model, prompts, max_new_tokens)
    return max(map(len, prompts), default=0) + max_new_tokens + book.nodes + 1


def check_context(model: TreeModel, prompts: Sequence[Sequence[int]], new: int) -> None:
    """InputError where prompts and ``new`` tokens behind each exceed the model's positions, or where its RoPE would change
    on the way: keys that are cached by then, and other sequences of the batch, would be of the other frequencies."""
    shortest, longest = (f(map(len, prompts), default=0) for f in (min, max))
    if model.max_context is not None and longest + new > model.max_context:
        raise InputError(
            f"a prompt of {longest} tokens and {new} new ones exceed the {model.max_context} positions of {model.name}; shorten either"
        )
    switch = model.rope_switch
    if switch is not None and shortest <= switch < longest + new:
        raise InputError(
            f"prompts of {shortest} to {longest} tokens with {new} new ones lie on both sides of {switch} tokens, behind which "
            f"{model.name} takes other RoPE frequencies (longrope); keep prompt and new tokens within {switch}, or take "
            f"prompts that are all longer"
        )


def check_tokens(prompts: Sequence[Sequence[int]], known: int, model: str, names: Sequence[str] = ()) -> None:
    """InputError where a prompt has a token id that is not among the ``known`` of the model's embedding table.

    Args:
        names: what to call each prompt; by default its number.
    """
    for i, prompt in enumerate(prompts):
        if min(prompt) < 0 or max(prompt) >= known:
            wrong = next(token for token in prompt if not 0 <= token < known)
            raise InputError(
                f"{names[i] if names else f'prompt {i + 1}'}: has token {wrong}, and the embedding table of {model} has rows for 0 to "
                f"{known - 1}; take the model's own tokenizer, without tokens that were added to it alone"
            )


def book_for(
    tree: CandidateTree | TreeBook | TreeFile,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    beside: tuple[int, ...] = (),
) -> TreeBook:
    """The trees to decode these prompts with: of a whole tree.json the point for their number, at the context that the
    longest has half-way through. ``beside``: the tokens of the user's text that it was planned with, without which it looks up all the
    same."""
    if not isinstance(tree, TreeFile):
        return TreeBook.of(tree)
    longest = max(map(len, prompts), default=0)
    return tree.book(max(1, len(prompts)), max(1, longest + max_new_tokens // 2), beside)


def rule_for(tree: CandidateTree | TreeBook | TreeFile, rule: Rule | None) -> Rule:
    """The rule asked for, or the one that a whole tree.json was calibrated under, or greedy. A calibration's seed is of its own
    text: nobody asked for that text again."""
    if rule is not None:
        return rule
    rule = tree.acceptance if isinstance(tree, TreeFile) else GREEDY
    return replace(rule, seed=None) if isinstance(rule, Sampling) else rule


def draw_streams(rule: Rule, count: int) -> list[int]:
    """Numbers for ``count`` sequences: 0, 1, ..., or where a sampling rule has no seed, such as were never used."""
    if isinstance(rule, Sampling) and rule.seed is None:
        return [secrets.randbits(62) for _ in range(count)]
    return list(range(count))
