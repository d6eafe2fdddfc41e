"""Lets pages link to files of the repository outside docs, on the site as on a code host.

A link such as `../examples/emoji/grid.png` is found from the page's place in the repository. On
the site the file lies under `repository/`, as text unless it is a picture.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import join, normpath, relpath
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(\.\.?/[^)#\s]+)")
PICTURES = (".png", ".jpg", ".svg", ".webp")


def target(page: str, link: str) -> str | None:
    """The path from the repository's root that `link` on the page docs/`page` names.

    None if it lies inside docs.
    """
    path = normpath(join("docs", page, "..", link))
    return None if path.startswith("docs/") else path


def place(path: str) -> str:
    """Where the file `path` of the repository lies on the site."""
    return f"repository/{path}" + ("" if path.endswith(PICTURES) else ".txt")


def on_files(files: Any, config: Any) -> Any:
    """Add every file outside docs that a page links to."""
    for page in [file for file in files if file.src_uri.endswith(".md")]:
        for link in LINK.findall(Path(page.abs_src_path).read_text(encoding="utf-8")):
            path = target(page.src_uri, link)
            if path is None or files.get_file_from_path(place(path)):
                continue
            if path.startswith("..") or not (ROOT / path).is_file():
                raise PluginError(f"docs/{page.src_uri}: {link}: no such file")
            files.append(File.generated(config, place(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point the page's links at the copies. The front page has no list of its one page."""
    if page.is_homepage:
        page.meta.setdefault("hide", ["navigation"])

    def moved(found: re.Match[str]) -> str:
        path = target(page.file.src_uri, found[1])
        if path is None:
            return found[1]
        return relpath(place(path), normpath(join(page.file.src_uri, "..")))

    return LINK.sub(moved, markdown)
