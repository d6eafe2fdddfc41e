"""Run the tutorials as their readers do: every block of every page, in order, in a fresh folder.

`python benchmarks/tutorials.py [PAGE.md ...] [--out runs/tutorials]` takes the pages of
`docs/tutorials` when none is named. Blocks fenced as `bash` and `python` are run, each in a
process of its own, in a folder of the page's own beside which only `examples` is known; other
blocks show what is printed. The first block that fails ends it, with its place and exit code 1.
A line for every block and a table of pages give the seconds that they took: of the clock, and of
all processes together.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "tutorials"

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "bash": ("bash", "-euo", "pipefail", "-c"),
    "python": (sys.executable, "-c"),
}
"""By language, what runs a block whose text is the last argument."""

FENCE = re.compile(r"^(`{3,})\s*(\w*)\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: The file.
        line: Of its fence, from 1.
        language: What stands behind the fence; "" for nothing.
        text: What is inside.
    """

    page: Path
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Spent:
    """Seconds of the clock, and of all processes together."""

    wall: float
    cpu: float


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order; ValueError names one that does not end."""
    found: list[Block] = []
    inside: tuple[int, str, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = FENCE.match(line)
        if inside is None and fence:
            inside, lines = (number, fence[1], fence[2]), []
        elif inside and fence and fence[1] == inside[1] and not fence[2]:
            found.append(Block(page, inside[0], inside[2], "\n".join(lines)))
            inside = None
        else:
            lines.append(line)
    if inside:
        raise ValueError(f"{page}:{inside[0]}: a block that does not end")
    return found


def run_block(block: Block, folder: Path) -> Spent:
    """Run a block in a folder; its output goes through.

    Raises:
        subprocess.CalledProcessError: If it fails.
    """
    began, used = time.monotonic(), _used()
    paths = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    environment = {**os.environ, "PATH": os.pathsep.join(paths)}
    command = [*COMMANDS[block.language], block.text]
    subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, check=True)
    return Spent(time.monotonic() - began, _used() - used)


def _used() -> float:
    """CPU seconds of processes that have ended."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def run_page(page: Path, out: Path) -> Spent:
    """Run a page's blocks in `out`, which is emptied first.

    Raises:
        subprocess.CalledProcessError: Of the first block that fails, whose place is printed.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "examples").symlink_to(ROOT / "examples")
    took = []
    for block in blocks(page):
        if block.language not in COMMANDS:
            continue
        place = f"{page.name}:{block.line}"
        print(f"--- {place}\n{block.text}\n---", flush=True)
        try:
            took.append(run_block(block, out))
        except subprocess.CalledProcessError as error:
            print(f"{place}: this block failed, exit code {error.returncode}", flush=True)
            raise
        print(f"--- {place}: {took[-1].wall:.0f} s", flush=True)
    return Spent(sum(one.wall for one in took), sum(one.cpu for one in took))


def main(words: Iterable[str] | None = None) -> int:
    """Run pages; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/tutorials"))
    args = parser.parse_args(None if words is None else list(words))
    rows = []
    for page in args.pages or sorted(PAGES.glob("*.md")):
        try:
            rows.append((page.stem, run_page(page, args.out / page.stem)))
        except subprocess.CalledProcessError:
            return 1
    print("\n| tutorial | seconds | CPU seconds |\n|---|---|---|")
    for name, spent in rows:
        print(f"| {name} | {spent.wall:.0f} | {spent.cpu:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
