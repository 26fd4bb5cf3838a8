"""medusa-tree validate: decode held-out prompts with the tree and plainly; predicted beside measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .acceptance import with_seed
from .common import FILE, leads, progress_bars, stderr, stdout, warn_of_another_point, warn_of_cut_prompts
from .drafts import tree_text, used_lookup_file_option
from .model import HEADS_REVISION, ModelSource, Spread, spread_options

if TYPE_CHECKING:
    from medusa_runtime.treefile import TreeFile
    from medusa_tree.origin import Calibrated
    from medusa_tree.traces.trace import RankTrace


@click.command()
@click.argument("tree", type=FILE)
@click.option(
    "--prompts", type=click.IntRange(min=1), default=32, show_default=True, help="Held-out prompts to decode."
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Tokens a prompt.  [default: as calibrated]")
@click.option(
    "--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Which operating point to validate."
)
@click.option("--context", type=click.IntRange(min=1), help="At which context.  [default: the prompts' own middle]")
@click.option("--model", help="Folder or Hub id.  [default: the one the tree was made for]")
@click.option("--heads", help="Folder or Hub id.  [default: the ones the tree was made for]")
@click.option("--corpus", help="Prompts.  [default: the held-out part of those it was made on]")
@click.option("--seed", type=int, help="sample: draw another text than the one that was calibrated on.")
@used_lookup_file_option
@spread_options
@HEADS_REVISION
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def validate(
    tree: Path, prompts: int, max_new_tokens: int | None, batch: int, context: int | None, model: str | None, heads: str | None, corpus: str | None,
    seed: int | None, lookup_file: Path | None, heads_revision: str | None, placement: Spread, as_json: bool,
) -> None:  # fmt: skip
    """Decode held-out prompts with TREE and plainly, by the rule that it was calibrated under, and compare text, acceptance
    length and speed with the plan.

    Where texts part, the place is judged in float32 by transformers' own forward. Exits with 1 where text or acceptance length
    are not as predicted; times are the machine's, and are shown only.
    """
    import json
    from dataclasses import replace

    from medusa_runtime.treefile import read_tree
    from medusa_tree.origin import calibrated
    from medusa_tree.validation.prompts import HeldOut, held_out_prompts

    placement.check_one_work()
    contents = read_tree(tree)
    made = calibrated(contents, str(tree))
    if not contents.heads:  # whatever the trace has: they draft nothing
        made = replace(made, heads=None)
    rule = with_seed(contents.acceptance, seed, f"{tree} was calibrated under it")
    # Of the model that was calibrated the very prompts are known, turns of conversations behind its own answers; of others, and of
    # trees without their calibration, the corpus is read again.
    trace = _trace(tree, contents) if corpus is None else None
    text = trace.text if trace is not None and model is None else None
    held = held_out_prompts(made.corpus, str(tree), corpus) if text is None else HeldOut([], text.streams.tolist())
    tokens = max_new_tokens or made.corpus.max_new_tokens
    if len(held.streams) < prompts:
        stderr().print(f"[yellow]Only {len(held.streams)} held-out prompts; all are used.[/yellow]")
    loaded = _source(made, model, heads, heads_revision, placement).load(require_heads=contents.heads > 0)
    from medusa_tree.devices.measure import place_name
    from medusa_tree.planning.compare import what_runs
    from medusa_tree.profiling.calibrate import middle_context
    from medusa_tree.profiling.provenance import versions
    from medusa_tree.profiling.tokens import fitted, fitted_rows
    from medusa_tree.reports.validation import validation_report
    from medusa_tree.validation.prompts import looked_up_text, replay_beginning
    from medusa_tree.validation.validate import validate as run
    from medusa_tree.validation.weights import other_weights

    named = (model, placement.revision), (heads, heads_revision, model)
    for line in other_weights(loaded, made, str(tree), *(any(n) for n in named)):
        stderr().print(f"[yellow]{line} What it predicts is held against these all the same.[/yellow]")
    if text is None:
        decoded = fitted(loaded, held.prompts[:prompts], tokens)
    else:
        decoded = fitted_rows(loaded, [row.tolist() for row in list(text.prompts)[:prompts]], tokens)
    warn_of_cut_prompts(decoded)
    rows = decoded.rows
    middle = middle_context(rows, tokens)
    point = contents.point(batch, context or middle)
    warn_of_another_point(point, batch, context, "validating that of")
    if not middle / 2 <= point.context <= 2 * middle:
        stderr().print(
            f"[yellow]Step latency is predicted for {point.context} tokens in the cache; with these prompts there are about {middle}.[/yellow]"
        )
    here = (place_name(loaded), loaded.dtype_name)
    if here != (made.device, made.dtype):
        stderr().print(
            f"[yellow]Predictions are for {made.device}, {made.dtype}; this is {here[0]}, {here[1]}.[/yellow]"
        )
    beside = tree_text(contents, str(tree), lookup_file, loaded, looked_up_text(tree, point.book))
    chosen = what_runs(contents, point, beside)
    # Typical acceptance's text is another with each tree: only that of a lossless rule is the one whose trace there is.
    if made.corpus.source == "reference text":
        stderr().print(
            f"[yellow]{tree} was planned on reference text; the model's own, which is decoded here, is another.[/yellow]"
        )
    # Greedy text is the same wherever it was made; a sample is drawn again.
    own = made.corpus.source == "prompts" or (rule.name == "greedy" and made.corpus.source != "reference text")
    same_texts = own and (
        corpus is None and rule == contents.acceptance and rule.lossless and tokens <= made.corpus.max_new_tokens
    )
    played = None
    if same_texts and trace is not None and len(trace.lengths) == len(held.streams):
        played = replay_beginning(chosen, trace, len(rows), tokens)
    with progress_bars() as report:
        result = run(loaded, chosen, point, rows, tokens, report, rule, held.streams, played)
    if as_json and leads():
        print(json.dumps({**result.to_json(), "versions": versions()}, indent=2))
    elif not as_json:
        stdout().print(validation_report(result))
    if result.reasons and leads():  # whoever ends with an error ends the others, which may not have printed yet
        raise click.exceptions.Exit(1)


def _trace(path: Path, contents: TreeFile) -> RankTrace | None:
    """The held-out part of the trace that the tree was planned on, if it lies beside it."""
    from medusa_runtime.errors import InputError
    from medusa_tree.validation.prompts import held_out_trace

    try:
        return held_out_trace(path, contents)
    except InputError as error:
        stderr().print(f"[yellow]{error}; so acceptance is held against {path} alone.[/yellow]")
        return None


def _source(
    made: Calibrated, model: str | None, heads: str | None, heads_revision: str | None, placement: Spread
) -> ModelSource:
    """The model named, or the one that the tree was made for, at the commit it had then, with its heads and in its dtype."""
    from medusa_tree.origin import Named

    own = made.heads or Named()
    named = heads or (None if model else own.name)
    return ModelSource(
        model=model or made.model.name,
        revision=placement.revision or (None if model else made.model.commit),
        heads=named,
        heads_revision=heads_revision or (None if heads or named is None else own.commit),
        device=placement.device,
        dtype=placement.dtype or made.dtype,
        trust_remote_code=placement.trust_remote_code,
        device_map=placement.device_map,
        tensor_parallel=placement.tensor_parallel,
    )
