"""medusa-tree export: the tree in an engine's own form."""

from __future__ import annotations

from pathlib import Path

import click

from .common import COUNT, FILE, check_output, stderr, warn_of_another_point


@click.command()
@click.argument("tree", type=FILE)
@click.option("--format", "name", default="medusa", show_default=True, help="Engine; an unknown one lists them.")
@click.option("--batch", type=COUNT, default=1, show_default=True, help="Which operating point to export.")
@click.option("--context", type=COUNT, help="At which context.  [default: the shortest planned]")
@click.option("--nodes", type=COUNT, help="Export the best tree of this size instead of the planned one.")
@click.option("-o", "--output", type=FILE, help="File to write.  [default: standard output]")
def export(tree: Path, name: str, batch: int, context: int | None, nodes: int | None, output: Path | None) -> None:
    """Write TREE as the definition that another engine takes; refused where the engine could not run it."""
    from medusa_runtime.files import write_beside
    from medusa_runtime.treefile import read_tree
    from medusa_tree.engines.export import export_tree
    from medusa_tree.origin import origin

    contents = read_tree(tree)
    origin(contents, str(tree))  # what is wrong in it is told by the file's name
    text, hint = export_tree(contents, name, batch, nodes, context)
    if nodes is None:
        warn_of_another_point(contents.point(batch, context), batch, context, "this is the tree of")
    if output is None:
        print(text)
    else:
        check_output(output)
        with write_beside(output) as beside:
            beside.write_text(text + "\n", "utf-8")
    stderr().print(hint, style="dim", markup=False)
