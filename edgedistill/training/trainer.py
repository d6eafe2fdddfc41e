"""One training loop for every method, independent of their names."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from edgedistill.common.finite import bad_row
from edgedistill.diffusion.compiling import compiling
from edgedistill.networks.bf16 import cpu_has_bf16
from edgedistill.networks.ema import EMA
from edgedistill.objectives.base import Batch, Losses, Objective
from edgedistill.teachers.base import DataSource
from edgedistill.training import checkpoint, optimizers
from edgedistill.training.config import LR_SCHEDULES, Train
from edgedistill.training.metrics import Metrics
from edgedistill.training.player import TrainedPlayer
from edgedistill.training.trackers import Trackers

if TYPE_CHECKING:
    from edgedistill.data.paths import Paths  # which would load diffusers

__all__ = ["Hooks", "Interrupted", "Trainer", "engine"]

log = logging.getLogger(__name__)

MAX_BAD_STEPS = 10
"""Largest number of updates in a row that may be skipped because a loss or gradient is not
finite."""


class Interrupted(Exception):  # noqa: N818  the user stopped it: no error
    """Raised when the user stopped the run; a checkpoint has been written."""


@dataclass(frozen=True)
class Hooks:
    """Callbacks of the training loop, and what trackers are told about the run.

    Attributes:
        progress: Called with (steps done, figures of the last interval or None).
        sample: Called with (student's averaged network, steps done) to draw a sample grid.
        settings: The recipe, as nested dicts.
    """

    progress: Callable[[int, dict[str, float] | None], None]
    sample: Callable[[nn.Module, int], None]
    settings: Mapping[str, Any] = field(default_factory=dict)


class Trainer:
    """Training loop that runs an objective's players in turn.

    Args:
        objective: The method.
        source: Clean data.
        config: The `train` section.
        folder: The run dir.
        hooks: Progress and sample grids.
        paths: Paths of the teacher, in place of clean data.
        prompted: Whether batches include their prompts.
        pictured: Whether batches include the pictures they were encoded from, where these are
            known.
    """

    def __init__(
        self,
        objective: Objective,
        source: DataSource,
        config: Train,
        folder: Path,
        hooks: Hooks,
        paths: Paths | None = None,
        prompted: bool = False,
        pictured: bool = False,
    ) -> None:
        self.objective, self.source, self.config = objective, source, config
        self.paths, self.prompted, self.pictured = paths, prompted, pictured
        self.folder, self.hooks = folder, hooks
        self.accelerator = engine(config.precision)
        self.trained_players = [
            TrainedPlayer(i, player, objective, self.accelerator, config.moments)
            for i, player in enumerate(objective.players())
        ]
        student = next(s.player.net for s in self.trained_players if s.player.name == "student")
        self.ema = EMA(student, config.ema)
        self.step = 0
        self._stop = False
        self._searched = False

    # --- State ----------------------------------------------------------------------------------

    def _nets(self) -> dict[str, nn.Module]:
        players = {trained.player.name: trained.player.net for trained in self.trained_players}
        return {**players, **self.objective.followers(), "ema": self.ema.net}

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {trained.player.name: trained.raw for trained in self.trained_players}

    def save(self) -> Path | None:
        """Write a checkpoint (on the main process).

        Raises:
            FloatingPointError: If a weight or a number of an optimizer is not finite.
        """
        self.accelerator.wait_for_everyone()
        checkpoint.check(self._nets(), self._optimizers(), self.step)
        if not self.accelerator.is_main_process:
            return None
        scaler = self.accelerator.scaler
        state: dict[str, Any] = {
            "step": self.step,
            "ema_updates": self.ema.updates,
            "bad": [trained.bad for trained in self.trained_players],
            "turns": [trained.turns for trained in self.trained_players],
            "skipped": [trained.skipped for trained in self.trained_players],
            "scaler": scaler.state_dict() if scaler else None,
        }
        folder = self.folder / "checkpoints"
        return checkpoint.save(folder, self._nets(), self._optimizers(), state)

    def resume(self) -> int:
        """Load the newest complete checkpoint, if there is one; return its step.

        Raises:
            ValueError: If there are checkpoints but none can be loaded; describes the newest.
        """
        problems = []
        for place in checkpoint.all_of(self.folder / "checkpoints"):
            try:
                state = checkpoint.load(place, self._nets(), self._optimizers())
                self._take(state)
            except ValueError as error:
                problems.append(error)
                continue
            for problem in problems:
                self._warn(f"{problem}; {place.name} is taken up instead")
            return self.step
        if problems:
            raise problems[0]
        return self.step

    def _take(self, state: dict[str, Any]) -> None:
        count = len(self.trained_players)
        for name in ("bad", "turns", "skipped"):  # the first schema had only `bad`
            values = state.get(name, [0] * count)
            if len(values) != count:
                raise ValueError(f"state.json: {name}: {count} players expected, got {values}")
            for trained, value in zip(self.trained_players, values, strict=True):
                setattr(trained, name, value)
        self.step, self.ema.updates = state["step"], state["ema_updates"]
        if state.get("scaler") and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    # --- The loop -------------------------------------------------------------------------------

    def fit(self) -> nn.Module:
        """Train to the last step and return the averaged student.

        Raises:
            ValueError: If a tracker does not start.
            Interrupted: On Ctrl-C or SIGTERM, after a checkpoint.
            FloatingPointError: After too many updates in a row that were not finite, if a player
                had no finite update at all, or for weights or data that are not finite.
        """
        config, main = self.config, self.accelerator.is_main_process
        metrics = self._metrics() if main else None
        started = time.perf_counter()
        begin = self.step
        if metrics and metrics.damaged:
            self._warn(f"{metrics.path}: {metrics.damaged} damaged lines left out")
        try:
            with self._signals(), compiling():
                while self.step < config.steps:
                    self._search()
                    self.objective.started(self.step)
                    self._one_step(metrics)
                    self.step += 1
                    figures = None
                    if metrics and self._due(config.log_every):
                        seconds = time.perf_counter() - started
                        rate = (self.step - begin) / seconds
                        figures = metrics.flush(
                            self.step, seconds=seconds, steps_per_second=rate, lr=self._lr(1.0)
                        )
                    if main:
                        self.hooks.progress(self.step, figures)
                    if main and config.sample_every and self._due(config.sample_every):
                        self.hooks.sample(self.ema.net, self.step)
                    if self._stop or self._due(config.checkpoint_every):
                        self.save()
                    if self._stop:
                        raise Interrupted(f"stopped after step {self.step}")
            self._search()
        finally:
            if metrics:
                metrics.close()
        self._tell_skipped()
        return self.ema.net

    def _metrics(self) -> Metrics:
        names, folder, step = self.config.trackers, self.folder, self.step
        return Metrics(folder, step, Trackers(names, folder, step, self.hooks.settings))

    def _search(self) -> None:
        """Have the objective search, once, from its step on or after the last one."""
        begin = min(self.objective.search_step(), self.config.steps)
        if self.objective.searches and not self._searched and self.step >= begin:
            self.objective.search(self._batch(0, 0, 0))
            self._searched = True

    def _tell_skipped(self) -> None:
        """Report skipped updates; FloatingPointError if a player had no other."""
        for trained in self.trained_players:
            if not trained.skipped or (self.accelerator.scaler and not trained.bad):
                continue  # fp16's scaler finds its scale by overflows
            line = f"{trained.player.name}: loss or gradient not finite"
            if trained.skipped == trained.turns:
                raise FloatingPointError(f"{line} in all of its {trained.turns} updates")
            last = f", the last {trained.bad} among them" if trained.bad else ""
            self._warn(f"{line}: {trained.skipped} of {trained.turns} updates skipped{last}")

    def _warn(self, line: str) -> None:
        """Log a fault that did not stop the run, once for all processes."""
        if self.accelerator.is_main_process:
            log.warning(line)

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def _one_step(self, metrics: Metrics | None) -> None:
        for trained in self.trained_players:
            if not trained.player.plays(self.step):
                continue
            losses, norm = self._play(trained)
            name = trained.player.name
            if metrics:
                metrics.add(f"{name}/loss", losses.total.detach())
                metrics.add(f"{name}/grad_norm", norm)
                for key, value in losses.logs.items():
                    metrics.add(f"{name}/{key}", value)

    def _play(self, trained: TrainedPlayer) -> tuple[Losses, Tensor]:
        """Run one update of one player."""
        config, player = self.config, trained.player
        for other in self.trained_players:
            for param in other.params:
                param.requires_grad_(other is trained)
        trained.optimizer.zero_grad()
        for micro in range(config.accumulate):
            batch = self._batch(self.step, trained.index, micro)
            last = micro == config.accumulate - 1
            with (
                contextlib.nullcontext() if last else self.accelerator.no_sync(trained.loss_module)
            ):
                losses: Losses = trained.loss_module(batch)
                self.accelerator.backward(losses.total / config.accumulate)
        norm = self.accelerator.clip_grad_norm_(trained.params, config.clip)
        # fp16's scaler expects overflows and handles them itself.
        finite = bool(norm.isfinite()) and bool(losses.total.isfinite())
        if finite or self.accelerator.scaler:
            optimizers.set_lr(trained.raw, self._lr(player.optim.lr))
            trained.optimizer.step()
        trained.count(finite)
        if trained.bad > MAX_BAD_STEPS:
            raise FloatingPointError(
                f"{player.name}: loss or gradient not finite {trained.bad} updates in a row, "
                f"up to step {self.step}"
            )
        if finite:
            self.objective.updated(player.name)
            if player.name == "student":
                self.ema.update(player.net)
        return losses, norm

    def _batch(self, step: int, player: int, micro: int) -> Batch:
        """Make data and randomness, decided by (seed, step, player, micro, rank) alone.

        Nothing random outlives an update, so a resumed run repeats an unbroken one bit by bit.
        """
        key = [self.config.seed, step, player, micro]
        shared = _generator(key)
        key_of_rank = [*key, 1 + self.accelerator.process_index]
        own = _generator(key_of_rank)
        # Seed dropout inside networks. torch.manual_seed formats a stack trace for CUDA each time.
        torch.default_generator.manual_seed(own.initial_seed())
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(own.initial_seed())
        device, count = self.accelerator.device, self.config.batch_size
        path = None
        if self.paths is None:
            x0, cond = self.source.draw(count, own)
        else:
            path, cond = self.paths.draw_paths(count, own)
            path = path.to(device)
            x0 = path[:, -1]
        row = bad_row(x0 if path is None else path)
        if row is not None:
            raise FloatingPointError(f"data: row {row} of a batch at step {step} is not finite")
        cond = {name: value.to(device) for name, value in cond.items()}
        prompts = self.source.prompts(count, _generator(key_of_rank)) if self.prompted else ()
        originals = None
        if self.pictured:
            originals = self.source.originals(count, _generator(key_of_rank))
            originals = None if originals is None else originals.to(device)
        return Batch(x0.to(device), cond, own, shared, step, path, prompts, originals)

    def _lr(self, lr: float) -> float:
        config = self.config
        warm = min(1.0, (self.step + 1) / (config.lr_warmup_steps + 1))
        return lr * warm * LR_SCHEDULES[config.lr_schedule](self.step / config.steps)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Handle Ctrl-C and SIGTERM by a stop at the end of the step."""

        def ask(number: int, frame: FrameType | None) -> None:
            self._stop = True

        try:
            old = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread, where the caller owns the signals
            old = {}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def engine(precision: str) -> Accelerator:
    """Make the accelerate engine at this precision; ValueError if the device lacks it."""
    name = {"fp32": "no"}.get(precision, precision)
    try:
        made = Accelerator(mixed_precision=name)
    except ValueError as error:
        raise ValueError(f"train.precision={precision}: {error}") from None
    if precision == "fp16" and made.device.type == "cpu":
        # Accelerate would silently compute in float32.
        raise ValueError("train.precision=fp16: a CPU has none; choose bf16 or fp32")
    if precision == "bf16" and made.device.type == "cpu" and not cpu_has_bf16():
        log.warning(
            "train.precision=bf16: this CPU has no bfloat16 arithmetic; fp32 is 10 times as fast"
        )
    return made


def _generator(key: list[int]) -> torch.Generator:
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)
