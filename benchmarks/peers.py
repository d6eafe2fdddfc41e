"""The exported student against the runtimes that its users would choose instead.

    python benchmarks/peers.py [RUN/student] [--rows a,b,c,d,f,g,h]        # `make peers`

Every subject is measured in a process of its own, subjects in turns, for --rounds rounds. Prompts,
seeds, steps and threads are the same on both sides. A figure is the median over the rounds of a
round's median, with (least..largest); "x NAME" is a subject's figure over that of ours. A subject
that cannot run is a row with its reason. The rows:

- a: one picture a call: every bundle in RUN/bundles, diffusers, diffusers compiled by torch,
  optimum's ONNX Runtime pipeline, OpenVINO GenAI, and the teacher with its guided steps;
- b: a U-Net of Stable Diffusion 1.5's size with random weights, whole and with a stride in its
  attention, our OpenVINO exports, against what a chain of matrix products reaches through the same
  engine;
- c: teacher, student and bundles by stage, and those of --one-step;
- d: a whole process that draws one picture, with an empty cache of the engine and with a full one,
  and its peak of memory;
- f: a picture's time in batches of 1 to 8, and with 1 to 8 steps;
- h: stages of a picture at SD 1.5's size, random weights: in diffusers and exported, and their sum
  for the teacher, and for students of 4 steps and of 1, whole, with a stride in their attention,
  as small as BK-SDM's, and with steps that reuse deep blocks;
- g: onnxruntime-web in node: the web bundles by our runtime, and optimum's graphs by a loop as
  programs over transformers.js have it.

OpenVINO GenAI draws with DDIM, which calls the network as often: its LCM scheduler does not know
our prediction of v. Its batches are of one prompt. optimum and GenAI get environments of their own
in --out, made once. Writes --out/peers.md.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from interop import OPTIMUM, environment
from openvino_sd15 import FIGURES
from peers_tables import (
    PRECISIONS,
    Column,
    Failed,
    Figures,
    Outcome,
    Subject,
    chain_table,
    share_table,
    table,
    take_turns,
    wide_table,
)
from sd15 import gflop

from edgedistill.common.files import read_json, write_text
from edgedistill_export.bench_subjects import TEACHER, BenchSubject, find_subjects
from edgedistill_runtime.machine import cores, processor
from edgedistill_runtime.manifest import Manifest

HERE = Path(__file__).parent
PROGRAMS, GRAPHS_PROGRAM = HERE / "peers_programs.py", HERE / "openvino_sd15.py"
WEB_PROGRAM, WEB_BENCH = HERE / "peers_web.mjs", HERE.parent / "runtime" / "web" / "bench.mjs"
GENAI = (
    *("torch==2.13.0", "optimum-intel[openvino]", "openvino-genai", "openvino-tokenizers"),
    "diffusers",
)
ENVIRONMENTS = {"optimum": OPTIMUM, "genai": GENAI}
"""Packages of a peer's environment, by its program."""

OURS_BY_STAGE = ("text_encoder", "denoiser", "decoder", "other")
BATCHES, STEPS = (1, 2, 4, 8), (1, 2, 4, 8)
EAGER, GUIDED = "diffusers", "guided"
"""In diffusers in float32: one prompt, or the prompt and the empty one that guidance needs."""
UNETS = ("unet", "unet-stride2", "unet-bk-small", "unet-bk-tiny", "unet-bk-tiny-stride2")
PICTURES: dict[str, dict[str, int]] = {
    "teacher, 25 guided steps": {
        f"text {GUIDED}": 1,
        f"unet {GUIDED}": 25,
        f"decoder {EAGER}": 1,
    },
    "student, 4 steps, diffusers": {
        f"text {EAGER}": 1,
        f"unet {EAGER}": 4,
        f"decoder {EAGER}": 1,
    },
    "ours, 4 steps, bf16": {"text bf16": 1, "unet bf16": 4, "decoder bf16": 1},
    "ours, 4 steps, int8": {"text bf16": 1, "unet int8": 4, "decoder bf16": 1},
    **{
        f"ours, {steps} steps, {unet} int8, tiny decoder": {
            "text bf16": 1,
            f"{unet} int8": steps,
            "tiny-decoder bf16": 1,
        }
        for steps in (4, 1)
        for unet in UNETS
    },
    **{
        f"ours, 4 steps, {cut} int8 in 3 of them, tiny decoder": {
            "text bf16": 1,
            "unet int8": 1,
            f"{cut} int8": 3,
            "tiny-decoder bf16": 1,
        }
        for cut in ("unet-outer", "unet-last")
    },
    "ours, 1 step, unet-bk-tiny-stride2 int8, tiny decoder int8": {
        "text bf16": 1,
        "unet-bk-tiny-stride2 int8": 1,
        "tiny-decoder int8": 1,
    },
    "the same, another picture of the prompt": {
        "unet-bk-tiny-stride2 int8": 1,
        "tiny-decoder int8": 1,
    },
}
"""Calls of each graph for one picture of 512 x 512 pixels; the first is what others are compared
with."""
LIMIT_S = 1800
"""Seconds after which a subject is stopped."""


