"""Training steps a second on emoji, of this checkout and of another, in turns.

    python benchmarks/training_speed.py CHECKOUT [--recipes emoji-lcm,emoji-dmd2,emoji-pcm]

CHECKOUT is a folder with another commit (`git worktree add FOLDER COMMIT`). Each run is a process
of its own that distils --steps steps; the first logged interval, in which memory is first touched,
does not count. Prints steps a second of both, the median over --rounds rounds with the least and
the largest, and the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from peers_tables import Failed, Figures, Subject, markdown, ratio, spread, take_turns

HERE = Path(__file__).resolve().parents[1]
PROGRAM = "from edgedistill.cli import main; main()"
INTERVAL = 5
"""Steps between two lines of metrics."""


def distilled(recipe: str, checkout: Path, steps: int, threads: int) -> Figures:
    """Distil with the code of a checkout; return its steps a second."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "run"
        command = [sys.executable, "-c", PROGRAM, "distill", f"recipe={recipe}"]
        command += [f"train.steps={steps}", f"train.log_every={INTERVAL}", f"out={folder}"]
        places = (checkout, checkout / "export", checkout / "runtime")
        given = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
        given |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        done = subprocess.run(
            command, cwd=work, env=given, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Failed((done.stderr.strip().splitlines() or ["no message"])[-1][:300])
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    first, last = ({key: row[key] for key in ("step", "seconds")} for row in (rows[0], rows[-1]))
    return {"rate": (last["step"] - first["step"]) / (last["seconds"] - first["seconds"])}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="folder with the other commit")
    parser.add_argument(
        "--recipes",
        type=lambda text: text.split(","),
        default=["emoji-lcm", "emoji-dmd2", "emoji-pcm"],
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if not (args.checkout / "edgedistill" / "cli.py").is_file():
        parser.error(f"{args.checkout}: no checkout of edgedistill")
    places = {"here": HERE, "there": args.checkout.resolve()}
    names = {f"{recipe} {side}": (recipe, side) for recipe in args.recipes for side in places}

    def measure(subject: Subject) -> Figures:
        recipe, side = names[subject.name]
        return distilled(recipe, places[side], args.steps, args.threads)

    outcomes = take_turns([Subject(name=name) for name in names], args.rounds, measure)
    rows = []
    for recipe in args.recipes:
        here, there = (outcomes[f"{recipe} {side}"] for side in places)
        if reason := here.reason or there.reason:
            rows.append([recipe, reason])
            continue
        ours, theirs = here.values(("rate",)), there.values(("rate",))
        rows.append([recipe, spread(ours), spread(theirs), ratio(ours, theirs)])
    print(markdown(["recipe", "steps/s here", f"{args.checkout.name}", "ratio"], rows))


if __name__ == "__main__":
    main()
