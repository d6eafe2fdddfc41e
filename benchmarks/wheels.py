"""Builds both packages and tries their wheels in an empty environment.

    python benchmarks/wheels.py [--dist dist] [--torch torch==2.13.0]

Source archives and wheels are written into the folder `dist`. The wheels are installed, at the
versions of requirements.lock, into an environment without anything else, where the commands of a
first hour run on a planar teacher. The first step that fails ends it with exit code 1. A line for
each gives its seconds, of the clock and of all processors.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

CONTENTS: Mapping[str, tuple[str, ...]] = {
    "edgedistill-*.tar.gz": (
        "LICENSE",
        "Makefile",
        "benchmarks/tutorials.py",
        "docs/index.md",
        "edgedistill/assets/emoji/unet/diffusion_pytorch_model.safetensors",
        "examples/emoji/side-by-side.png",
        "export/edgedistill_export/py.typed",
        "recipes/emoji-4step.yaml",
        "requirements.lock",
        "runtime/edgedistill_runtime/pipeline.py",
        "runtime/web/package.json",
        "tests/conftest.py",
        "tests/golden/bundle-2/planar/manifest.json",
    ),
    "edgedistill-*.whl": (
        "edgedistill/assets/emoji/unet/diffusion_pytorch_model.safetensors",
        "edgedistill/py.typed",
        "edgedistill/recipes/emoji-4step.yaml",
        "edgedistill_export/py.typed",
        "licenses/LICENSE",
    ),
    "edgedistill_runtime-*.tar.gz": ("LICENSE", "edgedistill_runtime/pipeline.py"),
    "edgedistill_runtime-*.whl": ("edgedistill_runtime/py.typed", "licenses/LICENSE"),
}
"""What must be in each archive, by the end of its path there."""

NEVER = re.compile(
    r"node_modules|__pycache__|\.venv|/output/|^edgedistill-[^/]+/(runs|dist|build)/"
)
"""What must be in none of them."""

DRAW = """
import sys
sys.modules["torch"] = None  # import now raises ImportError
from edgedistill_runtime import Pipeline
drawn = Pipeline.load("run/bundles/ort-fp32").samples(4, seed=3).samples
assert drawn.shape == (4, 2) and abs(drawn).max() < 10, drawn
"""

COMMANDS: Sequence[tuple[str, ...]] = (
    ("edgedistill", "--help"),
    ("edgedistill", "doctor"),
    ("edgedistill", "distill", "recipe=mixture-lcm", "train.steps=20", "out=run"),
    ("edgedistill", "export", "run", "--target", "ort"),
    ("edgedistill-bench", "run/bundles/ort-fp32", "--runs", "3"),
    ("python", "-c", DRAW),
)


def names(archive: Path) -> list[str]:
    """Paths of the files in a wheel or a source archive."""
    if archive.suffix == ".whl":
        return zipfile.ZipFile(archive).namelist()
    with tarfile.open(archive) as tar:
        return tar.getnames()


def wrong(pattern: str, found: Sequence[str]) -> list[str]:
    """What an archive of these files lacks, and what it should not hold."""
    wanted = CONTENTS[pattern]
    lacks = [f"lacks {each}" for each in wanted if not any(name.endswith(each) for name in found)]
    return lacks + [f"holds {name}" for name in found if NEVER.search(name)]


def build(dist: Path) -> dict[str, Path]:
    """Build source archives, and wheels from them; return the archives by pattern."""
    dist.mkdir(parents=True, exist_ok=True)
    for pattern in CONTENTS:
        for old in dist.glob(pattern):
            old.unlink()
    for package in (ROOT / "runtime", ROOT):
        command = ["-m", "build", "--no-isolation", "--outdir", str(dist), str(package)]
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return {pattern: next(dist.glob(pattern)) for pattern in CONTENTS}


class Steps:
    """Steps with their seconds, by the clock and of all processors."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), sum(os.times()[:4])

    def done(self, what: str) -> None:
        """Print the seconds since the last step."""
        wall, cpu = time.perf_counter(), sum(os.times()[:4])
        print(f"{wall - self.wall:7.1f} s {cpu - self.cpu:7.1f} s CPU  {what}", flush=True)
        self.wall, self.cpu = wall, cpu


def pip(*words: str) -> None:
    """Run this environment's pip; its lines are shown if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        sys.exit(done.stdout.decode(errors="replace"))


def install(place: Path, torch: str, wheels: Sequence[str]) -> Path:
    """Make an environment of the wheels alone; return the folder of its programs."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    programs = place / ("Scripts" if sys.platform == "win32" else "bin")
    python = ("--python", str(programs / "python"))
    lock = ("--constraint", str(ROOT / "requirements.lock"))
    # Bytecode is compiled when a module is first used: most are not.
    pip(*python, "install", "--no-compile", "--quiet", *lock, torch, *wheels)
    pip(*python, "check")
    return programs


def run(words: Sequence[str], programs: Path, folder: Path) -> None:
    """Run a command of the environment as a user would; its lines are shown if it fails."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    path = os.pathsep.join([str(programs), kept.get("PATH", "")])
    environment = {**kept, "PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(programs / words[0]), *words[1:]],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout.decode()}")


def main() -> None:
    """Build, look into the archives, install, run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where archives go")
    parser.add_argument("--torch", default="torch", help="requirement of torch")
    parser.add_argument(
        "--build-only", action="store_true", help="build and look, install nothing"
    )
    given = parser.parse_args()
    steps = Steps()
    made = build(given.dist)
    faults = [f"{made[p].name} {each}" for p in CONTENTS for each in wrong(p, names(made[p]))]
    if faults:
        sys.exit("\n".join(faults))
    for archive in made.values():
        print(f"{archive.stat().st_size / 1e6:7.1f} MB {archive.name}")
    steps.done("build")
    if given.build_only:
        return
    wheel, runtime = (str(made[p]) for p in CONTENTS if p.endswith(".whl"))
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        old = ("--python-version", "3.10", "--only-binary=:all:", "--target", work)
        pip("install", "--dry-run", "--ignore-installed", "--quiet", *old, f"{runtime}[cpu]")
        steps.done("resolve the runtime for Python 3.10")
        programs = install(folder / "env", given.torch, [runtime, f"{wheel}[cpu]"])
        steps.done("install")
        for words in COMMANDS:
            run(words, programs, folder)
            steps.done(" ".join(words[:4]).partition("\n")[0])


if __name__ == "__main__":
    main()