def run(command: Sequence[str], threads: int, **variables: str) -> None:
    """Run a process to its end; Failed with the last line of its error if it fails."""
    given = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    given |= {"HF_HUB_OFFLINE": "1", **variables}
    try:
        done = subprocess.run(
            command, env=given, capture_output=True, text=True, check=False, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"took over {LIMIT_S} s") from None
    if done.returncode < 0:
        raise Failed(f"ended by {signal.Signals(-done.returncode).name}")
    if done.returncode:
        raise Failed((done.stderr.strip().splitlines() or ["no message"])[-1][:300])


def measured(subject: Subject, threads: int) -> Figures:
    """Return the figures that a subject's process writes."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "figures.json"
        run([*subject.command, "--json", str(file)], threads)
        return dict(read_json(file))


def started(subject: Subject, threads: int) -> Figures:
    """Return seconds of a whole process that draws one picture, the first and the second time."""
    with tempfile.TemporaryDirectory() as name:
        file, cache = Path(name) / "figures.json", Path(name) / "cache"
        command = [*subject.command, "--json", str(file), "--cache", str(cache)]
        kept = {"EDGEDISTILL_CACHE": str(cache), "TORCHINDUCTOR_CACHE_DIR": str(cache)}
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            run(command, threads, **kept)
            seconds.append(time.perf_counter() - start)
        return {**read_json(file), "empty_s": seconds[0], "full_s": seconds[1]}


def program(python: Path | str, name: str, folder: Path | str, *options: str) -> tuple[str, ...]:
    """Return the command of one of `peers_programs.py`."""
    return (str(python), str(PROGRAMS), name, str(folder), *options)


def prepared(peer: str, student: Path, out: Path) -> tuple[Path, Path]:
    """Return the Python of a peer's environment and the student as the peer exports it."""
    print(f"  environment and export of {peer}", file=sys.stderr, flush=True)
    try:
        python = environment(out / f"venv-{peer}", ENVIRONMENTS[peer])
        # optimum-intel brings PyPI's torchvision, which a torch for CPUs only does not load.
        run([str(python), "-m", "pip", "uninstall", "--yes", "torchvision"], 1)
    except subprocess.CalledProcessError as error:
        raise Failed(f"no environment: {shlex.join(error.cmd[:5])} ... failed") from None
    folder = out / peer
    shutil.rmtree(folder, ignore_errors=True)
    run(program(python, f"export-{peer}", student, "--to", str(folder)), cores())
    return python, folder


@dataclass(frozen=True)
class Bench:
    """The arguments, the subjects that the rows share, and how many steps the student has."""

    args: argparse.Namespace
    ours: list[Subject]
    peers: list[Subject]
    teacher: list[Subject]
    steps: int

    @property
    def names(self) -> list[str]:
        """Names of ours."""
        return [subject.name for subject in self.ours]

    @property
    def timing(self) -> tuple[object, ...]:
        """Options of a program that takes times."""
        return ("--runs", self.args.runs, "--seconds", self.args.seconds, *self.threads)

    @property
    def threads(self) -> tuple[object, ...]:
        """The option of threads."""
        return ("--threads", self.args.threads)

    def turns(
        self, subjects: Sequence[Subject], how: Callable[[Subject, int], Figures] = measured
    ) -> dict[str, Outcome]:
        """Measure subjects in turns."""
        return take_turns(subjects, self.args.rounds, lambda one: how(one, self.args.threads))


