"""Comparison of a teacher's network inputs and decoding with its own diffusers pipeline.

The pipeline's own `__call__` runs on the teacher's modules, for one step of a scheduler that
leaves its sample unchanged. The network is not run: its inputs are recorded, and compared with its
inputs from our code, so an input that the pipeline feeds and we do not is found, whatever its
name. The decoder's input and output are compared too.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from torch._subclasses import FakeTensorMode
from transformers.utils import logging as transformers_logging

from edgedistill.teachers.classes import ClassTeacher
from edgedistill.teachers.families.wan import sheet
from edgedistill.teachers.pipeline import PipelineTeacher

__all__ = ["Still", "input_differences", "still", "unread_weights"]

PROMPT = "A red  Apple, (shiny:1.2) & round"
"""Prompt that is compared besides the empty one: capitals, blanks, and signs that some tools
interpret."""

TIME = 500.0
"""Timestep at which the network's inputs are compared."""

SEED = 0
"""Seed of the x0 that are decoded."""

SIDE = 8
"""Largest height and width of a latent that is decoded."""


LIBRARIES: tuple[Any, ...] = (diffusers_logging, transformers_logging)

ASKED: dict[str, Any] = {
    "num_inference_steps": 1,
    "return_dict": False,
    "clean_caption": False,
    "use_resolution_binning": False,
    "complex_human_instruction": None,
}
"""Arguments for every pipeline that accepts them; the families add their own."""


class Still:
    """A one-step scheduler that leaves its sample unchanged.

    Args:
        config: Config of the scheduler that it replaces.
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, config: Any) -> None:
        self.config = config
        self.timesteps, self.sigmas = torch.tensor([TIME]), torch.tensor([0.5, 0.0])

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Take one step, whatever the arguments."""
        self.timesteps = self.timesteps.to(device)

    def set_begin_index(self, index: int) -> None:
        """Do nothing, since there is one step."""

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the sample unchanged."""
        return sample

    def step(
        self,
        output: Tensor,
        t: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        """Return the sample unchanged, as diffusers' schedulers return it."""
        return _Step(sample) if return_dict else (sample, sample)


class _Step:
    def __init__(self, sample: Tensor) -> None:
        self.prev_sample = sample


def input_differences(teacher: PipelineTeacher) -> dict[str, float]:
    """Compare a teacher's inputs and decoding with its pipeline's.

    Neither the teacher nor the global random state changes.

    Args:
        teacher: An opened teacher.

    Returns:
        The largest difference by name, relative to the largest value: "prompt", in the network's
            inputs with and without a prompt, including the picture's size; "decode", in pictures
            of the same x0; "encode", in x0 from the input of the pipeline's decoder. Empty where
            the family's pipelines are not made for such a network.

    Raises:
        ValueError: If the pipeline cannot run, if it and our code feed the network different
            inputs, or if layers of the network are not used; names them.
    """
    if unread := unread_weights(teacher):
        raise ValueError(
            f"{teacher.path}: {len(unread)} layers of its network take no part as it is called "
            f"here: {', '.join(unread[:3])}; they belong to an input that is not fed"
        )
    if not teacher.asks(torch.zeros(1, *teacher.sample_shape), prompt_of(teacher)):
        return {}
    with _quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
        return {"prompt": _prompt(teacher), **_pictures(teacher)}


def unread_weights(teacher: PipelineTeacher) -> list[str]:
    """Return layers of the network that are never called; nothing is computed."""
    core: Any = teacher.net.get_submodule(teacher.core)
    layers = {
        name: module
        for name, module in core.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    }
    called: set[str] = set()
    cond = teacher.encode(teacher.prompts[:1])
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
        for name, module in layers.items()
    ]
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            x = torch.zeros(1, *teacher.sample_shape, device=teacher.device)
            teacher.net(x, torch.tensor([TIME], device=teacher.device), **cond)
    finally:
        for hook in hooks:
            hook.remove()
    return sorted(layers.keys() - called)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of pipelines about what is compared here."""
    levels = [library.get_verbosity() for library in LIBRARIES]
    for library in LIBRARIES:
        library.set_verbosity(library.CRITICAL)
    try:
        yield
    finally:
        for library, level in zip(LIBRARIES, levels, strict=True):
            library.set_verbosity(level)


def still(pipeline: Any) -> Any:
    """Return the pipeline on the same modules, with one step that leaves latents unchanged."""
    clone = copy.copy(pipeline)
    # Bypass the pipeline's own setter, which would change its model index.
    vars(clone)["scheduler"] = Still(pipeline.scheduler.config)
    vars(clone)["watermark"] = None
    clone.set_progress_bar_config(disable=True)
    return clone


def prompt_of(teacher: PipelineTeacher) -> str:
    """Return the prompt to compare: a class's name, or `PROMPT`."""
    if isinstance(teacher, ClassTeacher):
        return next(iter(teacher.prompts), "")
    return PROMPT


def _ask(teacher: PipelineTeacher, x0: Tensor, **choices: Any) -> Any:
    """Run the pipeline on x0 (1, ...) and return its result."""
    pipeline = still(teacher.pipeline)
    taken = inspect.signature(type(pipeline).__call__).parameters
    given = {**ASKED, **(teacher.asks(x0, prompt_of(teacher)) or {}), **choices}
    # A pipeline that takes no latents draws them from this seed.
    given["generator"] = torch.Generator().manual_seed(SEED)
    try:
        return pipeline(**{name: value for name, value in given.items() if name in taken})[0]
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        kind = type(teacher.pipeline).__name__
        raise ValueError(f"{teacher.path}: its own {kind} cannot draw with it: {first}") from error


