"""Kills, damage and hostile inputs, tried on the real programs; `make faults` prints the table.

`python benchmarks/faults.py [--kills 20] [--damages 1500] [--fuzz 1500] [--seed 0]`

Kills: each program runs in a process of its own and is killed (SIGKILL) at a random moment; what
it left must be whole, and a second run must end as one that was left in peace. Damage: a student,
a bundle and a run's checkpoints are damaged at random; what reads them must refuse them by name or
draw the very same samples. Fuzz: tests/cli/test_fuzz.py with so many inputs of each kind. A
process may take 2 GiB and 120 seconds.

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
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
KINDS = ("survived", "lost", "silent", "exception", "memory", "hang")
LIMIT_S, LIMIT_BYTES = 120, 2 * 2**30

MIXTURE = {"weights": [1, 2], "means": [[-1, 0], [1, 0.5]], "scales": [0.2, 0.3]}
DISTIL = (
    *("distill", "recipe=mixture-lcm", "teacher.path=two.json", "out=run"),
    *("train.steps=60", "train.batch_size=64", "train.checkpoint_every=5"),
)
SYNTH = (
    *("synth", "recipe=mixture-kd", "teacher.path=two.json", "out=paths"),
    "data.samples=4096",
)
EXPORT = ("export", "made/student", "--target", "ort", "--precision", "fp32", "--out")
GENERATE = ("generate", "made/student", "--count", "64", "--out", "drawn.npy")
PROGRAMS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "distill": (DISTIL, (*DISTIL, "--resume"), "run/student"),
    "synth": (SYNTH, SYNTH, "paths"),
    "export": ((*EXPORT, "bundle"), (*EXPORT, "bundle"), "bundle"),
    "export over an old bundle": ((*EXPORT, "old"), (*EXPORT, "old"), "old"),
    "generate": (GENERATE, GENERATE, "drawn.npy"),
}
"""By name: the command, what takes it up again, and what it makes."""


# --- Processes ----------------------------------------------------------------------------------


def fork(work: Callable[[], Any], log: Path) -> int:
    """Start `work` in a process of its own, which has what is imported here; return its pid.

    Its exit code is 0, or 2 for a ValueError or a BundleError of one line, or 1.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + LIMIT_BYTES,) * 2)
        work()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except MemoryError:
        code = 9
    except ValueError as error:  # BundleError is one
        print(error)
        code = 2 if "\n" not in str(error).strip() else 1
    except BaseException as error:  # whatever it is, it is counted
        print(repr(error))
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(pid: int, seconds: float = LIMIT_S) -> int | None:
    """The exit code (minus a signal) of a process, or None if it took too long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def verb(words: tuple[str, ...], here: Path) -> Callable[[], None]:
    """The command line in a folder."""

    def run() -> None:
        from edgedistill import cli

        os.chdir(here)
        sys.argv = ["edgedistill", *words]
        cli.main()

    return run


def judged(code: int | None, same: bool) -> str:
    """What became of a process that read something damaged."""
    if code is None:
        return "hang"
    if code == 9:
        return "memory"
    if code == 2:
        return "survived"
    if code:
        return "exception"
    return "survived" if same else "silent"


def copied(folder: Path, place: Path) -> Path:
    """A copy of a folder, its links as they are."""
    return Path(shutil.copytree(folder, place, symlinks=True))


def digest(place: Path) -> str:
    """Hash of a file, or of the weights and numbers in a folder; dates and places do not count."""
    if place.is_file():
        return hashlib.sha256(place.read_bytes()).hexdigest()
    whole = hashlib.sha256()
    for file in sorted(place.rglob("*")):
        if file.suffix in (".safetensors", ".onnx", ".npy") and file.is_file():
            whole.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


# --- Kills --------------------------------------------------------------------------------------


def kills(name: str, count: int, base: Path, dice: random.Random) -> Iterator[str]:
    """Kill a program `count` times, each at a random moment, and take it up again."""
    first, again, made = PROGRAMS[name]
    with tempfile.TemporaryDirectory() as work:
        whole = copied(base, Path(work) / "whole")
        start = time.monotonic()
        code = wait(fork(verb(first, whole), Path(work) / "log"))
        took = time.monotonic() - start
        if code:
            raise SystemExit(f"{name}: exit {code}: {(Path(work) / 'log').read_text()[-500:]}")
        right = digest(whole / made)
    for _ in range(count):
        with tempfile.TemporaryDirectory() as work:
            here, log = copied(base, Path(work) / "here"), Path(work) / "log"
            before = (here / made).exists()
            pid = fork(verb(first, here), log)
            time.sleep(dice.uniform(0, took))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            if before and not (here / made).exists():
                yield "lost"
                continue
            # A run that was killed before it began has nothing to take up.
            begun = "--resume" not in again or (here / "run" / "recipe.yaml").is_file()
            code = wait(fork(verb(again if begun else first, here), log))
            if code:
                yield "lost" if code == 2 else judged(code, False)
                continue
            left = [file for file in here.rglob(".*.part") if file.is_dir()]
            yield "survived" if digest(here / made) == right and not left else "silent"


# --- Damage -------------------------------------------------------------------------------------


def damage(folder: Path, dice: random.Random) -> str:
    """Damage one file of a folder; say how."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    file = dice.choice(files)
    data = bytearray(file.read_bytes())
    kind = dice.choice(("bit", "zeros", "cut", "gone", "more", "swap", "number"))
    at = dice.randrange(max(1, len(data)))
    if kind == "bit" and data:
        data[at] ^= 1 << dice.randrange(8)
    elif kind == "zeros":
        data[at : at + 4096] = bytes(len(data[at : at + 4096]))
    elif kind == "cut":
        del data[at:]
    elif kind == "more":
        data += bytes(dice.randrange(1, 64))
    elif kind == "swap":
        data = bytearray(dice.choice(files).read_bytes())
    elif kind == "number" and file.suffix == ".json":
        digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
        if digits:
            data[dice.choice(digits)] = ord(dice.choice("0123456789"))
    if kind == "gone":
        file.unlink()
    else:
        file.write_bytes(data)
    return f"{kind} {file.relative_to(folder)}"


