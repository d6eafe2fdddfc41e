"""Networks as Core ML programs, interpreted, against the networks themselves."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip("coremltools")

from edgedistill.teachers import load_teacher
from edgedistill.teachers.base import ExportGraph
from edgedistill.tiny import make_tiny
from edgedistill_export.mil import Interpreter, read_package
from edgedistill_export.parity import psnr
from edgedistill_export.targets import Job, coreml, find_target
from edgedistill_export.targets.coreml_lowering import lower
from edgedistill_export.targets.coreml_ranks import MAX_RANK

X = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(0))


def build(graph, folder, precision="fp16"):
    """A network's program, and its least PSNR by output on the example's first row."""
    options = find_target("coreml").options({})
    job = Job(name="net", graph=graph, precision=precision, folder=folder, options=options)
    built = coreml.build(job)
    program = read_package(built.files[0])
    inputs = {name: value[:1] for name, value in graph.inputs.items()}
    with torch.no_grad():
        wanted = graph.module(*inputs.values())
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    found = Interpreter(program)(**{name: value.numpy() for name, value in inputs.items()})
    values = [
        min(psnr(one.numpy(), found[name]))
        for name, one in zip(graph.outputs, wanted, strict=True)
    ]
    return program, values


class Net(nn.Module):
    """A function of one tensor as a network."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def masks(x):
    ones = x.new_ones(4, 6) > 0
    chosen = (ones & (x > 0.1)) | (x < -0.5)
    return torch.where(chosen, x, 2.0) + torch.where(x > 0.3, 1.0, x)


def argmax(x):
    rows = x.flatten(2)
    return rows[torch.arange(1), rows.abs().sum(-1).argmax(-1)]


def rotary(x):
    out = torch.empty_like(x)
    out[..., 0::2], out[..., 1::2] = -x[..., 1::2], x[..., 0::2] * 2
    return out


def slices(x):
    out = x.clone()
    out[:, 1:3] = 7
    out[:, :, 1::2] *= 3
    out[..., 1:5:3] = -1
    out[:, :, -1:] = 0.5
    out[:, 4:] = 9
    return out


def frames(x):
    """Interleaves two halves of the channels, as the upsampling of video decoders."""
    halves = x.reshape(1, 2, 2, 1, 4, 6)
    first, second = halves[:, 0], halves[:, 1, :, :, :, :]
    twice = torch.stack((first, second), 3) * 2
    return twice[:, -1:].reshape(1, 2, 4, 6) + first.sum(2)


def patches(x):
    """Seven axes, and a transposition of all but the first."""
    return x.reshape(1, 2, 2, 2, 2, 3, 2).permute(0, 6, 2, 4, 1, 3, 5).reshape(1, 8, 12)


def unpatched(x):
    """The end of a transformer over latents, six axes with an einsum between."""
    patches = x.reshape(1, 2, 2, 2, 2, 6)
    return torch.einsum("nhwpqc->nchpwq", patches).reshape(1, 6, 4, 4)


def strips(x):
    return x.reshape(1, 4, 1, 2, 2, 6).transpose(-3, 4).clone().reshape(1, 4, 24)


FUNCTIONS = {
    "argmax": argmax,
    "einsum of six axes": unpatched,
    "frames": frames,
    "group norm of frames": lambda x: F.group_norm(x[:, :, None], 2, X[0, :, 0, 0]),
    "group norm of rows": lambda x: F.group_norm(x.flatten(2)[..., 0], 2, bias=X[0, :, 0, 0]),
    "group norm of tokens": lambda x: F.group_norm(x.flatten(2), 2, X[0, :, 0, 0], X[0, :, 1, 0]),
    "l2 norm": lambda x: F.normalize(x, dim=1) + x.abs().norm(1, dim=1, keepdim=True),
    "masks": masks,
    "nearest": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest-exact"),
    "nearest of odd sizes": lambda x: F.interpolate(x, size=(6, 9), mode="nearest-exact"),
    "patches": patches,
    "rotary": rotary,
    "slices": slices,
    "strips": strips,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_means_the_same_when_interpreted(name, tmp_path):
    function = FUNCTIONS[name]
    program, values = build(ExportGraph(Net(function), {"x": X}, ("f",)), tmp_path, "fp32")
    assert min(values) > 110
    slots = [slot for operation in program.operations for slot in operation.outputs]
    assert max(len(slot.shape) for slot in slots) <= MAX_RANK
    # Neither runs on the Neural Engine.
    assert not {"scatter", "scatter_nd"} & {operation.kind for operation in program.operations}


LOUD = {
    "group norm": lambda x: F.group_norm(x, 2),
    "layer norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "rms norm": lambda x: F.rms_norm(x, x.shape[-1:]),
    "rms norm spelt out": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "rms norm of products": lambda x: x / (x * x).mean(-1, keepdim=True).add(1e-6).sqrt(),
    "rms norm by a power": lambda x: x * (x.square().mean(-1, keepdim=True) + 1e-6) ** -0.5,
}


@pytest.mark.parametrize("name", LOUD)
@pytest.mark.parametrize("loudness", [1, 3000])
def test_a_norm_in_float16_takes_what_its_squares_cannot(name, loudness, tmp_path):
    """3000 squared is 9e6; the largest float16 is 65504."""
    graph = ExportGraph(Net(lambda x: LOUD[name](x * loudness)), {"x": X}, ("f",))
    program, values = build(graph, tmp_path)
    assert min(values) > 60
    assert "fp16" in {op.outputs[0].stored.name for op in program.operations}


def test_only_the_mean_squares_stay_in_float32(tmp_path):
    """Not what a mean without a root behind it leads to."""

    def function(x):
        normed = LOUD["rms norm spelt out"](x)
        return normed * 2 + x.square().mean((1, 2, 3), keepdim=True) + x

    program, _ = build(ExportGraph(Net(function), {"x": X}, ("f",)), tmp_path)
    wide = [op.kind for op in program.operations if op.outputs[0].stored.name == "fp32"]
    assert set(wide) <= {"cast", "square", "pow", "mul", "reduce_mean", "add", "rsqrt"}
    assert max(wide.count("add"), wide.count("mul")) <= 1


def test_an_operator_that_is_not_to_be_had_is_named():
    graph = ExportGraph(Net(torch.special.bessel_j0), {"x": X}, ("f",))
    with pytest.raises(
        ValueError, match=r"net: coremltools .* has no conversion for aten\.special_bessel_j0"
    ):
        lower(graph, "net")


NETWORKS = [
    ("pixart", "text_encoder"),
    ("sana", "text_encoder"),
    ("sd3", "text_encoder"),
    ("wan", "denoiser"),
]
"""Those with operators that no other test has: T5, Gemma and CLIP; rotations in eight axes."""


@pytest.mark.parametrize(("family", "name"), NETWORKS)
def test_a_network_of_a_family_means_the_same(family, name, tmp_path):
    teacher = load_teacher(family, make_tiny(family, tmp_path / "teacher"))
    graph = teacher.graphs()[name]
    _, values = build(graph, tmp_path)
    assert min(values) > 50
