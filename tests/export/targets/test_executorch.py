import gc
import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip("executorch")

from executorch.exir.passes.constant_prop_pass import constant_prop_pass

from edgedistill.teachers.base import ExportGraph
from edgedistill_export import export_student
from edgedistill_export.backends.executorch import ExecuTorchSession, portable_lib
from edgedistill_export.passes.xnnpack import for_xnnpack
from edgedistill_export.quantize.pt2e import OPERATORS, layer_of, quantize
from edgedistill_export.quiet import no_stderr, quiet
from edgedistill_export.targets import Job, find_target
from edgedistill_export.targets.executorch import build
from edgedistill_runtime import Manifest, Pipeline
from edgedistill_runtime.manifest import Graph as Entry
from edgedistill_runtime.manifest import Port


def export(module, *inputs):
    with torch.no_grad(), quiet():
        return torch.export.export(module.eval(), inputs)


def operators(program):
    return {node.target for node in program.graph.nodes if node.op == "call_function"}


class Attention(nn.Module):
    def __init__(self, mask=None, **choices):
        super().__init__()
        self.mask, self.choices = mask, choices

    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, self.mask, **self.choices)


class Halves(nn.Module):
    def forward(self, x):
        first, second = x.chunk(2, 1)
        return first - second


def normal(*shape, seed=0, mean=0.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + mean


def scrambled(module):
    for i, weight in enumerate(module.parameters()):
        weight.data = normal(*weight.shape, seed=i)
    return module


HEADS = [normal(2, 4, 6, 8, seed=i) for i in range(3)]
BELOW = torch.ones(6, 6, dtype=torch.bool).tril(1)


@pytest.mark.parametrize(
    ("module", "inputs", "gone"),
    [
        (nn.GroupNorm(2, 8), [normal(2, 8, 3, 5)], "group_norm"),
        (nn.GroupNorm(4, 8), [normal(2, 8, 7, mean=30.0)], "group_norm"),
        (nn.GroupNorm(2, 8, affine=False), [normal(2, 8, 3, 5)], "group_norm"),
        (nn.LayerNorm(8, eps=1e-2), [normal(2, 3, 8)], "layer_norm"),
        (nn.LayerNorm([3, 8], bias=False), [normal(2, 3, 8, mean=30.0)], "layer_norm"),
        (Attention(), HEADS, "scaled_dot_product_attention"),
        (Attention(BELOW, scale=0.3), HEADS, "scaled_dot_product_attention"),
        (Attention(normal(1, 6, 6)), HEADS, "scaled_dot_product_attention"),
        (Attention(is_causal=True), [HEADS[0][:, :, :3], *HEADS[1:]], "scaled_dot_product"),
        (Attention(enable_gqa=True), [HEADS[0], HEADS[1][:, :2], HEADS[2][:, :2]], "attention"),
        (Halves(), [normal(2, 5, 3)[:, :4]], "split"),
    ],
)
def test_what_xnnpack_lacks_is_rewritten_to_the_same_numbers(module, inputs, gone):
    program = for_xnnpack(export(scrambled(module), *inputs))
    assert not [operator for operator in operators(program) if gone in str(operator)]
    with torch.no_grad():
        torch.testing.assert_close(
            program.module()(*inputs), module(*inputs), rtol=1e-4, atol=2e-5
        )


@pytest.fixture(scope="module")
def fp32(student_dir, tmp_path_factory):
    return export_student(
        student_dir, "executorch", out=tmp_path_factory.mktemp("executorch") / "fp32"
    )


def test_the_bundle_draws_what_the_student_draws(student, fp32):
    manifest = Manifest.read(fp32)
    assert manifest.parity.passed
    assert min(figures.worst for figures in manifest.parity.graphs.values()) > 100
    pipe = Pipeline.load(fp32)
    noise = student.table.draw((3, 4, 4, 4), torch.Generator().manual_seed(3))
    prompts = ["red", "a longer prompt than fits", ""]
    expected = student.sample(student.teacher.encode(prompts), noise)
    result = pipe(prompts, noise=[tensor.numpy() for tensor in noise])
    np.testing.assert_allclose(result.samples, expected.numpy(), atol=1e-4)


def test_the_manifest_says_what_xnnpack_took(fp32):
    for graph in Manifest.read(fp32).graphs.values():
        assert graph.batch == 1
        words = graph.notes["delegated"].split()
        assert (words[0], words[2], words[4]) == ("xnnpack", "of", "nodes,")
        assert float(words[5].rstrip("%")) > 95
        assert int(words[1]) > 0.9 * int(words[3])


def test_a_planar_student_needs_no_pictures(planar_dir, tmp_path):
    out = export_student(planar_dir, "executorch", out=tmp_path / "planar")
    assert Manifest.read(out).parity.graphs["denoiser"].worst > 100


class Block(nn.Module):
    """What a U-Net is made of."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.last = nn.Conv2d(16, 16, 3, padding=1)
        self.gain = nn.Linear(8, 16)

    def forward(self, x, t):
        h = self.first(x) * self.gain(t)[..., None, None]
        return h + self.last(F.silu(self.norm(h)))


def draw(seed):
    return {"x": normal(1, 8, 6, 6, seed=seed).numpy(), "t": normal(1, 8, seed=-seed).numpy()}


CALLS = [draw(seed) for seed in range(1, 9)]
CALL = CALLS[-1]


@pytest.fixture(scope="module")
def block():
    torch.manual_seed(0)
    inputs = {"x": torch.zeros(2, 8, 6, 6), "t": torch.zeros(2, 8)}
    return ExportGraph(Block().eval(), inputs, ("y",))


def compiled(graph, folder, precision, calls=CALLS, keep=()):
    return build(
        Job(
            name="denoiser",
            graph=graph,
            precision=precision,
            folder=folder,
            calls=lambda: calls,
            keep=frozenset(keep),
        )
    )


@pytest.fixture(scope="module")
def built(block, tmp_path_factory):
    """By precision."""
    folder = tmp_path_factory.mktemp("block")
    made = {}
    for precision in ("fp32", "int8"):
        (folder / precision).mkdir()
        made[precision] = compiled(block, folder / precision, precision)
    return made


def opened(built, graph, **choices):
    def ports(names):
        return tuple(Port(name=name, shape=(1,), dtype="float32") for name in names)

    entry = Entry(
        file=built.files[0].name,
        sha256={},
        precision="",
        inputs=ports(graph.inputs),
        outputs=ports(graph.outputs),
        notes={},
    )
    return ExecuTorchSession(built.files[0], entry, **choices)


def ratio_of_error(session, graph, call):
    """Root mean square, of error to result."""
    found = session(**dict(reversed(call.items())))["y"]
    assert found.dtype == np.float32
    with torch.no_grad():
        expected = graph.module(*map(torch.from_numpy, call.values())).numpy()
    return np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))


def test_int8_is_smaller_and_close(block, built):
    errors = {
        precision: ratio_of_error(opened(made, block), block, CALLS[0])
        for precision, made in built.items()
    }
    assert errors["fp32"] < 1e-5
    assert 1e-3 < errors["int8"] < 0.03
    sizes = {precision: made.files[0].stat().st_size for precision, made in built.items()}
    weights = sum(weight.numel() for weight in block.module.parameters())
    assert sizes["fp32"] - sizes["int8"] > 2 * weights


class Around(nn.Module):
    """An int8 result used twice: beyond the layers that follow it, and by them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.enter = nn.Conv2d(16, 16, 1)
        self.rows = nn.Linear(16, 16)
        self.leave = nn.Conv2d(16, 16, 1)
        self.last = nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x, t):
        h = self.first(x)
        rows = self.rows(self.enter(self.norm(h)).permute(0, 2, 3, 1).flatten(1, 2))
        pixels = rows.view(-1, *h.shape[2:], 16).permute(0, 3, 1, 2)
        return self.last(h + self.leave(pixels)) * t[..., None, None]