def draw_student(folder: Path, out: Path) -> None:
    """Eight samples of a student."""
    import numpy as np
    import torch

    from edgedistill.students.folder import load_student

    student = load_student(folder)
    shape = (8, *student.teacher.sample_shape)
    noise = student.table.draw(shape, torch.Generator().manual_seed(0))
    prompts = list(student.teacher.prompts)[:1] * 8
    cond = student.teacher.encode(prompts) if prompts else {}
    np.save(out, student.teacher.decode(student.sample(cond, noise)).detach().numpy())


def draw_bundle(folder: Path, out: Path) -> None:
    """Eight samples of a bundle."""
    import numpy as np

    from edgedistill_runtime import Pipeline

    np.save(out, Pipeline.load(folder).samples(8, seed=0).samples)


def resume(folder: Path, out: Path) -> None:
    """The student of a run that goes on from its checkpoint."""
    try:
        verb((*DISTIL, "--resume"), folder)()
    except SystemExit as stop:
        if stop.code:
            raise
    draw_student(folder / "run" / "student", out)


READERS: dict[str, tuple[str, str, Callable[[Path, Path], None]]] = {
    "student": ("made/student", "", draw_student),
    "bundle": ("old", "", draw_bundle),
    "checkpoint": (".", "run/checkpoints", resume),
}
"""By name: the folder that is copied, what of it is damaged, and what reads it."""


