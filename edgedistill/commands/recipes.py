"""The command `recipes`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from edgedistill.commands.complete import recipe_families, recipe_names
from edgedistill.commands.general import GroupVerb, Json, Verb, write_figures
from edgedistill.common.progress import put
from edgedistill.common.tables import show as show_table

__all__ = ["app"]

app = typer.Typer(
    cls=GroupVerb, invoke_without_command=True, help="List the recipes, or show one."
)


@app.callback()
def recipes(
    context: typer.Context,
    family: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="FAMILY",
            autocompletion=recipe_families,
            help="List only recipes for teachers of this family, such as sd15, sdxl or unet2d.",
        ),
    ] = None,
    json: Json = None,
) -> None:
    """List the shipped recipes, those for real models first."""
    if context.invoked_subcommand is not None:
        return
    from edgedistill.recipes.listing import chosen, summaries

    found = chosen(family) if family else summaries()
    if write_figures({name: vars(summary) for name, summary in found.items()}, json):
        return
    table = Table("recipe", "what it makes")
    for name, summary in found.items():
        table.add_row(name, summary.description)
    show_table(table)


@app.command(cls=Verb)
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", autocompletion=recipe_names, help="A recipe's name, or its file."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[key=value ...]", help="Overrides of its keys."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say above each key what it means.")
    ] = False,
) -> None:
    """Print a recipe resolved: its source, and every key with its value, ready to be changed."""
    from edgedistill import recipes as recipes_

    found = recipes_.load(name, overrides or ())
    text = recipes_.explained(found) if explain else recipes_.dump(found)
    put(recipes_.header(name) + text)