def _noise(teacher: PipelineTeacher, shape: Sequence[int]) -> Tensor:
    """Return x0 (1, ...), as a pipeline that takes no latents draws it from the same seed."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(SEED)).to(teacher.device)


def _prompt(teacher: PipelineTeacher) -> float:
    """Return the largest difference in the network's inputs."""
    x0, prompt = _noise(teacher, teacher.sample_shape), prompt_of(teacher)
    with _listening(teacher) as theirs:
        _ask(teacher, x0, output_type="latent")
    wanted = _stacked(theirs)
    with _listening(teacher) as ours:
        net, t = teacher.net, torch.tensor([TIME], device=teacher.device)
        many = sum(call.rows for call in theirs) > 1
        for cond in [teacher.null(), teacher.encode([prompt])][0 if many else 1 :]:
            net(x0, t, **cond)
    found = _stacked(ours)
    if odd := sorted(wanted.keys() ^ found.keys()):
        kind, fed = type(teacher.pipeline).__name__, odd[0] in wanted
        verb = "feeds its network" if fed else "does not feed its network"
        here = "is not" if fed else "is"
        raise ValueError(f"{teacher.path}: its own {kind} {verb} {odd[0]}, which {here} fed here")
    # Some pipelines put the prompt first, others the null condition.
    orders = [found, {name: value.flip(0) for name, value in found.items()}]
    return min(max(_apart(wanted[name], each[name]) for name in wanted) for each in orders)


def _pictures(teacher: PipelineTeacher) -> dict[str, float]:
    """Return the largest differences between x0 and pictures."""
    small = [*teacher.sample_shape[:-2], *(min(side, SIDE) for side in teacher.sample_shape[-2:])]
    if len(small) == 4:  # the latent of a video
        small[1] = min(small[1], 2)
    takes = "latents" in inspect.signature(type(teacher.pipeline).__call__).parameters
    x0 = _noise(teacher, small if takes else teacher.sample_shape)
    with _listening(teacher), _watching(getattr(teacher.pipeline, "vae", None)) as latents:
        drawn = torch.as_tensor(_ask(teacher, x0, output_type="pt"), device=teacher.device)
    if drawn.ndim == 5:
        drawn = sheet(drawn.transpose(1, 2))
    ours = (teacher.decode(x0) / 2 + 0.5).clamp(0, 1)
    found = {"decode": float((ours - drawn).abs().max())}
    if latents:
        scaling = copy.deepcopy(teacher.scaling).to(latents[0].device)
        found["encode"] = _apart(x0.to(latents[0].device), scaling.inverse(latents[0]))
    return found


@dataclass(frozen=True)
class _Call:
    """Inputs of one call of the network, and its number of rows."""

    inputs: dict[str, Tensor]
    rows: int


@contextmanager
def _listening(teacher: PipelineTeacher) -> Iterator[list[_Call]]:
    """Yield a list of the network's calls during the block; the network returns zeros."""
    core: Any = teacher.net.get_submodule(teacher.core)
    signature = inspect.signature(type(core).forward)
    heard: list[_Call] = []

    def answer(*args: Any, **kwargs: Any) -> Any:
        bound = dict(signature.bind(core, *args, **kwargs).arguments)
        x = list(bound.values())[1]
        heard.append(_Call(dict(_inputs(list(bound.items())[1:])), len(x)))
        if x.ndim == 3:  # sequences of tokens
            return Transformer2DModelOutput(sample=torch.zeros_like(x))
        channels = core.config.out_channels or x.shape[1]
        return Transformer2DModelOutput(sample=x.new_zeros(len(x), channels, *x.shape[2:]))

    core.forward = answer
    try:
        yield heard
    finally:
        del core.forward


@contextmanager
def _watching(vae: Any) -> Iterator[list[Tensor]]:
    """Yield a list of the latents that an autoencoder is given to decode during the block."""
    seen: list[Tensor] = []
    if vae is None:
        yield seen
        return
    own = vae.decode

    def decode(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(z)
        return own(z, *args, **kwargs)

    vae.decode = decode
    try:
        yield seen
    finally:
        del vae.decode


def _inputs(items: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors and numbers of a call by name, including those in dictionaries."""
    for name, value in items:
        if isinstance(value, Mapping):
            yield from _inputs((f"{name}.{key}", inner) for key, inner in value.items())
        elif isinstance(value, (Tensor, float, int)) and not isinstance(value, bool):
            yield name, torch.as_tensor(value).detach()


def _stacked(calls: Sequence[_Call]) -> dict[str, Tensor]:
    """Stack inputs of calls by name, one row for each row of the network's batch."""
    found = {}
    for name in {name for call in calls for name in call.inputs}:
        rows = [_rows(name, call.inputs[name], call.rows) for call in calls]
        found[name] = torch.cat(rows)
    return found


def _rows(name: str, value: Tensor, count: int) -> Tensor:
    value = value.float()
    if name.endswith("attention_mask") and value.ndim == 2:
        value = (1 - value)[:, None] * -10000.0  # the bias form of a mask in diffusers
    if not value.ndim or len(value) != count:  # shared by all rows, such as token positions
        value = value.expand(count, *value.shape)
    return value


def _apart(wanted: Tensor, found: Tensor) -> float:
    """Return the largest difference relative to the largest value; infinite for unequal shapes."""
    if wanted.shape != found.shape:
        return inf
    gap = (wanted - found.to(wanted.device)).abs().max()
    return float(gap / wanted.abs().max().clamp(min=1e-6))