def damages(name: str, count: int, base: Path, dice: random.Random) -> Iterator[str]:
    """Damage an artefact `count` times and read it."""
    place, part, read = READERS[name]
    with tempfile.TemporaryDirectory() as work:
        whole = copied(base / place, Path(work) / "whole")
        code = wait(fork(lambda: read(whole, Path(work) / "right.npy"), Path(work) / "log"))
        if code:
            raise SystemExit(f"{name}: {(Path(work) / 'log').read_text()[-500:]}")
        right = digest(Path(work) / "right.npy")
    for _ in range(count):
        with tempfile.TemporaryDirectory() as work:
            copy, out = (
                copied(base / place, Path(work) / "copy"),
                Path(work) / "found.npy",
            )
            how = damage(copy / part, dice)
            code = wait(fork(lambda c=copy, o=out: read(c, o), Path(work) / "log"))
            found = judged(code, out.is_file() and digest(out) == right)
            if found != "survived":
                said = (Path(work) / "log").read_text().strip().splitlines()
                print(f"{name}: {how}: {found}: {said[-1][:160] if said else ''}", file=sys.stderr)
            yield found


# --- The table ----------------------------------------------------------------------------------


def prepare(base: Path) -> None:
    """What the programs work on: a mixture, a run with its checkpoints, a student and a bundle."""
    (base / "two.json").write_text(json.dumps(MIXTURE))
    made = (*DISTIL[:3], "out=made", *DISTIL[4:])
    export = (*PROGRAMS["export over an old bundle"][0],)
    for words in (made, export):
        code = wait(fork(verb(words, base), base / "log"), 600)
        if code:
            raise SystemExit((base / "log").read_text()[-800:])


def fuzzed(count: int) -> tuple[Counter[str], int]:
    """Outcome of the fuzz tests with `count` inputs of each kind, and how many kinds there are."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/cli/test_fuzz.py"],
        cwd=ROOT,
        env={**os.environ, "FUZZ": str(count)},
        capture_output=True,
        text=True,
    )
    print(run.stdout[-1500:] if run.returncode else "", file=sys.stderr, end="")
    passed, failed = (
        int((run.stdout.split(f" {word}")[0].rsplit(maxsplit=1) or ["0"])[-1].lstrip("=") or 0)
        if f" {word}" in run.stdout
        else 0
        for word in ("passed", "failed")
    )
    return Counter({"survived": passed * count, "exception": failed}), passed + failed


def row(name: str, found: Counter[str]) -> str:
    """A line of the table."""
    cells = [str(sum(found.values())), *(str(found[kind]) for kind in KINDS)]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table, a row as soon as it is known; exit code 1 if anything did not survive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of each program")
    parser.add_argument("--damages", type=int, default=1500, help="of all artefacts")
    parser.add_argument("--fuzz", type=int, default=1500, help="inputs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from edgedistill.students import folder as student  # noqa: F401  imported once, before the forks
    from edgedistill.teachers.families import mixture

    mixture.FIT_STEPS, mixture.FIT_BATCH = 20, 64
    total: Counter[str] = Counter()
    print(f"| fault | tries | {' | '.join(KINDS)} |\n|---|{'---|' * (len(KINDS) + 1)}", flush=True)
    with tempfile.TemporaryDirectory() as work:
        base = Path(work) / "base"
        base.mkdir()
        prepare(base)
        for name in PROGRAMS if args.kills else ():
            dice = random.Random(f"{args.seed} kill {name}")
            found = Counter(kills(name, args.kills, base, dice))
            total += found
            print(row(f"kill of {name}", found), flush=True)
        shutil.copytree(base / "made", base / "run")
        shutil.rmtree(base / "run" / "student")
        for name in READERS if args.damages else ():
            dice = random.Random(f"{args.seed} damage {name}")
            found = Counter(damages(name, -(-args.damages // len(READERS)), base, dice))
            total += found
            print(row(f"damage of a {name}", found), flush=True)
    if args.fuzz:
        found, kinds = fuzzed(args.fuzz)
        total += found
        print(row(f"fuzz, {kinds} kinds", found), flush=True)
    print(row("all", total))
    sys.exit(any(total[kind] for kind in KINDS[1:]))


if __name__ == "__main__":
    main()
