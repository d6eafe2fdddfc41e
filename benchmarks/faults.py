"""Kills, damage and hostile inputs, tried on the real programs; `make faults` prints the table.

`python benchmarks/faults.py [--kills 20] [--damages 1500] [--fuzz 500] [--seed 0] [--out DIR]`

Kills: each program runs in a process of its own and is killed (SIGKILL) at a random moment; what
it left must be whole, and a second run must end as one that was left in peace. Damage: students,
bundles, checkpoints and data are damaged at random; what reads them must refuse them by name or
draw the very same samples. Fuzz: tests/cli/test_fuzz.py with so many inputs of each kind. A
process may take 2 GiB and 120 seconds.

Each try is a line in DIR/tries.jsonl, and one that is there already is not repeated: what was
interrupted goes on. A try follows from the seed, its class and its number.

A try ends as one of:
    survived   the same result, or a refusal of one line (exit code 2)
    lost       what was there before, or a result that was promised, is gone
    silent     another result, without a word
    exception  an error that is no refusal
    memory     more than 2 GiB
    hang       more than 120 seconds
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from fault_programs import (
    PROGRAMS,
    READERS,
    copied,
    damage,
    digest,
    fork,
    judged,
    last_line,
    prepare,
    verb,
    wait,
)

ROOT = Path(__file__).parents[1]
FUZZ = "tests/cli/test_fuzz.py"
FUZZ_LIMIT_S = 3600
KINDS = ("survived", "lost", "silent", "exception", "memory", "hang")

LOADED = (
    *(
        "edgedistill.cli",
        "edgedistill.adoption",
        "edgedistill.runs.run_dir",
        "edgedistill.runs.synth",
    ),
    *("edgedistill.draw.generate", "edgedistill.evaluation.run", "edgedistill.reporting.page"),
    *("edgedistill_export.many", "edgedistill_export.onnx_build", "onnxscript", "onnxruntime"),
)
"""Modules that are read once, before any fork."""

Told = tuple[str, str, str]
"""What a try ended as, what was done, and what was said last."""


# --- What was tried -----------------------------------------------------------------------------


class Tries:
    """A line of JSON for each try, in a file that is read again.

    Args:
        path: The file; None keeps nothing.
        seed: Only lines of this seed count.
    """

    def __init__(self, path: Path | None, seed: int) -> None:
        self.path, self.seed = path, seed
        self.found: dict[tuple[str, str], dict[str, Any]] = {}
        self._cut = False
        if path is not None and path.is_file():
            text = path.read_text()
            self._cut = text[-1:] not in ("", "\n")
            for line in text.splitlines():
                with suppress(ValueError):  # of a line that a kill has cut
                    self._keep(json.loads(line))

    def _keep(self, line: dict[str, Any]) -> None:
        if line["seed"] == self.seed:
            self.found[line["class"], str(line["try"])] = line

    def run(
        self, name: str, number: int | str, work: Callable[[random.Random], Told], count: int = 1
    ) -> None:
        """Try something, unless it has been tried."""
        if (name, str(number)) in self.found:
            return
        start = time.monotonic()
        found, how, said = work(random.Random(f"{self.seed} {name} {number}"))
        line: dict[str, int | float | str] = {"class": name, "try": number, "seed": self.seed}
        line |= {"inputs": count, "found": found, "how": how, "said": said}
        line["seconds"] = round(time.monotonic() - start, 2)
        self._keep(line)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write("\n" * self._cut + json.dumps(line) + "\n")
            self._cut = False
        if found != "survived":
            print(f"{name} {number}: {how}: {found}: {said[:160]}", file=sys.stderr, flush=True)

    def counted(self, name: str, tries: set[str]) -> Counter[str]:
        """How many inputs of a class ended as what."""
        counts: Counter[str] = Counter()
        for (own, number), line in self.found.items():
            if own == name and number in tries:
                bad = line["found"] != "survived"
                counts[line["found"]] += 1 if bad else line["inputs"]
        return counts


# --- Kills --------------------------------------------------------------------------------------


def timed(name: str, base: Path) -> tuple[float, str]:
    """How many seconds a program takes that is left in peace, and the hash of what it makes."""
    first, _, made = PROGRAMS[name]
    with tempfile.TemporaryDirectory() as work:
        whole = copied(base, Path(work) / "whole")
        _fresh(name, whole)
        start = time.monotonic()
        code = wait(fork(verb(first, whole), Path(work) / "log"))
        took = time.monotonic() - start
        if code != 0:
            raise SystemExit(f"{name}: exit {code}: {last_line(Path(work) / 'log')}")
        return took, _result(whole / made)


def killed(name: str, base: Path, took: float, right: str, dice: random.Random) -> Told:
    """Kill a program at a random moment, and take it up again."""
    first, again, made = PROGRAMS[name]
    with tempfile.TemporaryDirectory() as work:
        here, log = copied(base, Path(work) / "here"), Path(work) / "log"
        _fresh(name, here)
        before, moment = (here / made).exists(), dice.uniform(0, took)
        how = f"killed after {moment:.2f} of {took:.2f} s"
        pid = fork(verb(first, here), log)
        time.sleep(moment)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if before and not (here / made).exists():
            return "lost", how, f"{made} is gone"
        # A run that was killed before it began has nothing to take up.
        begun = "--resume" not in again or (here / made).parent.joinpath("recipe.yaml").is_file()
        code = wait(fork(verb(again if begun else first, here), log))
        if code != 0:
            return ("lost" if code == 2 else judged(code, False)), how, last_line(log)
        left = [str(path.relative_to(here)) for path in here.rglob(".*.part")]
        if left:
            return "silent", how, f"left {', '.join(left)}"
        same = _result(here / made) == right
        return ("survived" if same else "silent"), how, "" if same else f"another {made}"


def _fresh(name: str, folder: Path) -> None:
    """Take away what a program is to make, but for what it is to replace."""
    made = folder / PROGRAMS[name][2]
    if "old" not in name and made.is_dir():
        shutil.rmtree(made.parent if made.name == "student" else made)


def _result(place: Path) -> str:
    """Hash of what a program made; of a report, which tells the time, that it is whole."""
    if place.suffix == ".json":
        return json.dumps(_without_times(json.loads(place.read_text())), sort_keys=True)
    if place.suffix == ".html":
        return str(place.read_text().rstrip().endswith("</html>"))
    return digest(place)


def _without_times(data: Any) -> Any:
    """JSON without what each run has anew: dates, seconds and places."""
    if isinstance(data, dict):
        left = {k: v for k, v in data.items() if not {"date", "seconds", "path"} & {k}}
        return {key: _without_times(value) for key, value in left.items()}
    return [_without_times(value) for value in data] if isinstance(data, list) else data


# --- Damage -------------------------------------------------------------------------------------


def _given(name: str, base: Path, place: Path) -> Path:
    """A copy of what a reader reads."""
    copy = copied(base / READERS[name].folder, place)
    for each in READERS[name].away:
        shutil.rmtree(copy / each)
    return copy


def drawn(name: str, base: Path) -> str:
    """Hash of what a reader draws from something whole."""
    with tempfile.TemporaryDirectory() as work:
        whole, out = _given(name, base, Path(work) / "whole"), Path(work) / "right.npy"
        code = wait(fork(lambda: READERS[name].read(whole, out), Path(work) / "log"))
        if code != 0:
            raise SystemExit(f"{name}: exit {code}: {last_line(Path(work) / 'log')}")
        return digest(out)


def damaged(name: str, base: Path, right: str, dice: random.Random) -> Told:
    """Damage an artefact and read it."""
    reader = READERS[name]
    with tempfile.TemporaryDirectory() as work:
        copy, out = _given(name, base, Path(work) / "copy"), Path(work) / "found.npy"
        how = damage(copy / reader.part, dice)
        code = wait(fork(lambda: reader.read(copy, out), Path(work) / "log"))
        same = out.is_file() and digest(out) == right
        return judged(code, same), how, last_line(Path(work) / "log")


# --- Fuzz ---------------------------------------------------------------------------------------


def fuzz_tests() -> list[str]:
    """Names of the fuzz tests."""
    # The project's own options would print only how many there are.
    words = ["-m", "pytest", "-o", "addopts=", "-q", "--collect-only", FUZZ]
    run = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = [line.partition("::")[2] for line in run.stdout.splitlines() if "::" in line]
    if not found:
        raise SystemExit(f"{FUZZ}: pytest lists no test; it said: {run.stdout[:200]!r}")
    return found


def fuzzed(test: str, count: int, seed: int, dice: random.Random) -> Told:
    """Run one fuzz test with `count` inputs."""
    how = f"{count} inputs"
    try:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--tb=short", f"{FUZZ}::{test}"],
            cwd=ROOT,
            env={**os.environ, "FUZZ": str(count), "FUZZ_SEED": str(seed)},
            capture_output=True,
            text=True,
            timeout=FUZZ_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return "hang", how, ""
    if run.returncode == 0:
        return "survived", how, ""
    said = [line for line in run.stdout.splitlines() if line.startswith("E  ")] or [run.stderr]
    memory = any("MemoryError" in line or "bad_alloc" in line for line in said)
    return ("memory" if memory else "exception"), how, " ".join(said)[-1500:]


# --- The table ----------------------------------------------------------------------------------


def row(name: str, found: Counter[str]) -> str:
    """A line of the table."""
    cells = [str(sum(found.values())), *(str(found[kind]) for kind in KINDS)]
    return f"| {name} | {' | '.join(cells)} |"


def kill_all(tries: Tries, count: int, base: Path) -> Counter[str]:
    """Kill each program `count` times, print a row for each, and return all."""
    total: Counter[str] = Counter()
    for name in PROGRAMS if count else ():
        took, right = timed(name, base)
        for number in range(count):
            tries.run(f"kill of {name}", number, partial(killed, name, base, took, right))
        total += _rowed(tries, f"kill of {name}", [str(i) for i in range(count)])
    return total


def damage_all(tries: Tries, count: int, base: Path) -> Counter[str]:
    """Damage artefacts `count` times in all, print a row for each, and return all."""
    total: Counter[str] = Counter()
    shares = sum(reader.share for reader in READERS.values())
    for name, reader in READERS.items() if count else ():
        each = -(-count * reader.share // shares)
        right, title = drawn(name, base), f"damage of a {name}"
        for number in range(each):
            tries.run(title, number, partial(damaged, name, base, right))
        total += _rowed(tries, title, [str(i) for i in range(each)])
    return total


def fuzz_all(tries: Tries, count: int) -> Counter[str]:
    """Run each fuzz test with `count` inputs, print one row, and return it."""
    tests = fuzz_tests() if count else []
    names = [f"{test} x {count}" for test in tests]
    for test, name in zip(tests, names, strict=True):
        tries.run("fuzz", name, partial(fuzzed, test, count, tries.seed), count)
    return _rowed(tries, "fuzz", names, f"fuzz, {len(tests)} kinds") if count else Counter()


def _rowed(tries: Tries, name: str, numbers: list[str], title: str = "") -> Counter[str]:
    found = tries.counted(name, set(numbers))
    print(row(title or name, found), flush=True)
    return found


def main() -> None:
    """Print the table, a row as soon as it is known; exit code 1 if anything did not survive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of each program")
    parser.add_argument("--damages", type=int, default=1500, help="of all artefacts")
    parser.add_argument("--fuzz", type=int, default=500, help="inputs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder of tries.jsonl, which is gone on with")
    args = parser.parse_args()
    for module in LOADED:
        importlib.import_module(module)
    tries = Tries(args.out and args.out / "tries.jsonl", args.seed)
    print(f"| fault | tries | {' | '.join(KINDS)} |\n|---|{'---|' * (len(KINDS) + 1)}", flush=True)
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as work:
        base = Path(work) / "base"
        base.mkdir()
        prepare(base)
        total += kill_all(tries, args.kills, base)
        shutil.copytree(base / "made", base / "run")
        shutil.rmtree(base / "run" / "student")
        total += damage_all(tries, args.damages, base)
    total += fuzz_all(tries, args.fuzz)
    print(row("all", total))
    sys.exit(any(total[kind] for kind in KINDS[1:]))


if __name__ == "__main__":
    main()
