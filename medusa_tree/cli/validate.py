"""medusa-tree validate: decode held-out prompts with the tree and plainly; predicted beside measured."""

from __future__ import annotations

from pathlib import Path

import click

from .common import FILE, device_options, load_model, progress_bars, stderr, stdout, warn_of_another_point


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
@device_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def validate(
    tree: Path, prompts: int, max_new_tokens: int | None, batch: int, context: int | None, model: str | None, heads: str | None, corpus: str | None,
    seed: int | None, device: str | None, dtype: str | None, trust_remote_code: bool, as_json: bool,
) -> None:  # fmt: skip
    """Decode held-out prompts with TREE and plainly, by the rule that it was calibrated under, and compare text, acceptance
    length and speed with the plan."""
    import json
    from dataclasses import replace

    from medusa_runtime.acceptance.rules import Sampling
    from medusa_runtime.errors import InputError
    from medusa_runtime.treefile import read_tree
    from medusa_tree.bundled import resolve_corpus
    from medusa_tree.origin import calibrated
    from medusa_tree.profiling.corpus import corpus_digest, hold_out, read_corpus, tokenize

    contents = read_tree(tree)
    made, rule = calibrated(contents, str(tree)), contents.acceptance
    source = made.corpus
    if seed is not None:
        if not isinstance(rule, Sampling):
            raise InputError(f"--seed {seed}: {tree} was calibrated under {rule.name} acceptance, which draws nothing")
        rule = replace(rule, seed=seed)
    tokens = max_new_tokens or source.max_new_tokens
    texts = read_corpus(resolve_corpus(corpus or source.name))
    streams = list(range(len(texts)))
    if corpus is None:
        texts = texts[: source.prompts]
        if corpus_digest(texts) != source.digest:
            raise InputError(
                f"{source.name}: has changed since {tree} was made; calibrate again, or name prompts with --corpus"
            )
        # Prompt i keeps its stream, so that the same seed samples the text that was calibrated on.
        streams = hold_out(texts, source.held_out, source.seed).nonzero()[0].tolist()
        texts = [texts[i] for i in streams]
    if len(texts) < prompts:
        stderr().print(f"[yellow]Only {len(texts)} held-out prompts; all are used.[/yellow]")
    loaded = load_model(
        model or made.model.name,
        heads or (None if model else made.heads.name),
        device,
        dtype or made.dtype,
        trust_remote_code,
    )
    from medusa_tree.devices.measure import device_name
    from medusa_tree.profiling.provenance import versions
    from medusa_tree.reports.tables import validation_table
    from medusa_tree.validation.validate import validate as run

    room = (loaded.max_context or 1 << 30) - tokens - loaded.num_heads  # as calibrate cuts them
    rows = tokenize(texts[:prompts], loaded.tokenizer, max(1, room))
    middle = sorted(map(len, rows))[len(rows) // 2] + tokens // 2
    point = contents.point(batch, context or middle)
    warn_of_another_point(point, batch, context, "validating that of")
    if not middle / 2 <= point.context <= 2 * middle:
        stderr().print(
            f"[yellow]Step latency is predicted for {point.context} tokens in the cache; with these prompts there are about {middle}.[/yellow]"
        )
    here = (device_name(loaded.device), str(loaded.dtype).removeprefix("torch."))
    if here != (made.device, made.dtype):
        stderr().print(
            f"[yellow]Predictions are for {made.device}, {made.dtype}; this is {here[0]}, {here[1]}.[/yellow]"
        )
    with progress_bars() as bars:
        task = bars.add_task("Decoding, plainly and with tree", total=len(rows))
        result = run(
            loaded, contents.tree_of(point), point, rows, tokens, lambda n: bars.advance(task, n), rule, streams
        )
    if as_json:
        print(json.dumps({**result.to_json(), "versions": versions()}, indent=2))
        return
    stdout().print(validation_table(result))