def peers_of(student: Path, out: Path) -> Iterator[Subject]:
    """Make the peers of a student ready."""
    eager = program(sys.executable, "diffusers", student)
    yield Subject(name="diffusers", command=eager)
    compiler = any(map(shutil.which, ("g++", "clang++", os.environ.get("CXX", "g++"))))
    reason = "" if compiler else "no C++ compiler (g++ or clang++)"
    yield Subject(name="diffusers, torch.compile", command=(*eager, "--compile"), reason=reason)
    options: dict[str, dict[str, tuple[str, ...]]] = {
        "optimum": {"optimum, ONNX Runtime": ()},
        "genai": {
            f"OpenVINO GenAI, {told}": ("--precision", precision)
            for told, precision in (("f32", "f32"), ("its own precision", "default"))
        },
    }
    for peer, variants in options.items():
        try:
            python, folder = prepared(peer, student, out)
            made = [
                (name, program(python, peer, folder, *more)) for name, more in variants.items()
            ]
            yield from (Subject(name=name, command=command) for name, command in made)
        except Failed as error:
            yield from (Subject(name=name, reason=str(error)) for name in variants)


def assembled(args: argparse.Namespace) -> Bench:
    """Find the bundles beside the student and the teacher, and make the peers ready."""
    found = find_subjects([args.student.parent])
    ours = [
        Subject(
            name=f"ours, {s.name.removeprefix('bundle:')}",
            command=program(sys.executable, "ours", s.path),
            ours=True,
        )
        for s in found
        if s.bundle
    ]
    teachers = [
        Subject(
            name=f"teacher, {s.steps} guided steps",
            command=program(sys.executable, "diffusers", s.path),
        ).asked("--steps", s.steps, "--guidance", s.guidance)
        for s in found
        if s.name == TEACHER
    ]
    steps = len(read_json(args.student / "student.json")["step_table"]["rows"])
    needed = set(args.rows) & set("adf")
    peers = list(peers_of(args.student.absolute(), args.out)) if needed else []
    return Bench(args, ours, peers, teachers, steps)


def one_picture(bench: Bench) -> str:
    """Row a."""
    students = [s.asked("--steps", bench.steps) for s in (*bench.ours, *bench.peers)]
    subjects = [s.asked(*bench.timing) for s in (*students, *bench.teacher)]
    columns = [Column("ms", ("p50_s",)), Column("first ms", ("first_s",))]
    return table(bench.turns(subjects), columns, bench.names)


def exported(bench: Bench, graph: str, precision: str) -> Subject:
    """Export a graph of `sd15` with OpenVINO, unless an earlier row has; return what times it."""
    folder, name = bench.args.out / "sd15" / f"{graph}-{precision}", f"{graph} {precision}"
    subject = Subject(name=name, command=program(sys.executable, "graph", folder))
    if not (folder / FIGURES).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        export = [sys.executable, str(GRAPHS_PROGRAM), "--width", str(bench.args.width)]
        export += ["--graph", graph, "--export", "openvino", precision, str(folder)]
        print(f"  export of {name}", file=sys.stderr, flush=True)
        try:
            run(export, cores())
        except Failed as error:
            return replace(subject, reason=str(error))
        shutil.rmtree(folder / "weights", ignore_errors=True)
    return subject.asked(*bench.timing)


def full_size(bench: Bench) -> str:
    """Row b."""
    graphs = {"unet": PRECISIONS, "unet-stride2": PRECISIONS[1:], "products": PRECISIONS}
    outcomes = bench.turns([exported(bench, g, p) for g, kinds in graphs.items() for p in kinds])
    work = {graph: gflop(graph, bench.args.width) for graph in graphs}
    return share_table(outcomes, work, ["unet", "unet-stride2"])


def full_size_by_stage(bench: Bench) -> str:
    """Row h."""
    needed = sorted({each for calls in PICTURES.values() for each in calls})
    subjects = []
    for name in needed:
        graph, kind = name.split()
        if kind in PRECISIONS:
            subjects.append(exported(bench, graph, kind))
        else:
            command = program(sys.executable, "module", graph)
            batch = ("--batch", 2) if kind == GUIDED else ()
            subjects.append(Subject(name=name, command=command).asked(*bench.timing, *batch))
    outcomes = bench.turns(subjects)
    stages = table(outcomes, [Column("ms a call", ("p50_s",))], [])
    return f"{stages}\n{chain_table(outcomes, PICTURES)}"


def by_stage(bench: Bench) -> str:
    """Row c."""
    found = {s.name: s for s in find_subjects([bench.args.student.parent])}
    if bench.args.one_step:
        other = find_subjects([bench.args.one_step.parent])
        found |= {f"{s.name}, --one-step": s for s in other if s.name != TEACHER}
    subjects = [
        Subject(name=name, command=tuple(_stages(s, bench.args)), ours=s.bundle)
        for name, s in found.items()
    ]
    columns = [Column("ms", ("p50_s",))]
    for stage in OURS_BY_STAGE:
        columns.append(Column(stage.replace("_", " "), ("stages", stage, "p50_s")))
    ours = [s.name for s in subjects if s.ours]
    return table(bench.turns(subjects), columns, ours)


