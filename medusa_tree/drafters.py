"""Who may draft, by the names that options and files have."""

from __future__ import annotations

HEADS, LOOKUP, BOTH = DRAFTS = ("heads", "lookup", "both")
