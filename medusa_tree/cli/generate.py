"""medusa-tree generate: stream a continuation, and say what the tree gave."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .acceptance import Acceptance, acceptance_options, with_seed
from .common import COUNT, FILE, leads, stderr
from .drafts import tree_text, used_lookup_file_option
from .model import ModelSource, model_options

if TYPE_CHECKING:
    from medusa_runtime.book import TreeBook


@click.command()
@click.argument("prompt")
@model_options
@click.option("--tree", "tree_json", type=FILE, help="tree.json to decode with.  [default: plain decoding]")
@click.option("--max-new-tokens", type=COUNT, default=128, show_default=True)
@click.option("--chat", is_flag=True, help="Put the prompt through the model's chat template.")
@used_lookup_file_option
@acceptance_options
@click.option("--seed", type=int, help="sample: fixes the text, with any tree.  [default: 0, or the tree's]")
def generate(
    prompt: str, source: ModelSource, tree_json: Path | None, max_new_tokens: int, chat: bool, lookup_file: Path | None,
    accepting: Acceptance, seed: int | None,
) -> None:  # fmt: skip
    """Continue PROMPT with the tree, streaming the text, then a line of statistics. Tokens are accepted as the tree was
    calibrated, or greedily, unless --acceptance says how."""
    import time

    from medusa_runtime.acceptance.rules import GREEDY
    from medusa_runtime.errors import InputError
    from medusa_runtime.tree import CandidateTree
    from medusa_runtime.treefile import TreeFile, read_tree
    from medusa_tree.profiling.corpus import Prompt
    from medusa_tree.profiling.tokens import tokenize

    source.check_one_work()
    if lookup_file is not None and tree_json is None:
        raise InputError(f"--lookup-file {lookup_file}: is for a tree that was planned with it; name that with --tree")
    contents = read_tree(tree_json) if tree_json else CandidateTree()
    rule = accepting.rule(seed or 0) or (contents.acceptance if isinstance(contents, TreeFile) else GREEDY)
    rule = with_seed(rule, seed, "add --acceptance sample")
    loaded = source.load(require_heads=isinstance(contents, TreeFile) and contents.heads > 0)
    from medusa_runtime.decode import stream
    from medusa_runtime.processes import agreed
    from medusa_runtime.request import book_for, draw_streams

    tokenizer = loaded.tokenizer
    rows = tokenize([Prompt(prompt, "prompt", chat)], tokenizer)
    beside = tree_text(contents, str(tree_json), lookup_file, loaded) if isinstance(contents, TreeFile) else ()
    book = book_for(contents, rows, max_new_tokens, beside)
    streams = agreed(loaded, draw_streams(rule, len(rows)))
    new: list[int] = []
    steps, shown = 0, ""
    begin = time.perf_counter()
    _show(prompt)
    for (added,) in stream(loaded, rows, book, max_new_tokens, rule=rule, streams=streams):
        new += added
        steps += 1
        text = tokenizer.decode(new, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # half a character: wait for the rest
            _show(text[len(shown) :])
            shown = text
    seconds = time.perf_counter() - begin
    # What is left, a character that was never finished, too.
    _show(tokenizer.decode(new, skip_special_tokens=True)[len(shown) :] + "\n")
    stderr().print(
        f"{len(new)} tokens in {seconds:.2f} s, {len(new) / seconds:.0f} tokens/s; {steps} steps, {len(new) / steps:.2f} tokens a step"
        + (f", {_name(book)}, drafted by {_drafters(book)}" if book.nodes else ", plain decoding")
        + f"; {rule}",
        style="dim",
        soft_wrap=True,
    )


def _name(book: TreeBook) -> str:
    count = len(book.trees)
    return f"tree of {book.nodes} nodes" if count == 1 else f"{count} trees of up to {book.nodes} nodes"


def _drafters(book: TreeBook) -> str:
    """ "heads", "lookup" or "heads and lookup"."""
    return " and ".join(name for name, drafts in (("heads", book.heads), ("lookup", book.chain)) if drafts)


def _show(text: str) -> None:
    """More of the text, as it is made, by the first process."""
    if leads():
        click.echo(text, nl=False)
