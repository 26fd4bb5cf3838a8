"""The model on the command line: its name, its heads, where and how it is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

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
class Spread(Placement):
    """The options that spread a model over several devices, too: by the layer in one process, or split over processes."""

    device_map: str | None
    tensor_parallel: bool

    def check(self) -> None:
        """InputError where options do not go together, or processes are missing or too many."""
        from medusa_runtime.errors import InputError

        if self.device_map is not None and self.tensor_parallel:
            raise InputError(
                "--device-map spreads a model's layers over the devices of one process, --tensor-parallel splits them over processes; use one"
            )
        spread = "--device-map" if self.device_map is not None else "--tensor-parallel"
        if self.device is not None and (self.device_map is not None or self.tensor_parallel):
            raise InputError(f"--device {self.device}: {spread} chooses the devices; leave out one of the two")
        if self.tensor_parallel and processes() < 2:
            raise InputError(
                "--tensor-parallel: splits the model over processes, and there is one; start it by torchrun --nproc-per-node N -m medusa_tree "
                "... --tensor-parallel, with N of 2 or more"
            )
        if self.device_map is not None and processes("LOCAL_WORLD_SIZE") > 1:
            raise InputError(
                f"--device-map {self.device_map}: each of the processes that torchrun started on this machine would take all of its devices; "
                "start one, or use --tensor-parallel"
            )

    def check_one_work(self) -> None:
        """As :meth:`check`; InputError, too, for processes that would all do the same work, each with a model of its own."""
        from medusa_runtime.errors import InputError

        self.check()
        if processes() > 1 and not self.tensor_parallel:
            raise InputError(
                f"torchrun has started {processes()} processes, which would all do the same; start one, or split the model over them "
                "with --tensor-parallel"
            )


@dataclass(frozen=True)
class ModelSource(Spread):
    """The options that name a model and its heads, too; ``demo`` is the bundled one."""

    model: str
    heads: str | None
    heads_revision: str | None

    def on_own_gpu(self) -> ModelSource:
        """For processes that work side by side: each of a machine's on a GPU of its own, where there are any and none is named."""
        import torch

        gpus = torch.cuda.device_count()
        if (
            not gpus
            or processes() == 1
            or self.tensor_parallel
            or self.device is not None
            or self.device_map is not None
        ):
            return self
        return replace(self, device=f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % gpus}")

    def load(self, require_heads: bool | None = True) -> MedusaModel:
        """The model with its heads, transformers kept quiet; False: without, unless some are named; None: with those that there are.

        Raises:
            InputError: see :meth:`check` and :meth:`MedusaModel.from_pretrained`; or a model that cannot be split.
        """
        self.check()
        spread: dict[str, Any] = {"device_map": self.device_map} if self.device_map is not None else {}
        if self.tensor_parallel:
            spread = {"tp_plan": "auto"}
        with stderr().status(f"Loading {self.model} ..."):
            quiet_transformers()
            from medusa_runtime.errors import InputError
            from medusa_runtime.model import MedusaModel, pick_device
            from medusa_tree.bundled import resolve_model
            from medusa_tree.devices.threads import settle_threads

            # Processes that share a model compute what they do not share with as many threads each, to the same last bit.
            alone = pick_device(self.device).type == "cpu" and not self.tensor_parallel
            note = settle_threads() if alone else ""
            model, heads = resolve_model(self.model, self.heads)
            if require_heads is False:
                heads = self.heads
            loaded = MedusaModel.from_pretrained(
                model, heads, device=self.device, dtype=self.dtype, trust_remote_code=self.trust_remote_code, require_heads=require_heads,
                revision=self.revision, heads_revision=self.heads_revision, **spread,
            )  # fmt: skip
        if self.tensor_parallel and not loaded.split_over_processes:
            raise InputError(
                f"--tensor-parallel: transformers has no plan to split {type(loaded.base).__name__} by; load it whole, or with --device-map auto"
            )
        if note:
            stderr().print(note, style="yellow")
        return loaded


def processes(variable: str = "WORLD_SIZE") -> int:
    """How many torchrun has started together, on this machine alone by LOCAL_WORLD_SIZE; 1 without it."""
    said = os.environ.get(variable, "")
    return int(said) if said.isdecimal() else 1


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

SPREAD: tuple[Callable[[Command], Command], ...] = (
    click.option(
        "--device-map",
        type=click.Choice(["auto", "balanced", "balanced_low_0", "sequential"]),
        help="Spread the model's layers over all devices, and what they have no room for over host memory, as transformers does.",
    ),
    click.option(
        "--tensor-parallel",
        is_flag=True,
        help="Split each layer over the processes that torchrun --nproc-per-node N -m medusa_tree ... starts.",
    ),
)

HEADS_REVISION = click.option(
    "--heads-revision", help="Branch, tag or commit of the heads' Hub repository.  [default: main]"
)

placement_options = together(Placement, "placement", *PLACEMENT)  # of train, which places itself
spread_options = together(Spread, "placement", *PLACEMENT, *SPREAD)


def model_options_of(required: bool) -> Callable[[Command], Command]:
    """--model, --heads and how they are loaded; the command gets them as one ``source``, whose model is "" where none is named."""
    said = "" if required else "  [default: the one profiled]"
    return together(
        ModelSource,
        "source",
        click.option(
            "--model",
            required=required,
            default=None if required else "",
            help=f"Folder or Hub id of the model; 'demo' is the bundled one.{said}",
        ),
        click.option("--heads", help="Folder or Hub id of its Medusa heads.  [default: with the model]"),
        *PLACEMENT,
        *SPREAD,
        HEADS_REVISION,
    )


model_options = model_options_of(required=True)
