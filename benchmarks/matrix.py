"""Families x targets x precisions: is a student of every family the same on every target?

`python benchmarks/matrix.py [--rows A,B] [--columns X,Y] [--again] [--out runs/matrix]` distils a
tiny student of each row and exports it to each column, each cell in a process of its own. It goes
on after a failure, and a cell whose JSON is in `--out` is not done again, so that a stopped run
goes on where it stood. It ends with a Markdown table: a figure is a bundle that was built and
proven equal to its student, the PSNR of its worst picture in dB; a number in brackets is a reason
below.

A bundle for TensorRT is built for its GPUs and proven by its graph on this CPU, one for Core ML by
interpreting its saved program.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedistill.common.decibels import decibels
from edgedistill.common.files import read_json, write_json, write_text
from edgedistill.common.logs import PACKAGE
from edgedistill.common.progress import Handler

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext  # not on every system

SHORT = ("train.steps=2", "train.batch_size=2", "train.accumulate=1")
OK, REFUSED, FAILED = "ok", "refused", "failed"


@dataclass(frozen=True)
class Row:
    """A tiny student.

    Attributes:
        recipe: A recipe's name.
        pixels: Of a pixel U-Net of our own: "classes", "unconditional" or "edm".
    """

    recipe: str
    pixels: str = ""


ROWS = {
    **{
        name: Row(name)
        for name in (
            *("sd15-4step", "sdxl-4step", "sd3-4step", "flux-4step-lora", "pixart-4step"),
            *("sana-1step", "dit-imagenet-1step", "cifar10-1step", "wan-4step"),
        )
    },
    "pixels-classes": Row("emoji-lcm", "classes"),
    "pixels-unconditional": Row("emoji-lcm", "unconditional"),
    "pixels-edm": Row("cifar10-1step", "edm"),
}
COLUMNS = {
    f"{target} {precision}": (target, precision)
    for target, precision in (
        *(("ort", "fp32"), ("ort", "int8"), ("openvino", "fp16"), ("openvino", "int8")),
        *(("trt", "fp16"), ("coreml", "fp16"), ("coreml", "pal6")),
        *(("executorch", "fp32"), ("executorch", "int8"), ("web", "fp16")),
    )
}


# --- What a process of its own does -------------------------------------------------------------


def distil(row: Row, out: Path, file: Path) -> None:
    """Train the student of a row in the run dir `out`."""
    from one_student import open_one

    from edgedistill import recipes

    PACKAGE.addHandler(Handler())
    PACKAGE.setLevel(logging.INFO)
    choices = [*SHORT, "teacher.tiny=true"]
    if row.pixels:
        teacher = out.parent / "teacher"
        _pixel_teacher(row.pixels, teacher)
        choices = [*SHORT, "teacher.family=unet2d", f"teacher.path={teacher}"]
        choices += ["teacher.guidance=1", "data.samples=8", "teacher.steps=2"]
    run = open_one(recipes.load(row.recipe, choices), out, runs=out.parent)
    run.train(lambda *_: None)
    write_json(file, {"status": OK})


def _pixel_teacher(kind: str, folder: Path) -> None:
    """A DDPMPipeline of random weights."""
    import torch
    from diffusers import EDMEulerScheduler

    from edgedistill.tiny.unet2d import pipeline

    torch.manual_seed(0)
    made = pipeline(
        classes=4 if kind == "classes" else None,
        scheduler=EDMEulerScheduler() if kind == "edm" else None,
    )
    made.save_pretrained(folder)


def export(student: Path, target: str, precision: str, out: Path, file: Path) -> None:
    """Build and prove a bundle at `out`, and write what came of it."""
    from edgedistill_export.bundle import export_student
    from edgedistill_export.parity import ParityError
    from edgedistill_export.targets import UnsupportedError
    from edgedistill_runtime.manifest import Manifest, Parity

    result: dict[str, Any]
    parity: Parity | None
    try:
        parity = Manifest.read(export_student(student, target, precision, out)).parity
        result = {"status": OK}
    except ParityError as error:
        result, parity = {"status": FAILED, "reason": str(error)}, error.parity
    except UnsupportedError as error:
        result, parity = {"status": REFUSED, "reason": str(error)}, None
    if parity:
        worst = min(graph.worst for graph in parity.graphs.values())
        result |= {"worst_graph_db": worst, "final_db": parity.final.worst}
    write_json(file, result)


# --- One process after another ------------------------------------------------------------------


def logged(work: Callable[..., None], args: Sequence[Any], file: Path) -> None:
    """Do `work`, with all that it prints in a log beside `file`."""
    log = os.open(file.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    try:
        work(*args, file)
    except Exception as error:
        traceback.print_exc()
        words = f"{type(error).__name__}: {error}"
        write_json(file, {"status": FAILED, "reason": words.splitlines()[0]})


def attempt(work: Callable[..., None], args: Sequence[Any], file: Path, limit: float) -> None:
    """Do `work` in a process of its own; a crash or a hang is a result, too."""
    context: ForkServerContext | SpawnContext = multiprocessing.get_context("spawn")
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["edgedistill.runs.run_dir", "edgedistill_export.many"])
    process = context.Process(target=logged, args=(work, args, file))
    start = time.perf_counter()
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        write_json(file, {"status": FAILED, "reason": f"no end after {limit:.0f} s"})
    elif not file.is_file():
        write_json(file, {"status": FAILED, "reason": f"crashed with code {process.exitcode}"})
    seconds = round(time.perf_counter() - start, 1)
    write_json(file, {**read_json(file), "seconds": seconds})


def fill(
    rows: Sequence[str], columns: Sequence[str], out: Path, *, again: bool, limit: float
) -> None:
    """Do every cell that is not there, or all these once more."""
    for name in rows:
        folder = out / name
        made = folder / "student.json"
        if not made.is_file() or (again and read_json(made)["status"] != OK):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            attempt(distil, (ROWS[name], folder / "run"), made, limit)
            print(f"{name}: student {_told(made)}", flush=True)
        for column in columns:
            file = folder / f"{column.replace(' ', '-')}.json"
            if file.is_file() and not again:
                continue
            file.unlink(missing_ok=True)
            if read_json(made)["status"] == OK:
                place = folder / "bundle"
                student = folder / "run" / "student"
                attempt(export, (student, *COLUMNS[column], place), file, limit)
                shutil.rmtree(place, ignore_errors=True)
            else:
                write_json(file, {**read_json(made), "seconds": 0.0})
            print(f"{name}: {column} {_told(file)}", flush=True)


def _told(file: Path) -> str:
    result = read_json(file)
    words = result["status"] + (f": {result['reason']}" if result.get("reason") else "")
    return f"{words} ({result['seconds']:.0f} s)"


# --- The table ----------------------------------------------------------------------------------


def table(rows: Sequence[str], columns: Sequence[str], out: Path) -> str:
    """The cells as Markdown: the worst picture in dB, or the number of a reason below."""
    reasons: dict[str, int] = {}
    counts = dict.fromkeys((OK, REFUSED, FAILED), 0)
    lines = [["student", *columns], ["---"] * (1 + len(columns))]
    for name in rows:
        cells = [name]
        for column in columns:
            result = read_json(out / name / f"{column.replace(' ', '-')}.json")
            counts[result["status"]] += 1
            if result["status"] == OK:
                cells.append(decibels(result["final_db"]))
                continue
            reason = f"{result['status']}: {result['reason']}"
            cells.append(f"({reasons.setdefault(reason, 1 + len(reasons))})")
        lines.append(cells)
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n\n"
    text += "".join(f"{number}. {reason}\n" for reason, number in reasons.items())
    total = sum(counts.values())
    return (
        f"{text}\n{counts[OK]} of {total} cells proven, {counts[REFUSED]} refused by name, "
        f"{counts[FAILED]} failed\n"
    )


def main() -> None:
    """Fill the cells and print the table; exit code 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS), help="names, with commas between")
    parser.add_argument("--columns", default=",".join(COLUMNS), help='as "ort int8,web fp16"')
    parser.add_argument("--again", action="store_true", help="also the cells that are there")
    parser.add_argument("--limit", type=float, default=900, help="seconds of a cell")
    parser.add_argument("--out", type=Path, default=Path("runs/matrix"))
    args = parser.parse_args()
    rows, columns = args.rows.split(","), args.columns.split(",")
    for given, known in ((rows, ROWS), (columns, COLUMNS)):
        for name in given:
            if name not in known:
                parser.error(f"{name!r} is none of {', '.join(known)}")
    fill(rows, columns, args.out, again=args.again, limit=args.limit)
    found = table(rows, columns, args.out)
    write_text(args.out / "matrix.md", found)
    print(f"\n{found}\n{args.out / 'matrix.md'}")
    sys.exit(" 0 failed" not in found)


if __name__ == "__main__":
    main()
