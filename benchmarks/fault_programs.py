"""What `faults.py` kills and damages: programs in processes of their own, and what reads.

`fork` starts one, `wait` ends it in time, `judged` says what came of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

LIMIT_S, LIMIT_BYTES = 120, 2 * 2**30
MEMORY = 9
"""Exit code of a process that asked for more than `LIMIT_BYTES`."""

MIXTURE = {"weights": [1, 2], "means": [[-1, 0], [1, 0.5]], "scales": [0.2, 0.3]}
TINY = """\
description: tiny run
teacher: {family: stable_diffusion, path: sd, guidance: 3.0, steps: 4}
student: {steps: 4, sampler: renoise}
objective: {name: lcm, solver_steps: 4}
data: {samples: 8}
train: {steps: 4, batch_size: 2, optim: {lr: 1.0e-4}, checkpoint_every: 2, sample_every: 1000}
"""
LORA = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"

DISTIL = (
    *("distill", "recipe=mixture-lcm", "teacher.path=two.json", "out=run"),
    *("train.steps=30", "train.batch_size=64", "train.checkpoint_every=3"),
    "train.sample_every=1000",
)
PAINT = ("distill", "recipe=./tiny.yaml", "data.pictures=pictures", "out=painted")
SYNTH = ("synth", "recipe=mixture-kd", "teacher.path=two.json", "out=paths", "data.samples=2048")
FOLLOW = (
    *("distill", "recipe=mixture-kd", "teacher.path=two.json", "data.paths=paths", "out=followed"),
    *("train.steps=3", "data.samples=2048"),
)
EXPORT = ("export", "made/student", "--target", "ort", "--precision", "fp32", "--out")
GENERATE = ("generate", "made/student", "--count", "64", "--out", "drawn.npy")
ADOPT = ("adopt", "lora.safetensors", "--as", "lcm-lora", "--base", "sd", "--out", "adopted")
EVALUATE = ("evaluate", "made", "--samples", "64")
REPORT = ("report", "made")
PROGRAMS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "distill": (DISTIL, (*DISTIL, "--resume"), "run/student"),
    "distill from pictures": (PAINT, (*PAINT, "--resume"), "painted/student"),
    "synth": (SYNTH, SYNTH, "paths"),
    "adopt": (ADOPT, ADOPT, "adopted"),
    "export": ((*EXPORT, "bundle"), (*EXPORT, "bundle"), "bundle"),
    "export over an old bundle": ((*EXPORT, "old"), (*EXPORT, "old"), "old"),
    "generate": (GENERATE, GENERATE, "drawn.npy"),
    "evaluate": (EVALUATE, EVALUATE, "made/eval.json"),
    "report": (REPORT, REPORT, "made/report.html"),
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
    # tqdm's own lock is one for all processes, and a killed one may have died with it.
    tqdm.set_lock(threading.RLock())
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
        code = MEMORY
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
    named = {None: "hang", MEMORY: "memory", 2: "survived", 0: "survived" if same else "silent"}
    return named.get(code, "exception")


def last_line(log: Path) -> str:
    """What a process said last, 300 characters at most."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1][:300] if lines else ""


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
    prompts = ["red apple"] * 8 if student.teacher.prompts else []
    cond = student.teacher.encode(prompts) if prompts else {}
    np.save(out, student.teacher.decode(student.sample(cond, noise)).detach().numpy())


def draw_bundle(folder: Path, out: Path) -> None:
    """Eight samples of a bundle."""
    import numpy as np

    from edgedistill_runtime import Pipeline

    pipe = Pipeline.load(folder)
    made = pipe(["red apple"] * 8, seed=0) if pipe.tokenizer else pipe.samples(8, seed=0)
    np.save(out, made.samples)


def trained(words: tuple[str, ...], run: str) -> Callable[[Path, Path], None]:
    """A reader that runs a command, and draws with the student that it makes."""

    def read(folder: Path, out: Path) -> None:
        try:
            verb(words, folder)()
        except SystemExit as stop:
            if stop.code:
                raise
        draw_student(folder / run / "student", out)

    return read


@dataclass(frozen=True)
class Reader:
    """What reads an artefact.

    Attributes:
        share: Of all damages, in parts; what reads fast has more.
        read: (copy of `folder`, file for what is drawn).
        folder: What is copied.
        part: What of it is damaged.
        away: What of it is taken away first.
    """

    share: int
    read: Callable[[Path, Path], None]
    folder: str = "."
    part: str = ""
    away: tuple[str, ...] = ()


READERS = {
    "student": Reader(4, draw_student, "made/student"),
    "student of pictures": Reader(4, draw_student, "painted/student"),
    "bundle": Reader(3, draw_bundle, "old"),
    "bundle of pictures": Reader(3, draw_bundle, "painted-bundle"),
    "checkpoint": Reader(2, trained((*DISTIL, "--resume"), "run"), part="run/checkpoints"),
    "set of paths": Reader(2, trained(FOLLOW, "followed"), part="paths"),
    "picture cache": Reader(
        *(2, trained((*PAINT, "--resume"), "painted"), ".", "painted/data"),
        away=("painted/student", "painted/checkpoints"),
    ),
}


# --- What they work on --------------------------------------------------------------------------


def prepare(base: Path) -> None:
    """A mixture and a tiny Stable Diffusion; of each a run, a student and a bundle; paths."""
    from edgedistill.teachers.families import mixture

    mixture.FIT_STEPS, mixture.FIT_BATCH = 20, 64
    (base / "two.json").write_text(json.dumps(MIXTURE))
    _pictures(base)
    for words in (
        (*DISTIL[:3], "out=made", *DISTIL[4:]),
        (*EXPORT, "old"),
        PAINT,
        ("export", "painted/student", *EXPORT[2:], "painted-bundle"),
        SYNTH,
    ):
        code = wait(fork(verb(words, base), base / "log"), 600)
        if code:
            raise SystemExit(f"{' '.join(words)}: {(base / 'log').read_text()[-800:]}")


def _pictures(base: Path) -> None:
    """A tiny Stable Diffusion, six pictures, a LoRA, and a recipe that reads them."""
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    from edgedistill.tiny import stable_diffusion

    torch.manual_seed(0)
    stable_diffusion.pipeline(prediction_type="epsilon").save_pretrained(base / "sd")
    (base / "pictures").mkdir()
    for i in range(6):
        Image.new("RGB", (32, 32), (40 * i, 200 - 30 * i, 90)).save(base / f"pictures/{i}.png")
        (base / f"pictures/{i}.txt").write_text(f"apple number {i}")
    parts = {"lora_down.weight": (4, 32), "lora_up.weight": (32, 4)}
    save_file(
        {f"{LORA}.{name}": torch.randn(shape) for name, shape in parts.items()},
        base / "lora.safetensors",
    )
    (base / "tiny.yaml").write_text(TINY)
