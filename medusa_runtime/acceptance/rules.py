"""Acceptance rules by name and parameters, as tree.json carries them; :mod:`medusa_runtime.acceptance.accept` computes them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from ..errors import InputError
from ..reading import Integer, Number, Share, Whole, check_fields, read_as

Temperature = Annotated[Number, Field(ge=0, description="Of the probabilities; 0 is greedy.")]
Between = Annotated[Number, Field(gt=0, lt=1)]


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
    seed: with a sequence's stream and a token's place it fixes the draw, whatever the tree or the batch. None: each request gets
        streams of its own, so that no two texts are the same but by chance.

    Raises:
        InputError: names the parameter that is out of range.
    """

    temperature: Temperature = 1.0
    top_k: Annotated[Whole | None, Field(description="Draw from the K likeliest; null: from all tokens.")] = None
    top_p: Annotated[Number, Field(gt=0, le=1, description="Draw from the likeliest that hold this probability.")] = 1.0
    min_p: Annotated[Share, Field(description="Least probability, as a share of the likeliest's.")] = 0.0
    seed: Annotated[Integer | None, Field(description="Fixes the draw; null: drawn anew each time.")] = None
    name: ClassVar[str] = "sample"
    lossless: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    def __str__(self) -> str:
        cuts = [("top-k", self.top_k, None), ("top-p", self.top_p, 1.0), ("min-p", self.min_p, 0.0)]
        cut = "".join(f", {name} {value:g}" for name, value, off in cuts if value is not None and value != off)
        return f"sampling at temperature {self.temperature:g}{cut}" + (
            "" if self.seed is None else f", seed {self.seed}"
        )


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

    epsilon: Annotated[Between, Field(description="Probability that is always enough.")] = 0.09
    delta: Annotated[Between, Field(description="Bound on probability over exp(-entropy).")] = 0.3
    temperature: Temperature = 1.0
    name: ClassVar[str] = "typical"

    def __post_init__(self) -> None:
        check_fields(self)

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
    kind = _kind(name)
    given = {k: v for k, v in parameters.items() if v is not None}
    own = [f.name for f in fields(kind)]
    if foreign := [k for k in given if k not in own]:
        takes = ", ".join(k.replace("_", "-") for k in own) or "no parameters"
        raise InputError(f"{foreign[0].replace('_', '-')} is not for {name} acceptance, which takes {takes}")
    return kind(**given)


def rule_json(rule: Rule) -> dict[str, Any]:
    """The rule as tree.json has it: its name as "rule", and every parameter."""
    return {"rule": rule.name, **asdict(rule)}


def read_rule(data: Any, where: str) -> Rule:
    """What :func:`rule_json` wrote.

    Args:
        where: the file and field, for errors.

    Raises:
        InputError: no object with "rule", a rule that is not known, or a parameter out of range.
    """
    return read_as(RuleJson, data, where)


def _rule(data: Any) -> Rule:
    """The rule of a JSON object; parameters that it does not have are let be, as all unknown fields are."""
    if isinstance(data, Greedy | Sampling | Typical):
        return data
    name = data.get("rule") if isinstance(data, Mapping) else None
    if not isinstance(name, str):
        raise InputError(f'must be an object with "rule": {", ".join(RULES)}')
    kind = _kind(name)
    return kind(**{f.name: data[f.name] for f in fields(kind) if f.name in data})


def _kind(name: str) -> type[Greedy] | type[Sampling] | type[Typical]:
    if name not in RULES:
        raise InputError(f"acceptance {name!r} is not known; rules: {', '.join(RULES)}")
    return RULES[name]


RuleJson = Annotated[Rule, BeforeValidator(_rule)]
