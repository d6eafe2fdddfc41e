"""Training steps a second on emoji, of this checkout and of another, in turns.

    python benchmarks/training_speed.py CHECKOUT [--recipes emoji-lcm,emoji-dmd2,emoji-pcm]
    python benchmarks/training_speed.py --compile [--recipes emoji-lcm,emoji-dmd2]

CHECKOUT is a folder with another commit (`git worktree add FOLDER COMMIT`). With --compile, this
checkout is compared with itself, with and without train.compile. Each run is a process of its own
that distils --steps steps; the first logged interval, in which memory is first touched and
networks are compiled, does not count. Prints steps a second of both, the median over --rounds
rounds with the least and the largest, the ratio, and seconds of the first interval. Each run
compiles everything itself, with an empty cache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from peers_tables import Failed, Figures, Subject, markdown, ratio, spread, take_turns

HERE = Path(__file__).resolve().parents[1]
PROGRAM = "from edgedistill.cli import main; main()"
INTERVAL = 5
"""Steps between two lines of metrics."""


def distilled(
    recipe: str, checkout: Path, words: Sequence[str], steps: int, threads: int
) -> Figures:
    """Distil with the code of a checkout; return steps a second, and seconds of the first ones."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "run"
        command = [sys.executable, "-c", PROGRAM, "distill", f"recipe={recipe}"]
        command += [f"train.steps={steps}", f"train.log_every={INTERVAL}", f"out={folder}", *words]
        places = (checkout, checkout / "export", checkout / "runtime")
        given = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
        given["TORCHINDUCTOR_CACHE_DIR"] = str(Path(work) / "compiled")
        given |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        done = subprocess.run(
            command, cwd=work, env=given, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Failed((done.stderr.strip().splitlines() or ["no message"])[-1][:300])
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    first, last = ({key: row[key] for key in ("step", "seconds")} for row in (rows[0], rows[-1]))
    rate = (last["step"] - first["step"]) / (last["seconds"] - first["seconds"])
    return {"rate": rate, "first": first["seconds"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, nargs="?", help="folder with the other commit")
    parser.add_argument(
        "--compile", action="store_true", help="compare with and without train.compile instead"
    )
    parser.add_argument(
        "--recipes",
        type=lambda text: text.split(","),
        default=["emoji-lcm", "emoji-dmd2", "emoji-pcm"],
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.compile == (args.checkout is not None):
        parser.error("one of CHECKOUT and --compile expected")
    if args.steps <= INTERVAL:
        parser.error(f"--steps={args.steps}: more than {INTERVAL} expected")
    sides: dict[str, tuple[Path, list[str]]]
    if args.compile:
        sides = {"train.compile": (HERE, ["train.compile=true"]), "without": (HERE, [])}
    elif (args.checkout / "edgedistill" / "cli.py").is_file():
        sides = {"here": (HERE, []), args.checkout.name: (args.checkout.resolve(), [])}
    else:
        parser.error(f"{args.checkout}: no checkout of edgedistill")
    names = {f"{recipe} {side}": (recipe, side) for recipe in args.recipes for side in sides}

    def measure(subject: Subject) -> Figures:
        recipe, side = names[subject.name]
        return distilled(recipe, *sides[side], args.steps, args.threads)

    outcomes = take_turns([Subject(name=name) for name in names], args.rounds, measure)
    rows = []
    for recipe in args.recipes:
        one, other = (outcomes[f"{recipe} {side}"] for side in sides)
        if reason := one.reason or other.reason:
            rows.append([recipe, reason])
            continue
        ours, theirs = one.values(("rate",)), other.values(("rate",))
        seconds = [spread(each.values(("first",))) for each in (one, other)]
        rows.append([recipe, spread(ours), spread(theirs), ratio(ours, theirs), *seconds])
    heads = [f"steps/s, {side}" for side in sides]
    firsts = [f"s of the first {INTERVAL}, {side}" for side in sides]
    print(markdown(["recipe", *heads, "ratio", *firsts], rows))


if __name__ == "__main__":
    main()
