"""The command `push`."""

from __future__ import annotations

from typing import Annotated

import typer

from edgedistill.commands.general import Json, write_figures
from edgedistill.common.progress import answer

__all__ = ["push"]


def push(
    source: Annotated[
        str,
        typer.Argument(
            metavar="STUDENT|BUNDLE", help="Folder of a student, of several, a run or a bundle."
        ),
    ],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Its repository on the Hub.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="What the picture on the card shows, several times for several."
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a repository that holds something else.")
    ] = False,
    message: Annotated[str, typer.Option(metavar="TEXT", help="Message of the commit.")] = "",
    json: Json = None,
) -> None:
    """Push a student or a bundle to the Hugging Face Hub, with a model card and a picture.

    Example: edgedistill push runs/latest/student me/my-4step-student --private
    """
    from edgedistill.verbs.publishing import push as send

    url = send(source, repo, private=private, prompts=prompt, replace=replace, message=message)
    if not write_figures({"url": url}, json):
        answer(url)