def test_int8_around_a_residual(block, tmp_path):
    torch.manual_seed(0)
    graph = ExportGraph(Around().eval(), block.inputs, ("y",))
    made = compiled(graph, tmp_path, "int8")
    assert ratio_of_error(opened(made, graph), graph, CALLS[0]) < 0.03


class Twice(nn.Module):
    """A layer that is called on what it gave, as a video decoder's on frame after frame."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 8, 1)

    def forward(self, x, t):
        return self.last(self.conv(F.silu(self.conv(x)))) * t[..., None, None]


def test_int8_of_a_layer_that_is_called_twice(block, tmp_path):
    torch.manual_seed(0)
    graph = ExportGraph(Twice().eval(), block.inputs, ("y",))
    made = compiled(graph, tmp_path, "int8")
    assert ratio_of_error(opened(made, graph), graph, CALLS[0]) < 0.05


def quantized_layers(program):
    """Paths of the layers whose weights come out of a dequantize operator."""
    layers = [node for node in program.graph.nodes if node.target in OPERATORS]
    return {layer_of(n) for n in layers if "dequantize" in str(n.args[1].target)}


def test_layers_that_are_kept_stay_in_floating_point(block):
    program = export(block.module, *(tensor[:1] for tensor in block.inputs.values()))
    with quiet():
        found = quantize(for_xnnpack(program), {"first", "gain"}, CALLS)
    assert quantized_layers(found) == {"first", "gain"}


def test_a_layer_to_keep_that_is_none_names_the_others(block, tmp_path):
    with pytest.raises(ValueError, match=r"unknown layer to keep 'norm'; choose from first, gain"):
        compiled(block, tmp_path, "int8", keep={"norm"})


def test_calibration_needs_calls(block, tmp_path):
    with pytest.raises(ValueError, match="at least one call"):
        compiled(block, tmp_path, "int8", calls=[])


class Sums(nn.Module):
    def forward(self, x):
        return x.cumsum(1).cumsum(2) + x


def test_a_network_that_xnnpack_cannot_run_is_refused(tmp_path):
    graph = ExportGraph(Sums(), {"x": torch.zeros(2, 3, 4)}, ("y",))
    message = (
        r"denoiser: XNNPACK takes 33\.3% of the arithmetic, under 75%; "
        "left out: 2 aten::cumsum"
    )
    with pytest.raises(ValueError, match=message):
        compiled(graph, tmp_path, "fp32")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_precision_names_the_choices():
    with pytest.raises(ValueError, match=r"'fp16'.*choose from fp32, int8"):
        find_target("executorch").check("fp16")


def test_the_pool_keeps_its_size_while_a_graph_is_open(block, built):
    gc.collect()
    session = opened(built["fp32"], block, threads=1)
    assert portable_lib._threadpool_get_thread_count() == 1
    opened(built["fp32"], block, threads=1)
    with pytest.raises(ValueError, match=r"threads=2: 1 executorch graphs are open.* 1 threads"):
        opened(built["fp32"], block, threads=2)
    del session
    session = opened(built["fp32"], block, threads=2)
    assert portable_lib._threadpool_get_thread_count() == 2
    assert ratio_of_error(session, block, CALL) < 1e-5


def test_providers_are_refused(block, built):
    with pytest.raises(ValueError, match="unknown provider 'CUDA'"):
        opened(built["fp32"], block, providers=["CUDA"])


def test_quiet_leaves_logging_as_it_was(capfd):
    handlers = list(logging.getLogger().handlers)
    with quiet(), no_stderr():
        logging.getLogger().addHandler(logging.NullHandler())
        logging.getLogger("vendor").warning("unheard")
        print("unheard", file=__import__("sys").__stderr__, flush=True)
    assert logging.getLogger().handlers == handlers
    assert logging.getLogger("vendor").isEnabledFor(logging.WARNING)
    assert capfd.readouterr().err == ""


class Scratch(nn.Module):
    """Empty tensors, which are written before they are read."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 64)

    def forward(self, x):
        scratch = torch.empty_like(x).fill_(1.0) + x.new_empty(1, 4).fill_(2.0)
        return self.linear(x + scratch)


