"""Exact limits of few-step students on planar mixtures: what no training can improve.

    python benchmarks/exact_limits.py [--mixtures ring,grid,clusters] [--steps 4]

A student's step table and the x0 that its method aims at decide where it ends, however well the
network learns. This script puts the exact x0 (of the closed-form teacher) in the network's place
and draws with it. It prints, per mixture, the sliced W2 over the floor of two true draws, the
share of samples within 3 sigma, and the smallest mode's share over its weight. Three questions:

- landing: x0 is the end of the teacher's path from the student's own x_t. Which step may use it?
  `posterior` draws x_s from q(x_s | x_t, x0), as DDGAN's generator does without a latent.
- times: which inner times of a uniform grid end nearest to the exact paths, for DDIM with the
  exact denoiser (the optimum that `oss` searches)?
- previous: D-ODE's term with the previous output, its factor fitted by least squares to the path.
- sought: true samples that descend SDS's gradient, which is where score distillation alone ends.

`EXACT` has them by method, for `benchmarks/methods.py`. Those of `oss` and `d-ode` are nearest to
the exact paths, which need not have the least floors.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from itertools import combinations, pairwise

import torch
from torch import Tensor

from edgedistill.diffusion.solvers import ddim_step, one_step_x0, solve, time_grid
from edgedistill.evaluation.planar import planar_figures
from edgedistill.teachers import load_teacher
from edgedistill.teachers.families.mixture import Mixture

SAMPLES, SEARCHED, FINE, GRID, DESCENTS = 10_000, 1_000, 200, 25, 400

X0 = Callable[[Mixture, Tensor, Tensor, Tensor], Tensor]
"""(mixture, x_t (N, 2), t, the student's next time s) -> x0 (N, 2)."""
Landing = Callable[[Mixture, Tensor, Tensor, Tensor, Tensor, torch.Generator], Tensor]
"""(mixture, x_t, x0, t, s, generator) -> x_s (N, 2)."""


def path(mixture: Mixture, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return the teacher's ODE from x at t to time s, by Heun's method in fine steps."""
    count = max(8, int(FINE * float(t - s)))
    times = torch.lerp(t, s, torch.linspace(0, 1, count + 1, dtype=torch.float64))
    return solve(mixture.denoiser, x, times, {}, "heun")


# --- x0 and landings ----------------------------------------------------------------------------


def end(mixture: Mixture, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return the end of the teacher's path, at time 0."""
    return path(mixture, x_t, t, torch.zeros_like(t))


def towards_next(mixture: Mixture, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return the x0 with which one DDIM step lands on the teacher's path at s."""
    x_s = path(mixture, x_t, t, s)
    return one_step_x0(mixture.denoiser.schedule, x_t, x_s, t, s) if s > 0 else x_s


def mean(mixture: Mixture, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return the posterior mean, as the teacher itself gives it."""
    x0: Tensor = mixture.denoiser(x_t, t.expand(len(x_t)), {})
    return x0


def ddim(
    mixture: Mixture, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor, generator: torch.Generator
) -> Tensor:
    """Take the deterministic step."""
    return ddim_step(mixture.denoiser.schedule, x_t, x0, t, s)


def renoise(
    mixture: Mixture, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor, generator: torch.Generator
) -> Tensor:
    """Noise x0 anew."""
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    return mixture.denoiser.noised(x0, s.expand(len(x0)), noise)


def posterior(
    mixture: Mixture, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor, generator: torch.Generator
) -> Tensor:
    """Draw x_s of the forward process given x_t and x0 (Ho et al. 2020, Eq. 6-7)."""
    schedule = mixture.denoiser.schedule
    (a_t, v_t), (a_s, v_s) = ((schedule.alpha(u), schedule.sigma(u).square()) for u in (t, s))
    ratio = a_t / a_s
    step = v_t - ratio.square() * v_s  # variance added from s to t
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    return (ratio * v_s * x_t + a_s * step * x0) / v_t + (step * v_s / v_t).sqrt() * noise


LANDINGS: dict[str, tuple[X0, Landing, bool]] = {
    "one step, path's end": (end, ddim, True),
    "ddim, path's end": (end, ddim, False),
    "renoise, path's end": (end, renoise, False),
    "ddim, next point of the path": (towards_next, ddim, False),
    "posterior, path's end": (end, posterior, False),
    "posterior, mean": (mean, posterior, False),
}
"""By name: x0, landing, and whether one step is taken whatever --steps says."""


def landed(mixture: Mixture, name: str, steps: int) -> Tensor:
    """Return samples (N, 2) of one of `LANDINGS`."""
    x0_of, land, single = LANDINGS[name]
    generator = torch.Generator().manual_seed(1)
    times = time_grid(mixture.denoiser.schedule, 1 if single else steps)
    x = torch.randn(SAMPLES, 2, generator=generator, dtype=torch.float64)
    for t, s in pairwise(times):
        x0 = x0_of(mixture, x, t, s)
        x = land(mixture, x, x0, t, s, generator) if s > 0 else x0
    return x


# --- Times --------------------------------------------------------------------------------------


def drawn(mixture: Mixture, noise: Tensor, times: Tensor) -> Tensor:
    """Return DDIM's samples with the exact denoiser on these times."""
    return solve(mixture.denoiser, noise, times, {})


@cache
def best_times(mixture: Mixture, steps: int) -> tuple[Tensor, Tensor]:
    """Return the times on a uniform grid that end nearest to the exact paths, and samples there.

    Nearest is by the root mean square distance for the same noise, which `oss` minimises too.
    """
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(SEARCHED, 2, generator=generator, dtype=torch.float64)
    grid = time_grid(mixture.denoiser.schedule, GRID)
    ends = path(mixture, noise, grid[0], grid[-1])

    def error(inner: tuple[int, ...]) -> float:
        return float((drawn(mixture, noise, grid[[0, *inner, GRID]]) - ends).square().mean())

    inner = min(combinations(range(1, GRID), steps - 1), key=error)
    times = grid[[0, *inner, GRID]]
    noise = torch.randn(SAMPLES, 2, generator=generator, dtype=torch.float64)
    return times, drawn(mixture, noise, times)


# --- The previous output ------------------------------------------------------------------------


def with_previous(mixture: Mixture, steps: int) -> tuple[list[float], Tensor]:
    """Return the factors of D-ODE's term f_t - f_{t+1}, and the samples drawn with them.

    Each factor is the least-squares one: with it the step lands nearest to the exact path of the
    same noise.
    """
    schedule = mixture.denoiser.schedule
    times = time_grid(schedule, steps)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(SAMPLES, 2, generator=generator, dtype=torch.float64)
    previous, factors, exact = None, [], x
    for t, s in pairwise(times):
        exact = path(mixture, exact, t, s)
        x0 = mean(mixture, x, t, s)
        plain = ddim_step(schedule, x, x0, t, s)
        if previous is not None:
            moved = ddim_step(schedule, x, x0 + (x0 - previous), t, s) - plain
            factor = (moved * (exact - plain)).sum() / moved.square().sum()
            factors.append(float(factor))
            plain = plain + factor * moved
        x, previous = plain, x0
    return factors, x


# --- Score distillation alone -------------------------------------------------------------------


def sought(mixture: Mixture) -> Tensor:
    """Return true samples after they have descended SDS's gradient, sigma^2 (eps' - eps)."""
    generator = torch.Generator().manual_seed(6)
    schedule, x = mixture.denoiser.schedule, mixture.draw(SAMPLES, generator).double()
    for index in range(DESCENTS):
        t = torch.rand(SAMPLES, generator=generator, dtype=torch.float64)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        alpha, sigma = schedule.at(t, like=x)
        apart = x - mixture.denoiser(mixture.denoiser.noised(x, t, noise), t, {})
        x = x - (1 - index / DESCENTS) * alpha * sigma * apart
    return x


# --- By method ----------------------------------------------------------------------------------

EXACT: dict[str, Callable[[Mixture, int], Tensor]] = {
    "d-ode": lambda mixture, steps: with_previous(mixture, steps)[1],
    "ddgan": lambda mixture, steps: landed(mixture, "posterior, path's end", steps),
    "oss": lambda mixture, steps: best_times(mixture, steps)[1],
    "sds": lambda mixture, steps: sought(mixture),
}
"""Function from a mixture and a number of steps to what a method draws with exact functions in
place of its networks, (N, 2). That of `sds` is for its term alone, whatever the steps."""


@cache
def exact_figures(method: str, place: str, steps: int) -> tuple[float, float, float] | None:
    """Return floors, share within 3 sigma and smallest mode of a method in `EXACT`, else None."""
    if method not in EXACT:
        return None
    mixture = load_teacher("mixture", place)
    assert isinstance(mixture, Mixture)
    return figures(mixture, EXACT[method](mixture, steps))


@cache
def least_distance(place: str, steps: int) -> float:
    """Return the root mean square distance from the exact paths' ends at the best times."""
    mixture = load_teacher("mixture", place)
    assert isinstance(mixture, Mixture)
    times, _ = best_times(mixture, steps)
    noise = torch.randn(SAMPLES, 2, generator=torch.Generator().manual_seed(7)).double()
    ends = path(mixture, noise, times[0], times[-1])
    return float((drawn(mixture, noise, times) - ends).square().sum(1).mean().sqrt())


def figures(mixture: Mixture, samples: Tensor) -> tuple[float, float, float]:
    """Return floors, share within 3 sigma and smallest mode of samples (N, 2)."""
    found = planar_figures(samples, mixture, torch.Generator().manual_seed(1234))
    return found["w2_ratio"], found["within_3_sigma"], found["smallest_mode"]


def line(mixture: Mixture, name: str, samples: Tensor) -> str:
    """Return a row of the table."""
    floors, within, smallest = figures(mixture, samples)
    return f"{name:38} {floors:6.2f} {within:7.3f} {smallest:9.3f}"


def main() -> None:
    """Print a table a mixture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mixtures", default="ring,grid,clusters")
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    for place in args.mixtures.split(","):
        mixture = load_teacher("mixture", place)
        assert isinstance(mixture, Mixture)
        print(f"\n{place:38} floors  within  smallest")
        for name in LANDINGS:
            print(line(mixture, name, landed(mixture, name, args.steps)), flush=True)
        noise = torch.Generator().manual_seed(5)
        x = torch.randn(SAMPLES, 2, generator=noise, dtype=torch.float64)
        uniform = time_grid(mixture.denoiser.schedule, args.steps)
        print(line(mixture, "ddim, mean, uniform times", drawn(mixture, x, uniform)))
        times, samples = best_times(mixture, args.steps)
        words = " ".join(f"{t:g}" for t in times)
        print(line(mixture, f"ddim, mean, best {words}", samples), flush=True)
        factors, samples = with_previous(mixture, args.steps)
        print(line(mixture, f"D-ODE {' '.join(f'{f:.2f}' for f in factors)}", samples), flush=True)
        print(line(mixture, "sds, alone", sought(mixture)), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