def _stages(subject: BenchSubject, args: argparse.Namespace) -> list[str]:
    return subject.command(args.runs, args.threads, Path("figures.json"))


def start_and_memory(bench: Bench) -> str:
    """Row d."""
    subjects = [
        s.asked("--steps", bench.steps, *bench.threads) for s in (*bench.ours, *bench.peers)
    ]
    outcomes = bench.turns(subjects, started)
    full, empty = Column("s, cache full", ("full_s",), 1), Column("s, empty", ("empty_s",), 1)
    peak = Column("peak MiB", ("peak_rss_mb",), 1)
    both = [table(outcomes, columns, bench.names) for columns in ([full, empty], [peak])]
    return "\n".join(both)


def growth(bench: Bench) -> str:
    """Row f."""
    asked = {f"batch {n}": ("--batch", n, "--steps", bench.steps) for n in BATCHES}
    asked |= {f"{n} steps": ("--batch", 1, "--steps", n) for n in STEPS if n != bench.steps}
    settings = {
        name: bench.turns([s.asked(*bench.timing, *options) for s in (*bench.ours, *bench.peers)])
        for name, options in asked.items()
    }
    return wide_table(settings, bench.names)


def web(bench: Bench) -> str:
    """Row g."""
    runs = ("--runs", bench.args.runs, *bench.threads)
    subjects = [
        Subject(
            name=s.name.removeprefix("bundle:"),
            command=("node", str(WEB_BENCH), s.path),
            ours=True,
        )
        for s in find_subjects([bench.args.student.parent])
        if s.bundle and Manifest.read(s.path).target == "web"
    ]
    peer = Subject(name="optimum's graphs, loop in JavaScript")
    try:
        _, folder = prepared("optimum", bench.args.student.absolute(), bench.args.out)
        command = ("node", str(WEB_PROGRAM), str(folder), "--steps", str(bench.steps))
        subjects.append(replace(peer, command=command))
    except Failed as error:
        subjects.append(replace(peer, reason=str(error)))
    columns = [Column("ms", ("p50_s",)), Column("first ms", ("first_s",))]
    columns.append(Column("load s", ("load_s",), 1))
    ours = [s.name for s in subjects if s.ours]
    return table(bench.turns([s.asked(*runs) for s in subjects]), columns, ours)


ROWS: dict[str, tuple[str, Callable[[Bench], str]]] = {
    "a": ("One picture a call", one_picture),
    "b": ("A U-Net of SD 1.5's size against the peak of the machine", full_size),
    "c": ("By stage, ms", by_stage),
    "d": ("Start and memory", start_and_memory),
    "f": ("Growth, ms a picture and over the fastest of ours", growth),
    "g": ("onnxruntime-web in node", web),
    "h": ("SD 1.5's size by stage, and the sum for one picture", full_size_by_stage),
}
"""Title and function of a row."""


def load() -> str:
    """Return the load average over one and five minutes."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg()[:2])


def main() -> None:
    """Measure the rows, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("student", type=Path, nargs="?", default=Path("runs/latest/student"))
    parser.add_argument("--rows", type=lambda text: text.split(","), default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=20, help="timed calls of a process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20, help="after which no call begins")
    parser.add_argument("--one-step", type=Path, help="RUN/student of a student of one step")
    parser.add_argument("--width", type=int, default=320, help="channels of row b's U-Net")
    parser.add_argument("--out", type=Path, default=Path("build/peers"))
    args = parser.parse_args()
    if unknown := set(args.rows) - ROWS.keys():
        parser.error(f"--rows: no row {', '.join(sorted(unknown))}; choose from {','.join(ROWS)}")
    args.out = args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    head = [
        f"`python {shlex.join(sys.argv)}`, {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC, "
        f"{processor()}, {cores()} cores, {args.threads} threads, load average {load()}.\n"
    ]
    bench = assembled(args)
    for row in args.rows:
        title, made = ROWS[row]
        print(f"row {row}", file=sys.stderr, flush=True)
        before = load()
        text = (
            f"## {row}. {title}\n\n{made(bench)}\nLoad average {before} before, {load()} after.\n"
        )
        head.append(text)
        print(text, flush=True)
        write_text(args.out / "peers.md", "\n".join(head))
    print(head[0])


if __name__ == "__main__":
    main()
