"""medusa-tree on the command line: one command a file; each parses, calls and prints."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import click

from medusa_runtime.errors import InputError
from medusa_tree import __version__

from .calibrate import calibrate
from .common import leads
from .compare import compare
from .export import export
from .generate import generate
from .measure import measure
from .merge import merge
from .model import processes
from .plan import plan
from .profile import profile
from .report import report
from .show import show
from .trace import trace
from .train import train
from .validate import validate


class _Cli(click.Group):
    """A group in which an InputError is a message and exit status 2, never a traceback, and a warning a line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for arg in args:
            raw = os.fsencode(arg)
            try:
                raw.decode()
            except UnicodeDecodeError:  # neither a tokenizer nor tree.json, which names its files, could hold it
                ctx.fail(f"argument {raw!r} is not UTF-8; give text as UTF-8, and rename such a file")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        shown = warnings.showwarning
        warnings.showwarning = partial(_line, shown)
        try:
            with _together():
                return super().invoke(ctx)
        except InputError as error:
            raise click.UsageError(str(error)) from None
        finally:
            warnings.showwarning = shown


@contextmanager
def _together() -> Iterator[None]:
    """Where torchrun has started several processes, the group that they join in the command is left in order."""
    if processes() < 2:
        yield
        return
    from medusa_runtime.processes import process_group

    with process_group():
        yield


def _line(
    otherwise: Callable[..., None], message: Warning | str, category: type[Warning], *where: Any, **more: Any
) -> None:
    """Print a warning for users as what it says, once where several processes work together; those for developers as ever."""
    if category is UserWarning and not leads():
        return
    if category is UserWarning:
        click.secho(f"Warning: {message}", fg="yellow", err=True)
    else:
        otherwise(message, category, *where, **more)


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="medusa-tree")
def main() -> None:
    """Measure, choose and prove the candidate tree of a Medusa speculative decoder.

    \b
    medusa-tree train --model M --data FILE -o heads   train heads where there are none
    medusa-tree calibrate --model demo -o tree.json    measure heads and device, plan the tree
    medusa-tree validate tree.json                     decode with it: is what was predicted what is measured?
    medusa-tree report tree.json                       one page to read and to pass on
    medusa-tree export tree.json --format medusa       take it to your engine
    calibrate in parts, on other machines:
    medusa-tree profile --model M --corpus F -o RUN    ranks and text, resumable, on many processes
    medusa-tree measure --model M -o latency.json      step latency alone
    medusa-tree merge RUN... -o trace.npz              for 'plan trace.npz --latency latency.json'
    """


for command in (
    calibrate,
    profile,
    measure,
    merge,
    plan,
    validate,
    compare,
    report,
    show,
    export,
    generate,
    trace,
    train,
):
    main.add_command(command)
