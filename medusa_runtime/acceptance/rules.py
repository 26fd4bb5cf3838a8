"""Acceptance rules by name and parameters, as tree.json carries them; :mod:`accept` computes them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import inf
from typing import Any, ClassVar

from ..errors import InputError


def _check(name: str, value: object, low: float, high: float, mend: str, closed: tuple[bool, bool]) -> None:
    """Refuse what is no number between ``low`` and ``high``; ``closed`` says which ends belong to the range."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and low <= value <= high and (closed[0] or value > low) and (closed[1] or value < high)):  # type: ignore[operator]
        raise InputError(f"{name} {value!r} is out of range; {mend}")


def _check_temperature(value: float) -> None:
    _check("temperature", value, 0, inf, "give 0 (greedy) or more, such as 0.7", (True, False))


@dataclass(frozen=True)
class Greedy:
    """A token stands if it is the model's likeliest. The text is that of plain greedy decoding."""

    name: ClassVar[str] = "greedy"
    lossless: ClassVar[bool] = True

    def __str__(self) -> str:
        return "greedy"


@dataclass(frozen=True)
class Sampling:
    """At each node a token is drawn from the model's distribution there, and stands if it is the child's. The text has
    exactly the distribution of plain sampling, as the drafts have no say in the draw.

    temperature: 0 is greedy.
    top_k, top_p, min_p: as transformers' logits processors have them, in its order; None, 1 and 0 leave all tokens in.
    seed: with a sequence's stream and a token's place it fixes the draw, whatever the tree or the batch.

    Raises:
        InputError: names the parameter that is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    name: ClassVar[str] = "sample"
    lossless: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_temperature(self.temperature)
        if self.top_k is not None and not (type(self.top_k) is int and self.top_k >= 1):
            raise InputError(f"top-k {self.top_k!r} is out of range; give a whole number, 1 or more")
        _check("top-p", self.top_p, 0, 1, "give more than 0, and at most 1 (all tokens)", (False, True))
        _check("min-p", self.min_p, 0, 1, "give 0 (all tokens) to 1 (the likeliest only)", (True, True))
        if type(self.seed) is not int:
            raise InputError(f"seed {self.seed!r} is no whole number")

    def __str__(self) -> str:
        cuts = [("top-k", self.top_k, None), ("top-p", self.top_p, 1.0), ("min-p", self.min_p, 0.0)]
        cut = "".join(f", {name} {value:g}" for name, value, off in cuts if value is not None and value != off)
        return f"sampling at temperature {self.temperature:g}{cut}, seed {self.seed}"


@dataclass(frozen=True)
class Typical:
    """A token stands if its probability exceeds min(epsilon, delta exp(-entropy)), entropy in nats (Medusa, arXiv
    2401.10774, §2.3.1); the first token of a step is greedy. Not lossless: the text is not the model's own.

    epsilon, delta: both between 0 and 1. As exp(-entropy) never exceeds the likeliest token's probability, a delta below 1
        lets that token stand wherever greedy acceptance would.
    temperature: of the probabilities that are compared; 0 is greedy.

    Raises:
        InputError: names the parameter that is out of range.
    """

    epsilon: float = 0.09
    delta: float = 0.3
    temperature: float = 1.0
    name: ClassVar[str] = "typical"

    def __post_init__(self) -> None:
        _check("epsilon", self.epsilon, 0, 1, "give a number between 0 and 1, such as 0.09", (False, False))
        _check("delta", self.delta, 0, 1, "give a number between 0 and 1, such as 0.3", (False, False))
        _check_temperature(self.temperature)

    @property
    def lossless(self) -> bool:
        return self.temperature == 0

    def __str__(self) -> str:
        warm = "" if self.temperature == 1 else f", temperature {self.temperature:g}"
        return f"typical acceptance, epsilon {self.epsilon:g}, delta {self.delta:g}{warm}" + (
            "" if self.lossless else " (not lossless)"
        )


Rule = Greedy | Sampling | Typical
GREEDY = Greedy()
RULES: dict[str, type[Greedy] | type[Sampling] | type[Typical]] = {r.name: r for r in (Greedy, Sampling, Typical)}


def make_rule(name: str, **parameters: Any) -> Rule:
    """The rule of this name with these parameters; those that are None keep their default.

    Raises:
        InputError: no such rule, a parameter that it does not have, or one out of range.
    """
    if name not in RULES:
        raise InputError(f"acceptance {name!r} is not known; rules: {', '.join(RULES)}")
    given = {k: v for k, v in parameters.items() if v is not None}
    own = [f.name for f in fields(RULES[name])]
    if foreign := [k for k in given if k not in own]:
        takes = ", ".join(k.replace("_", "-") for k in own) or "no parameters"
        raise InputError(f"{foreign[0].replace('_', '-')} is not for {name} acceptance, which takes {takes}")
    return RULES[name](**given)


def rule_json(rule: Rule) -> dict[str, Any]:
    """The rule as tree.json has it: its name as "rule", and every parameter."""
    return {"rule": rule.name, **asdict(rule)}


def read_rule(data: Any, where: str) -> Rule:
    """What :func:`rule_json` wrote.

    Args:
        where: the file and field, for errors.

    Raises:
        InputError: no object with "rule", or as :func:`make_rule`.
    """
    if not isinstance(data, Mapping) or "rule" not in data:
        raise InputError(f'{where} must be an object with "rule": {", ".join(RULES)}')
    try:
        return make_rule(str(data["rule"]), **{k: v for k, v in data.items() if k != "rule"})
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
