"""The acceptance rule on the command line: --acceptance and the parameters of each rule."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from .common import together

if TYPE_CHECKING:
    from medusa_runtime.acceptance.rules import Rule


@dataclass(frozen=True)
class Acceptance:
    """The options that say how tokens are accepted, as given: None where they were not."""

    acceptance: str | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    epsilon: float | None
    delta: float | None

    def rule(self, seed: int) -> Rule | None:
        """The rule that the options name, sampling with this seed; None where they name none.

        Raises:
            InputError: parameters without a rule, not the rule's, or out of range.
        """
        from medusa_runtime.acceptance.rules import make_rule
        from medusa_runtime.errors import InputError

        parameters = asdict(self)
        name = parameters.pop("acceptance")
        if name is None:
            if given := [k for k, v in parameters.items() if v is not None]:
                raise InputError(f"--{given[0].replace('_', '-')} needs its rule; add --acceptance sample or typical")
            return None
        return make_rule(name, **parameters, seed=seed if name == "sample" else None)


acceptance_options = together(
    Acceptance,
    "accepting",
    click.option(
        "--acceptance",
        type=click.Choice(["greedy", "sample", "typical"]),
        help="Greedy text, sampled text, or typical acceptance: faster, not lossless.  [default: greedy, or the tree's]",
    ),
    click.option("--temperature", type=float, help="sample, typical: 0 is greedy.  [default: 1]"),
    click.option("--top-p", type=float, help="sample: draw from the likeliest tokens that hold this probability."),
    click.option("--top-k", type=int, help="sample: draw from the K likeliest tokens."),
    click.option("--min-p", type=float, help="sample: least probability, as a share of the likeliest's."),
    click.option("--epsilon", type=float, help="typical: probability that is always enough.  [default: 0.09]"),
    click.option("--delta", type=float, help="typical: bound on probability over exp(-entropy).  [default: 0.3]"),
)


def with_seed(rule: Rule, seed: int | None, mend: str) -> Rule:
    """The rule, drawing by ``seed`` where one is given.

    Raises:
        InputError: a seed for a rule that draws nothing, and the ``mend``.
    """
    from dataclasses import replace

    from medusa_runtime.acceptance.rules import Sampling
    from medusa_runtime.errors import InputError

    if seed is None:
        return rule
    if not isinstance(rule, Sampling):
        raise InputError(f"--seed {seed}: {rule.name} acceptance draws nothing; {mend}")
    return replace(rule, seed=seed)
