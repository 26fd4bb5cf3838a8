"""Pieces of HTML that the report page is put together from."""

from __future__ import annotations

from collections.abc import Sequence

from medusa_runtime.treefile import Estimate, OperatingPoint


def section(title: str, *parts: str) -> str:
    """A part of the page under a heading."""
    return f"<section><h2>{title}</h2>{''.join(parts)}</section>"


def pair(*sections: str) -> str:
    """Sections beside one another where there is room."""
    return f'<div class="pair">{"".join(sections)}</div>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """A table that scrolls sideways where it must. Cells are HTML already; the first of a row is its header."""
    head = "".join(f'<th scope="col">{c}</th>' for c in columns)
    body = "".join(f'<tr><th scope="row">{r[0]}</th>{"".join(f"<td>{c}</td>" for c in r[1:])}</tr>' for r in rows)
    whole = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<figure><div class="scroll">{whole}</div><figcaption>{caption}</figcaption></figure>'


def plus_minus(e: Estimate, form: str) -> str:
    """A figure and half its interval."""
    return f'{e.value:{form}} <span class="soft">±{(e.high - e.low) / 2:{form}}</span>'


def acceptance(p: OperatingPoint) -> str:
    """Tokens a step; without a tree one, exactly."""
    return plus_minus(p.acceptance_length, ".2f") if p.nodes else "1.00"


def said(kind: str) -> str:
    """ "measured", or "modelled" where it cannot be missed."""
    return f"<em>{kind}</em>" if kind == "modelled" else kind