class Net(nn.Module):
    """A function of one tensor as a network, with a layer after it."""

    def __init__(self, function, width):
        super().__init__()
        self.function = function
        self.linear = nn.Linear(width, 64)

    def forward(self, x):
        return self.linear(self.function(x))


def masked(x):
    """T5's attention: a bias by place and head, and the lowest number at blanks."""
    tokens = x[:, :, 0] > -1
    bias = torch.arange(128.0).reshape(8, 8, 2).sin().permute(2, 0, 1)[None]
    low = torch.finfo(x.dtype).min
    mask = torch.where(tokens[:, None, None].expand(-1, 1, 8, -1), bias, low)
    q = x.view(-1, 8, 2, 3).transpose(1, 2)
    attended = F.scaled_dot_product_attention(q, q, q, mask)
    scores = q @ q.transpose(2, 3) + torch.where(mask < low / 2, low, bias)
    return (attended + scores.softmax(-1) @ q).transpose(1, 2).reshape(x.shape)


class Frames(nn.Module):
    """Convolutions of frames: padded, of two groups, with steps and gaps, of one frame."""

    def __init__(self):
        super().__init__()
        self.padded = nn.Conv3d(4, 4, 3, padding=(0, 1, 1))
        choices = {"stride": (2, 1, 1), "padding": 1, "dilation": (2, 1, 1), "bias": False}
        self.gaps = nn.Conv3d(4, 4, (2, 3, 3), groups=2, **choices)
        self.one = nn.Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x):
        return self.one(self.gaps(self.padded(F.pad(x, (0, 0, 0, 0, 2, 0))))[:, :, :1])


