"""One of the processes that test_placement starts: runs commands with --tensor-parallel, one after the other."""

import json
import sys
from functools import partial
from pathlib import Path

import torch.distributed
from click.testing import CliRunner

from medusa_tree.cli import main
from medusa_tree.cli.common import leads
from medusa_tree.devices import measure

FOLDER = Path(sys.argv[1])
BEGIN = torch.distributed.init_process_group


def run(name: str, args: list[str]) -> dict[str, object]:
    # Each command's processes meet in a place of their own: torchrun's still has the addresses of those before.
    torch.distributed.init_process_group = partial(BEGIN, init_method=f"file://{FOLDER / name}.store")
    result = CliRunner().invoke(main, [*args, "--tensor-parallel"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if torch.distributed.is_initialized():
        raise RuntimeError(f"{name} has left its group of processes behind")
    return {"code": result.exit_code, "stdout": result.stdout, "stderr": result.stderr}


if __name__ == "__main__":
    measure.SECONDS_A_LOAD = 0.0
    told = {name: run(name, args) for name, args in json.loads((FOLDER / "commands.json").read_text()).items()}
    (FOLDER / f"rank{int(not leads())}.json").write_text(json.dumps(told))
