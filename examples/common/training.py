"""One training loop for every network here, budgeted and safe to interrupt.

A budget is in seconds or in samples. A run that is stopped goes on from its last checkpoint
exactly as if it had not been, random numbers included. It waits while a file named PAUSE lies
beside the checkpoint, and saves before it obeys SIGTERM.
"""

from __future__ import annotations

import math
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from edgedistill.networks.bf16 import cpu_has_bf16
from edgedistill.training.muon import Muon

from common.storage import load_state, save_state

OUTERMOST = ("conv_in", "conv_out", "embed", "logit_scale")
"""Parts of the names of parameters that meet data or tokens; AdamW's, whatever their shape."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a network is trained."""

    seconds: float = math.inf
    """Time for steps; saving and drawing come on top."""
    samples: float = math.inf
    """How many samples; the budget ends with whichever comes first."""
    batch: int
    matrix_rate: float
    """Peak learning rate of Muon, for the matrices."""
    other_rate: float
    """Peak learning rate of AdamW, for everything else."""
    ema_decay: float
    warmup_steps: int
    hold: float = 0.0
    """Share of the budget at the peak rate before the cosine decay to zero."""
    weight_decay: float = 0.0
    bf16: bool = False
    """Whether products run in bfloat16, on a CPU that has it; other numbers stay in float32."""
    threads: int = 1
    """One is best for tensors this small: a second one waits more than it works."""


Loss = Callable[[float], tuple[torch.Tensor, dict[str, float]]]
"""Takes the share of the budget spent; gives what to minimize and figures for the log."""


class _Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> object: ...


class Ema:
    """An exponential moving average of parameters; early on it averages over fewer steps."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.steps = 0
        self.shadow = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averaged and the live values; a second call undoes the first."""
        for live, averaged in zip(self.parameters, self.shadow, strict=True):
            kept = live.detach().clone()
            live.copy_(averaged)
            averaged.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for mine, stored in zip(self.shadow, state["shadow"], strict=True):
            mine.copy_(stored)


class Budget:
    """Steps and seconds, counted over interruptions; the learning rate follows their share."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.steps = 0
        self.began = 0
        """The step from which the learning rate warms up."""
        self.spent = 0.0
        self._last = time.monotonic()

    def tick(self) -> None:
        """Count a step and the time since the last one."""
        now = time.monotonic()
        self.spent += now - self._last
        self._last = now
        self.steps += 1

    def pause(self) -> None:
        """Forget the time since the last tick: it went into something other than a step."""
        self._last = time.monotonic()

    @property
    def share(self) -> float:
        samples = self.steps * self.plan.batch
        return min(1.0, max(self.spent / self.plan.seconds, samples / self.plan.samples))

    @property
    def rate(self) -> float:
        """The factor on the peak learning rates: linear warm-up, hold, cosine to zero."""
        warm = min(1.0, (self.steps - self.began + 1) / self.plan.warmup_steps)
        decayed = max(0.0, self.share - self.plan.hold) / (1 - self.plan.hold)
        return warm * 0.5 * (1 + math.cos(math.pi * decayed))

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "began": self.began, "spent": self.spent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.began, self.spent = state["steps"], state["began"], state["spent"]
        self.pause()


class _Random:
    """Torch's own generator, as a part of a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        return {"torch": torch.get_rng_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["torch"])