def patches(x):
    """Patches of frames as tokens, by a transposition of eight axes."""
    tokens = x.reshape(1, 4, 2, 1, 2, 2, 3, 2).permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(1, 3)
    return tokens.flatten(2)


SPELT = {
    "eight axes": (patches, normal(2, 4, 2, 4, 6)),
    "frames": (Frames(), normal(2, 4, 3, 5, 6)),
    "masks": (masked, normal(2, 8, 6)),
    "unit vectors": (lambda x: F.normalize(x, dim=1), normal(2, 4, 2, 3, 6)),
}


class Looked(nn.Module):
    """Rows looked up by number, as classes are: nothing is computed."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 3)

    def forward(self, ids):
        return self.table(ids[:, 0])


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (Scratch(), torch.randn(2, 4)),
        (Looked(), torch.tensor([[3, 1]] * 2)),
        *((Net(function, function(x[:1]).shape[-1]), x) for function, x in SPELT.values()),
    ],
    ids=["scratch", "looked", *SPELT],
)
def test_what_xnnpack_lacks_is_spelt_in_what_it_has(module, x, tmp_path):
    graph = ExportGraph(module.eval(), {"x": x}, ("y",))
    session = opened(compiled(graph, tmp_path, "fp32"), graph)
    found = session(x=x[:1].numpy())["y"]
    np.testing.assert_allclose(found, module(x[:1]).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_convolutions_of_frames_are_quantized():
    module, x = Frames().eval(), normal(1, 4, 3, 5, 6)
    calls = [{"x": normal(1, 4, 3, 5, 6, seed=seed).numpy()} for seed in range(4)]
    with quiet():
        program = constant_prop_pass(for_xnnpack(export(module, x)))
        found = quantize(program, {"padded", "gaps", "one"}, calls)
    assert quantized_layers(found) == {"padded", "gaps", "one"}
    with torch.no_grad():
        error = (found.module()(x) - module(x)).std() / module(x).std()
    assert 1e-3 < error < 0.05
