"""Draw the picture of README: teacher, student and bundle, with the time of a picture under each.

`python examples/emoji/side_by_side.py RUN BUNDLE OUT.png` after `edgedistill bench` of the run,
whose bench.json has the times. All three draw the same captions from the same noise.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from edgedistill.draw.generate import open_subject, teacher_of
from edgedistill.draw.subjects import Subject, teacher_subject
from edgedistill.students.folder import load_student
from edgedistill_runtime.noise import noise
from PIL import Image, ImageDraw, ImageFont

CAPTIONS = (
    *("red apple, noto", "ghost, twemoji", "pizza, noto", "rainbow, noto"),
    *("cat face, noto", "hot beverage, twemoji", "sunflower, noto", "rocket, noto"),
)
SEED, COLUMNS, GAP, SIZE = 3, 4, 10, 64
INK, SOFT = "#1f2328", "#59636e"


def subjects(run: Path, bundle: Path) -> list[tuple[str, Subject]]:
    """Return what draws, with its name in bench.json."""
    student = load_student(run / "student")
    recipe = student.info.recipe["teacher"]
    settings = {"guidance": recipe["guidance"], "steps": recipe["steps"]}
    teacher = teacher_subject("teacher", teacher_of(student), noise, **settings)
    return [
        ("teacher", teacher),
        ("student", open_subject(run / "student")[0]),
        (f"bundle:{bundle.name}", open_subject(bundle)[0]),
    ]


def sheet(drawn: Any) -> Image.Image:
    """Lay pictures (N, H, W, 3) in rows of `COLUMNS`."""
    rows = -(-len(drawn) // COLUMNS)
    step = SIZE + 2
    made = Image.new("RGB", (COLUMNS * step - 2, rows * step - 2), "white")
    for index, picture in enumerate(drawn):
        at = (index % COLUMNS * step, index // COLUMNS * step)
        made.paste(Image.fromarray(picture), at)
    return made


def main() -> None:
    """Draw and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    times = json.loads((args.run / "bench.json").read_text(encoding="utf-8"))
    panels = []
    for name, subject in subjects(args.run, args.bundle):
        drawn = subject.draw(CAPTIONS, SEED, lambda done: None)
        panels.append((name, subject.calls, 1000 * times[name]["p50_s"], sheet(drawn)))
    width, height = panels[0][3].size
    total = (3 * width + 2 * 3 * GAP + 2 * GAP, height + 2 * GAP + 44)
    canvas = Image.new("RGB", total, "white")
    pen = ImageDraw.Draw(canvas)
    large, small = (ImageFont.load_default(size) for size in (18, 14))
    for index, (name, calls, ms, picture) in enumerate(panels):
        left = GAP + index * (width + 3 * GAP)
        canvas.paste(picture, (left, GAP))
        middle = left + width // 2
        label = name.removeprefix("bundle:")
        kind = f"bundle {label}" if name.startswith("bundle:") else label
        pen.text((middle, height + GAP + 18), f"{ms:.0f} ms", INK, large, anchor="mm")
        pen.text((middle, height + GAP + 38), f"{kind}, {calls} calls", SOFT, small, anchor="mm")
    canvas.save(args.out, optimize=True)
    print(f"{args.out}: {canvas.size}")


if __name__ == "__main__":
    main()