class Trainer:
    """A network, its optimizers, average and budget, restored if a checkpoint exists.

    Args:
        network: What is trained.
        plan: How.
        checkpoint: Its file; PAUSE in the same folder makes the training wait.
        done_steps: Steps behind the network's weights where no checkpoint exists: the budget and
            the average go on from there, the optimizers start anew.
    """

    log_steps = 100
    checkpoint_seconds = 200
    pause_seconds = 5

    def __init__(
        self, network: torch.nn.Module, plan: Plan, checkpoint: Path, done_steps: int = 0
    ) -> None:
        torch.set_num_threads(plan.threads)
        self.network, self.plan, self.checkpoint = network, plan, checkpoint
        matrices, others = split(network)
        self.muon = Muon(matrices, lr=plan.matrix_rate, weight_decay=plan.weight_decay)
        self.adamw = torch.optim.AdamW(
            others, plan.other_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )
        self.ema = Ema(network.parameters(), plan.ema_decay)
        self.budget = Budget(plan)
        self.parts: dict[str, _Stateful] = {
            "network": network,
            "muon": self.muon,
            "adamw": self.adamw,
            "ema": self.ema,
            "budget": self.budget,
            "random": _Random(),
        }
        self.stopping = False
        torch.manual_seed(done_steps)
        if done_steps:
            self.budget.steps = self.budget.began = self.ema.steps = done_steps
        if checkpoint.exists():
            state = load_state(checkpoint)
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            print(f"{checkpoint.stem}: resumed at step {self.budget.steps}", flush=True)

    def run(self, loss: Loss, after_checkpoint: Callable[[], None] | None = None) -> None:
        """Train to the end of the budget and leave the averaged weights in the network."""
        budget, saved = self.budget, self.budget.spent
        logged, logged_at = budget.steps, budget.spent
        figures: defaultdict[str, list[float]] = defaultdict(list)
        before = signal.signal(signal.SIGTERM, self._stop)
        while budget.share < 1:
            self._wait()
            for name, value in self.step(loss).items():
                figures[name].append(value)
            if budget.steps % self.log_steps == 0:
                self._log(figures, (budget.steps - logged) / (budget.spent - logged_at))
                logged, logged_at = budget.steps, budget.spent
                figures.clear()
            if budget.spent - saved > self.checkpoint_seconds:
                saved = budget.spent
                self.save()
                if after_checkpoint:
                    after_checkpoint()
                budget.pause()
        signal.signal(signal.SIGTERM, before)
        self.save()
        self.ema.swap()
        self.network.eval()

    def step(self, loss: Loss) -> dict[str, float]:
        """One step of both optimizers; the figures of the loss."""
        rate = self.budget.rate
        for optimizer, peak in (
            (self.muon, self.plan.matrix_rate),
            (self.adamw, self.plan.other_rate),
        ):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
        with torch.autocast("cpu", torch.bfloat16, enabled=self.plan.bf16 and cpu_has_bf16()):
            total, figures = loss(self.budget.share)
        torch.autograd.backward(total)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0, foreach=True)
        for optimizer in (self.muon, self.adamw):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        self.budget.tick()
        return {"loss": total.item(), **figures}

    def _stop(self, *_: object) -> None:
        self.stopping = True

    def _wait(self) -> None:
        """Save and end on SIGTERM; save and wait while PAUSE is there."""
        pause = self.checkpoint.with_name("PAUSE")
        if not (self.stopping or pause.exists()):
            return
        self.save()
        print(f"{self.checkpoint.stem}: saved at step {self.budget.steps}", flush=True)
        while pause.exists() and not self.stopping:
            time.sleep(self.pause_seconds)
        if self.stopping:
            raise SystemExit(0)
        self.budget.pause()

    def save(self) -> None:
        """Write the state of every part."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        save_state(state, self.checkpoint)

    def _log(self, figures: dict[str, list[float]], steps_per_second: float) -> None:
        means = "  ".join(f"{name} {sum(v) / len(v):.4f}" for name, v in figures.items())
        print(
            f"{self.checkpoint.stem}: {self.budget.spent:6.0f} s  {self.budget.share:6.2%}  "
            f"step {self.budget.steps}  {steps_per_second * self.plan.batch:.1f} pictures/s  "
            f"{means}",
            flush=True,
        )


def split(module: torch.nn.Module) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """A module's parameters for Muon and for AdamW."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in module.named_parameters():
        outermost = any(part in name for part in OUTERMOST)
        (others if outermost or parameter.ndim < 2 else matrices).append(parameter)
    return matrices, others
