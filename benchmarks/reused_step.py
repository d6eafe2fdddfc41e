"""A step that reuses deep blocks against a full one, in OpenVINO at the size of SD 1.5.

    python benchmarks/reused_step.py [--runs 10] [--precisions bf16,int8] [--out FOLDER]

The U-Net of Stable Diffusion 1.5 with random weights at 64 x 64 latents, its outer blocks alone
and its last layer alone (`sd15.GRAPHS`) are exported in processes of their own (13 GB of memory,
minutes each; with --out they are kept, and not exported again). All are then called in turns in
one process, a picture a call. Prints seconds of a call, over those of the whole U-Net, the same
for floating-point operations, and the time of a student of --steps steps that all reuse but the
first.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

from openvino_sd15 import FIGURES, Exported, export_apart, race, session
from sd15 import WIDTH, gflop

FULL = "unet"
CUTS = {"unet-outer": "outer blocks", "unet-last": "last layer"}


def exported(name: str, precision: str, home: Path, width: int) -> tuple[Path, Exported]:
    """Folder and figures of a graph, exported now or before."""
    folder = home / f"{name}-{precision}"
    if not (folder / FIGURES).is_file():
        export_apart("openvino", precision, folder, width, name)
    return folder, json.loads((folder / FIGURES).read_text())


def compare(precision: str, home: Path, runs: int, threads: int, width: int) -> dict[str, float]:
    """Median seconds of a call of each."""
    made = {name: exported(name, precision, home, width) for name in (FULL, *CUTS)}
    sessions = {name: session(*one, threads) for name, one in made.items()}
    return race(sessions, runs, {name: name for name in made})


def main() -> None:
    """Print a line for each precision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--precisions", default="bf16,int8")
    parser.add_argument("--out", type=Path, help="folder of the exports, kept")
    args = parser.parse_args()
    shares = {name: gflop(name) / gflop(FULL) for name in CUTS}
    said = ", ".join(f"{share:.3f} of it {CUTS[name]}" for name, share in shares.items())
    print(f"operations: {gflop(FULL):.0f} GFLOP a full step, {said}")
    with TemporaryDirectory() as scratch:
        home = args.out or Path(scratch)
        home.mkdir(parents=True, exist_ok=True)
        for precision in args.precisions.split(","):
            found = compare(precision, home, args.runs, args.threads, WIDTH)
            print(f"{precision:5} full {found[FULL]:.3f} s", flush=True)
            for name, cut in CUTS.items():
                ratio = found[name] / found[FULL]
                sample = (1 + (args.steps - 1) * ratio) / args.steps
                print(
                    f"{precision:5} {cut} {found[name]:.3f} s = {ratio:.2f}; "
                    f"{args.steps} steps, all but the first reusing: {sample:.2f} of the time",
                    flush=True,
                )


if __name__ == "__main__":
    main()
