"""Trackers of accelerate's `log_with`, to which a run sends its figures beside metrics.jsonl."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["PROJECT", "TRACKERS", "Trackers", "check_installed"]

log = logging.getLogger(__name__)

PROJECT = "edgedistill"
"""Name under which trackers file the runs, where they have projects."""

Options = dict[str, Any]


def _tensorboard(folder: Path, step: int) -> Options:
    # What an interrupted run logged after its last checkpoint is dropped, as in metrics.jsonl.
    return {"purge_step": step + 1 if step else None}


def _named(key: str) -> Callable[[Path, int], Options]:
    return lambda folder, step: {key: folder.name}


TRACKERS: Mapping[str, Callable[[Path, int], Options]] = {
    "aim": lambda folder, step: {},
    "clearml": _named("task_name"),
    "comet_ml": lambda folder, step: {},
    "dvclive": lambda folder, step: {"dir": str(folder / "dvclive")},
    "mlflow": _named("run_name"),
    "swanlab": _named("experiment_name"),
    "tensorboard": _tensorboard,
    "trackio": _named("name"),
    "wandb": _named("name"),
}
"""Options of each tracker's class by name, from (run dir, step at which the run starts). The name
is also that of the module and of the package."""


def check_installed(names: Sequence[str]) -> None:
    """Raise a ValueError with the pip command unless all of these trackers are installed."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        packages = (f"'{PROJECT}[{n}]'" if n == "tensorboard" else n for n in missing)
        raise ValueError(
            f"train.trackers needs {', '.join(missing)}: pip install {' '.join(packages)}"
        )


class Trackers:
    """Started trackers of a run.

    A tracker that fails later, as when its server is away, gets no more figures; a line says so,
    and the run goes on.

    Args:
        names: Keys of `TRACKERS`.
        folder: The run dir, where trackers that write files put them.
        step: Step at which the run (re)starts.
        settings: The recipe, as nested dicts.

    Raises:
        ValueError: If one is not installed or does not start.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, step: int, settings: Mapping[str, Any]
    ) -> None:
        check_installed(names)
        self._started: dict[str, Any] = {}
        for name in names:
            try:
                self._started[name] = _start(name, folder, step, dict(_flat(settings)))
            except Exception as error:  # each tracker has its own
                self.close()
                raise ValueError(
                    f"train.trackers: {name} does not start: {_line(error)}"
                ) from error

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Send the figures of the interval that ends after `step` steps."""
        self._each("log", dict(figures), step=step)

    def close(self) -> None:
        """Finish every tracker's run."""
        self._each("finish")
        self._started.clear()

    def _each(self, method: str, *given: Any, **named: Any) -> None:
        for name, tracker in list(self._started.items()):
            try:
                getattr(tracker, method)(*given, **named)
            except Exception as error:  # each tracker has its own
                del self._started[name]
                log.warning(f"{name} gets no more figures: {_line(error)}")


def _start(name: str, folder: Path, step: int, settings: dict[str, Any]) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind, options = LOGGER_TYPE_TO_CLASS[name], TRACKERS[name](folder, step)
    places = (str(folder),) if kind.requires_logging_directory else ()
    project = "tensorboard" if name == "tensorboard" else PROJECT  # the name of its folder
    tracker = kind(project, *places, **options)
    tracker.start()
    if name != "tensorboard":  # it would open a further run, to hold them
        tracker.store_init_configuration(settings)
    return tracker


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys with values that every tracker takes."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, bool | int | float) else str(value)


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
