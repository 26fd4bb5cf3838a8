"""The model on the command line: its name, its heads, where and how it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from .common import Command, stderr, together

if TYPE_CHECKING:
    from medusa_runtime.model import MedusaModel


@dataclass(frozen=True)
class Placement:
    """The options that say where a model runs and how it is loaded, as given: None where they were not."""

    device: str | None
    dtype: str | None
    trust_remote_code: bool
    revision: str | None


@dataclass(frozen=True)
class ModelSource(Placement):
    """The options that name a model and its heads, too; ``demo`` is the bundled one."""

    model: str
    heads: str | None
    heads_revision: str | None

    def load(self, require_heads: bool = True) -> MedusaModel:
        """The model with its heads, transformers kept quiet."""
        with stderr().status(f"Loading {self.model} ..."):
            quiet_transformers()
            from medusa_runtime.model import MedusaModel, pick_device
            from medusa_tree.bundled import resolve_model
            from medusa_tree.devices.threads import settle_threads

            note = settle_threads() if pick_device(self.device).type == "cpu" else ""
            model, heads = resolve_model(self.model, self.heads)
            loaded = MedusaModel.from_pretrained(
                model, heads, device=self.device, dtype=self.dtype, trust_remote_code=self.trust_remote_code, require_heads=require_heads,
                revision=self.revision, heads_revision=self.heads_revision,
            )  # fmt: skip
        if note:
            stderr().print(note, style="yellow")
        return loaded


def quiet_transformers() -> None:
    """No warnings and bars but our own."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


PLACEMENT: tuple[Callable[[Command], Command], ...] = (
    click.option("--device", help="e.g. cpu, cuda, cuda:1  [default: CUDA where there is one]"),
    click.option(
        "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="[default: the checkpoint's own]"
    ),
    click.option("--trust-remote-code", is_flag=True, help="Run the code that a Hub repository brings with its model."),
    click.option("--revision", help="Branch, tag or commit of the model's Hub repository.  [default: main]"),
)

HEADS_REVISION = click.option(
    "--heads-revision", help="Branch, tag or commit of the heads' Hub repository.  [default: main]"
)

placement_options = together(Placement, "placement", *PLACEMENT)

model_options = together(
    ModelSource,
    "source",
    click.option("--model", required=True, help="Folder or Hub id of the model; 'demo' is the bundled one."),
    click.option("--heads", help="Folder or Hub id of its Medusa heads.  [default: with the model]"),
    *PLACEMENT,
    HEADS_REVISION,
)
