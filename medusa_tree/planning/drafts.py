"""Who may draft in what is planned: the heads, the text itself by lookup, or both. Imports no torch."""

from __future__ import annotations

from medusa_runtime.acceptance.rules import Rule
from medusa_runtime.errors import InputError

from ..drafters import DRAFTS, HEADS, LOOKUP
from ..traces.probetrace import ProbeTrace
from ..traces.trace import RankTrace

WHY = (
    "under typical acceptance each tree makes a text of its own, which says what heads give and not what a lookup would; plan lookup for "
    "greedy or sampled text"
)


def check_rule(rule: Rule, heads: bool) -> None:
    """InputError where nothing could be planned by a rule without heads."""
    if not heads and not rule.lossless:
        raise InputError(f"--acceptance typical: needs heads: {WHY}")


def drafting(trace: RankTrace, drafts: str) -> RankTrace:
    """The trace with what may draft, and no more.

    Raises:
        InputError: there is nothing that may: no heads, or no lookup that could be planned.
    """
    if drafts not in DRAFTS:
        raise InputError(f"--drafts {drafts!r} is not known; drafters: {', '.join(DRAFTS)}")
    if drafts == HEADS and not trace.heads:
        raise InputError("--drafts heads: the trace is of a model without heads; plan lookup, or profile with heads")
    if drafts == LOOKUP and isinstance(trace, ProbeTrace):
        raise InputError(f"--drafts lookup: {WHY}")
    return trace.without_heads() if drafts == LOOKUP else trace
