"""Weights: whether a tree is validated with the model and the heads that it was calibrated with."""

from __future__ import annotations

from medusa_runtime.errors import InputError
from medusa_runtime.model import MedusaModel

from ..origin import Calibrated, differ
from ..profiling.provenance import weight_digest


def other_weights(model: MedusaModel, made: Calibrated, where: str, model_named: bool, heads_named: bool) -> list[str]:
    """What is to be said where a model or heads that the user has named are others than the tree was calibrated with.

    In another dtype than they were profiled in weights are rounded otherwise, and nothing can be said.

    Args:
        made: what the tree says of itself. where: its file, for errors.

    Raises:
        InputError: they are not those of then though nobody named others: they have changed.
    """
    if model.dtype_name != made.model.dtype:
        return []
    said = []
    for what, module, then, named in (
        ("model", model.base, made.model, model_named),
        ("heads", model.heads, made.heads, heads_named),
    ):
        if module is None or then is None or then.weights is None or not differ(weight_digest(module), then.weights):
            continue
        if not named:
            raise InputError(
                f"{then.name or f'the {what}'}: the weights have changed since {where} was calibrated; calibrate again, or name "
                f"them with --{what} to validate with these"
            )
        these = "This is not the model" if what == "model" else "These are not the heads"
        said.append(f"{these} that the tree was calibrated with ({then.name or 'no name'}).")
    return said
