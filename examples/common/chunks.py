"""Large arrays that are made piece by piece, and gone on with after an interruption."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.training import Trainer

__all__ = ["fill"]


def fill(
    place: Path,
    shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    make: Callable[[int, int], npt.NDArray[Any]],
    chunk: int = 2_000,
) -> None:
    """Write an array of this shape to a .npy file; what is there already is kept.

    `NAME.count` beside it says how many rows are whole. Like training, it waits while a file named
    PAUSE lies there.

    Args:
        place: The file.
        shape: Of the whole array.
        dtype: Its type.
        make: Gives the rows from one number to another.
        chunk: Rows made at once.
    """
    progress, pause = place.with_suffix(".count"), place.with_name("PAUSE")
    done = int(progress.read_text()) if progress.exists() else 0
    array = np.lib.format.open_memmap(place, "r+" if done else "w+", np.dtype(dtype), shape)
    for start in range(done, shape[0], chunk):
        while pause.exists():
            time.sleep(Trainer.pause_seconds)
        stop = min(start + chunk, shape[0])
        array[start:stop] = make(start, stop)
        array.flush()
        progress.write_text(str(stop))
        if start // chunk % 10 == 0:
            print(f"{place.stem}: {stop} of {shape[0]}", flush=True)
