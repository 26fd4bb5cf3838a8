"""What validate prints: predicted beside measured, what became of the text, and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .books import drafted_by, drafters, reads_heads
from .tables import narrow_table, plus_minus
from .tables import sizes as tree_sizes

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from ..validation.partings import Partings
    from ..validation.result import Lossless, Ruled, Validation
    from ..validation.ties import Difference

SHOWN = 12  # differences


def validation_report(v: Validation) -> Group:
    """A table, what is to be said of the text, and the verdict in the last line."""
    from rich.console import Group

    from ..validation.result import Lossless  # torch comes with it

    told = _of_text(v.text, v) if isinstance(v.text, Lossless) else _of_rule(v.text)
    if v.acceptance.replayed is not None:
        told.append(
            f"Acceptance: replay predicts {v.acceptance.replayed:.3f} for these very prompts; measured {v.acceptance.measured.value:.3f}."
        )
    if v.full is not None:
        told.append(
            f"Speed: a batch runs until its last text ends, so that {v.full.at_work:.1f} of {v.point.batch} sequences were at work in a step with the tree. "
            f"By what was measured, all of them make {v.full.tokens_per_s:,.0f} tokens/s; {v.predicted.tokens_per_s.value:,.0f} are predicted."
        )
    verdict = "[red]Not as predicted:[/red] " + "; ".join(v.reasons) + "." if v.reasons else "As predicted."
    return Group(_table(v), *told, verdict)


def _table(v: Validation) -> Table:
    what = f"{v.point.nodes} nodes, depth {v.point.depth}"
    if v.point.book is not None:
        sizes = [len(tree.paths) + tree.lookup for tree in v.point.book.trees]
        what = f"{drafters(v.point.book)}, {len(sizes)} tree{'s' * (len(sizes) > 1)} of {tree_sizes(sizes)} nodes"
    size = f"{what}, batch {v.point.batch}, context {v.point.context}, {v.prompts} held-out prompts"
    table = narrow_table(
        f"{size}\n{v.rule}\n{v.device}, {v.dtype}", "", "plain, measured", "tree, predicted", "tree, measured"
    )
    p = v.predicted
    table.add_row(
        "acceptance length", "1.00", plus_minus(p.acceptance_length, ".3f"), plus_minus(v.acceptance.measured, ".3f")
    )
    table.add_row(
        "step latency, ms",
        plus_minus(v.step_latency_ms["plain"], ".2f"),
        plus_minus(p.step_latency_ms, ".2f"),
        plus_minus(v.step_latency_ms["tree"], ".2f"),
    )
    table.add_row(
        "tokens/s",
        plus_minus(v.tokens_per_s["plain"], ",.0f"),
        plus_minus(p.tokens_per_s, ",.0f"),
        plus_minus(v.tokens_per_s["tree"], ",.0f"),
    )
    table.add_row("speedup", "1.00", plus_minus(p.speedup, ".2f"), plus_minus(v.speedup, ".2f"), style="bold")
    if nats := getattr(v.text, "likelihood", None):
        plain, tree = (plus_minus(nats[name], ".3f") for name in ("plain", "tree"))
        table.add_row("nats a token, base model", plain, "", tree)
    if v.drafted is not None:
        table.add_section()
        heads = v.point.book is None or reads_heads(v.point.book)
        predicted = drafted_by(v.drafted.replayed or v.drafted.predicted, heads)
        measured = [f"{tokens:.3f}" for _, tokens in drafted_by(v.drafted.measured, heads)]
        for (who, tokens), seen in zip(predicted, measured, strict=True):
            table.add_row(f"by {who}", "", f"{tokens:.3f}", seen)
    table.caption = "± half the 95% interval (predicted latency: quartiles); measured times leave prefill out"
    if v.drafted is not None:
        of = "replay on these very prompts" if v.drafted.replayed else "the plan's"
        table.caption += f"\nby whom: accepted tokens a step behind the root, by who drafted them; predicted: {of}"
    return table


def _of_text(text: Lossless, v: Validation) -> list[str]:
    parted = text.differences
    lines = [
        f"Text: {text.prompts - len(parted)} of {text.prompts} prompts are token for token the plain text; "
        f"{len(parted) - text.no_ties} part at a near tie, {text.no_ties} otherwise."
    ]
    if not parted:
        return lines
    lines[0] += (
        f" Judged in {text.reference}: {v.dtype} moves the gap between two logits by {parted[0].noise:.2g}, and up to "
        f"{parted[0].bar:.2g} is a tie."
    )
    worst = sorted(parted, key=lambda d: (d.near_tie, -d.gap))[:SHOWN]
    lines += [_difference(d) for d in sorted(worst, key=lambda d: d.prompt)]
    if len(parted) > SHOWN:
        lines.append(f"  ... and {len(parted) - SHOWN} nearer ones (--json has all)")
    if text.tree and text.plain and text.rounding is not None:
        lines.append(
            f"Partings: {_rate(text.tree)} in 1,000 tokens; plain texts, {text.batch} at a time and {v.point.batch}: {_rate(text.plain)}; "
            f"rounding alone could make {1e3 * text.rounding:.2g}."
        )
    return lines


def _difference(d: Difference) -> str:
    plain, tree = ("an end" if t is None else f"{t}" for t in (d.plain_token, d.tree_token))
    prefers = {d.plain_token: "the plain one", d.tree_token: "the tree's"}.get(d.preferred, f"another, {d.preferred},")
    how = f"the reference prefers {prefers} by {d.gap:.2g}" + (", the distance to a cut" if d.cut else "")
    return f"  prompt {d.prompt}, token {d.position}: {plain} plainly, {tree} by tree; {how}" + (
        "" if d.near_tie else "  [red]not a tie[/red]"
    )


def _rate(p: Partings) -> str:
    low, high = p.interval
    return f"{p.per_thousand:.2g} ({low:.2g} to {high:.2g})"


def _of_rule(text: Ruled) -> list[str]:
    cost = text.likelihood["difference"]
    return [
        "Text: not the model's own, as typical acceptance is not lossless. The base model gives a token of it "
        f"{cost.value:+.3f} nats ({cost.low:+.3f} to {cost.high:+.3f}) against plain greedy text.",
        f"Rule: judged in {text.reference}, it lets {text.tokens - len(text.unruly):,} of {text.tokens:,} tokens stand.",
        *(
            f"  prompt {u.prompt}, token {u.position}: {u.token} falls short by {u.gap:.2g}, where rounding explains {u.bar:.2g}"
            for u in text.unruly[:SHOWN]
        ),
    ]
