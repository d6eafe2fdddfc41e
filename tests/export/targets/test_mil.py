"""The interpreter against numpy, torch and coremltools."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

ct = pytest.importorskip("coremltools")

from edgedistill_export.mil import Interpreter, read_package  # noqa: E402
from edgedistill_export.mil.constexpr import CONSTEXPR  # noqa: E402
from edgedistill_export.mil.interpreter import OPERATORS  # noqa: E402
from edgedistill_export.mil.reader import Operation, Program, Slot  # noqa: E402
from edgedistill_export.mil.sdk import quiet  # noqa: E402
from edgedistill_export.mil.values import BY_NAME, read_blob, unpack  # noqa: E402
from edgedistill_export.targets.coreml_lowering import DECOMPOSITIONS  # noqa: E402
from edgedistill_export.targets.coreml_weights import LAYERS, SCHEMES  # noqa: E402

X = np.array([[-1.5, 0.25, 0.0], [2.0, -0.5, 3.0]], np.float32)
Y = np.array([[2.0, 0.25, -1.0]], np.float32)
POSITIVE = np.abs(X) + np.float32(0.5)
GRID = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
COLUMNS = GRID.swapaxes(1, 2)

CASES = [
    ("abs", {"x": X}, np.abs(X)),
    ("add", {"x": X, "y": Y}, X + Y),
    ("cast", {"x": X, "dtype": "fp32"}, X),
    ("ceil", {"x": X}, np.ceil(X)),
    ("clip", {"x": X, "alpha": -1.0, "beta": 1.0}, X.clip(-1, 1)),
    ("concat", {"values": [X, X], "axis": -1}, np.concatenate([X, X], -1)),
    (
        "concat",
        {"values": [X, X + 9], "axis": -1, "interleave": True},
        np.stack([X, X + 9], -1).reshape(2, 6),
    ),
    (
        "concat",
        {"values": [X, X + 9], "axis": 0, "interleave": True},
        [X[0], X[0] + 9, X[1], X[1] + 9],
    ),
    ("cos", {"x": X}, np.cos(X)),
    (
        "crop",
        {"x": GRID, "crop_height": [1, 0], "crop_width": [0, 2]},
        GRID[:, 1:, :2],
    ),
    ("cumsum", {"x": GRID, "axis": 1}, GRID.cumsum(1)),
    ("cumsum", {"x": X, "axis": 1, "exclusive": True}, np.c_[0 * X[:, :1], X.cumsum(1)[:, :-1]]),
    ("cumsum", {"x": X, "axis": 0, "reverse": True}, [X[0] + X[1], X[1]]),
    ("einsum", {"values": [GRID, COLUMNS], "equation": "abc,acd->abd"}, GRID @ COLUMNS),
    ("elu", {"x": X, "alpha": 0.5}, np.where(X > 0, X, 0.5 * np.expm1(X))),
    ("equal", {"x": X, "y": Y}, X == Y),
    ("erf", {"x": [0.5]}, [0.5204999]),
    ("exp2", {"x": X}, 2**X),
    ("exp", {"x": X}, np.exp(X)),
    ("expand_dims", {"x": X, "axes": [0, -1]}, X[None, :, :, None]),
    ("floor", {"x": X}, np.floor(X)),
    ("floor_div", {"x": X, "y": Y}, np.floor(X / Y)),
    ("gather", {"x": GRID, "indices": [[2, 0]], "axis": 1}, GRID[:, [[2, 0]]]),
    (
        "gather_along_axis",
        {"x": X, "indices": [[2, 0], [1, -1]], "axis": 1},
        np.take_along_axis(X, np.array([[2, 0], [1, -1]]), 1),
    ),
    ("gather_nd", {"x": GRID, "indices": [[1, 2], [0, -1]]}, GRID[[1, 0], [2, 2]]),
    (
        "gather_nd",
        {"x": GRID, "indices": [[[2]], [[0]]], "batch_dims": 1},
        [GRID[0, [2]], GRID[1, [0]]],
    ),
    ("gelu", {"x": [0.5]}, [0.3457312]),
    ("gelu", {"x": [0.5], "mode": "TANH_APPROXIMATION"}, [0.3457140]),
    ("gelu", {"x": X, "mode": "SIGMOID_APPROXIMATION"}, X / (1 + np.exp(-1.702 * X))),
    ("greater", {"x": X, "y": Y}, X > Y),
    ("greater_equal", {"x": X, "y": Y}, X >= Y),
    ("identity", {"x": X}, X),
    ("inverse", {"x": X, "epsilon": 0.1}, 1 / (X + 0.1)),
    ("leaky_relu", {"x": X, "alpha": 0.1}, np.where(X > 0, X, X * 0.1)),
    ("less", {"x": X, "y": Y}, X < Y),
    ("less_equal", {"x": X, "y": Y}, X <= Y),
    ("linear", {"x": GRID, "weight": GRID[0], "bias": Y[0]}, GRID @ GRID[0].T + Y[0]),
    ("log", {"x": POSITIVE, "epsilon": 0.5}, np.log(POSITIVE + 0.5)),
    ("logical_and", {"x": X > 0, "y": Y > 0}, (X > 0) & (Y > 0)),
    ("logical_not", {"x": X > 0}, X <= 0),
    ("logical_or", {"x": X > 0, "y": Y > 0}, (X > 0) | (Y > 0)),
    ("logical_xor", {"x": X > 0, "y": Y > 0}, (X > 0) ^ (Y > 0)),
    ("matmul", {"x": GRID, "y": GRID, "transpose_x": True}, COLUMNS @ GRID),
    ("matmul", {"x": GRID, "y": GRID, "transpose_y": True}, GRID @ COLUMNS),
    ("maximum", {"x": X, "y": Y}, np.maximum(X, Y)),
    ("minimum", {"x": X, "y": Y}, np.minimum(X, Y)),
    ("mod", {"x": X, "y": Y}, np.mod(X, Y)),
    ("mul", {"x": X, "y": Y}, X * Y),
    ("not_equal", {"x": X, "y": Y}, X != Y),
    (
        "pad",
        {"x": X, "pad": [1, 0, 0, 2], "constant_val": 7.0},
        np.pad(X, ((1, 0), (0, 2)), constant_values=7),
    ),
    (
        "pad",
        {"x": GRID, "pad": [0, 0, 0, 0, 1, 2], "mode": "reflect"},
        np.pad(GRID, ((0, 0), (0, 0), (1, 2)), "reflect"),
    ),
    ("pow", {"x": POSITIVE, "y": Y}, POSITIVE**Y),
    ("real_div", {"x": X, "y": Y}, X / Y),
    ("reduce_argmax", {"x": X, "axis": 0, "keep_dims": True}, [[1, 0, 1]]),
    ("reduce_argmax", {"x": X, "output_dtype": "int32"}, [1, 2]),
    ("reduce_argmin", {"x": X, "axis": 1}, [0, 1]),
    ("reduce_l1_norm", {"x": X, "axes": [1]}, np.abs(X).sum(1)),
    ("reduce_l2_norm", {"x": X, "axes": [0], "keep_dims": True}, np.sqrt((X * X).sum(0))[None]),
    (
        "reduce_max",
        {"x": GRID, "axes": [0, 2], "keep_dims": True},
        GRID[1:, :, 3:],
    ),
    ("reduce_log_sum_exp", {"x": X, "axes": [1]}, np.log(np.exp(X).sum(1))),
    ("reduce_mean", {"x": GRID, "axes": [-1]}, GRID.mean(-1)),
    ("reduce_min", {"x": GRID - 7}, -7.0),
    ("reduce_sum", {"x": GRID, "axes": [1], "keep_dims": False}, GRID.sum(1)),
    ("reduce_sum_square", {"x": X, "axes": [0]}, (X * X).sum(0)),
    ("relu", {"x": X}, np.maximum(X, 0)),
    ("reshape", {"x": GRID, "shape": [6, -1]}, GRID.reshape(6, 4)),
    ("reshape", {"x": GRID, "shape": [0, -1]}, GRID.reshape(3, 8)),
    ("reverse", {"x": GRID, "axes": [0, 2]}, GRID[::-1, :, ::-1]),
    ("round", {"x": X}, np.round(X)),
    ("rsqrt", {"x": POSITIVE, "epsilon": 0.5}, 1 / np.sqrt(POSITIVE + 0.5)),
    ("select", {"cond": X > 0, "a": X, "b": Y}, np.where(X > 0, X, Y)),
    ("sigmoid", {"x": X}, 1 / (1 + np.exp(-X))),
    ("sign", {"x": X}, np.sign(X)),
    ("silu", {"x": X}, X / (1 + np.exp(-X))),
    ("sin", {"x": X}, np.sin(X)),
    (
        "slice_by_index",
        {"x": GRID, "begin": [0, 2, 1], "end": [2, 0, 3], "stride": [1, -1, 1]},
        GRID[0:2, 2:0:-1, 1:3],
    ),
    (
        "slice_by_index",
        {
            "x": GRID,
            "begin": [1, 1, 9],
            "end": [0, 9, -1],
            "begin_mask": [False, False, True],
            "end_mask": [False, True, False],
            "squeeze_mask": [True, False, False],
        },
        GRID[1, 1:, :-1],
    ),
    ("slice_by_size", {"x": GRID, "begin": [1, 1, 0], "size": [1, -1, 2]}, GRID[1:2, 1:, :2]),
    ("softmax", {"x": X, "axis": 0}, np.exp(X) / np.exp(X).sum(0)),
    ("softplus", {"x": X}, np.log1p(np.exp(X))),
    ("split", {"x": GRID, "axis": -1, "num_splits": 2}, [GRID[..., :2], GRID[..., 2:]]),
    ("split", {"x": X, "axis": 1, "split_sizes": [1, 2]}, [X[:, :1], X[:, 1:]]),
    ("sqrt", {"x": POSITIVE}, np.sqrt(POSITIVE)),
    ("square", {"x": X}, X * X),
    ("squeeze", {"x": X[None], "axes": [0]}, X),
    ("squeeze", {"x": X[None, :, None]}, X),
    ("stack", {"values": [X, X], "axis": 1}, np.stack([X, X], 1)),
    ("sub", {"x": X, "y": Y}, X - Y),
    ("tanh", {"x": X}, np.tanh(X)),
    ("tile", {"x": X, "reps": [2, 1]}, np.tile(X, (2, 1))),
    ("transpose", {"x": GRID, "perm": [0, -1, -2]}, COLUMNS),
]


def tensor(value):
    """As the interpreter hands it over."""
    if isinstance(value, str):
        return value
    value = torch.as_tensor(np.asarray(value))
    return value.float() if value.is_floating_point() else value


@pytest.mark.parametrize(("kind", "given", "expected"), CASES, ids=[case[0] for case in CASES])
def test_an_operator_does_what_numpy_does(kind, given, expected):
    arguments = {
        key: [tensor(v) for v in value] if key == "values" else tensor(value)
        for key, value in given.items()
    }
    found = OPERATORS[kind](**arguments)
    if kind != "split":
        found, expected = [found], [expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == np.shape(theirs)
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-6, atol=1e-6)


class Norms(nn.Module):
    def __init__(self):
        super().__init__()
        self.group, self.batch = nn.GroupNorm(2, 4, eps=1e-3), nn.BatchNorm2d(4)
        self.instance, self.layer = nn.InstanceNorm2d(4, affine=True), nn.LayerNorm([6, 6])
        for norm in self.children():
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
        self.batch.running_mean.uniform_(-1, 1)
        self.batch.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.group(x), self.batch(x), self.instance(x), self.layer(x)


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.stride = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.groups = nn.Conv2d(4, 8, 3, groups=2, dilation=2, padding=(2, 0), bias=False)
        self.same = nn.Conv2d(4, 2, (3, 5), padding="same")
        self.line = nn.Conv1d(6, 2, 3)

    def forward(self, x):
        narrow = self.line(x[:, :, 0].transpose(1, 2))
        return self.stride(F.pad(x, (0, 1, 0, 1))), self.groups(x), self.same(x), narrow


class Pools(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.line = nn.ConvTranspose1d(6, 2, 4, stride=2, padding=1, bias=False)

    def forward(self, x):
        mean, most = F.avg_pool2d(x, 3, 2, 1), F.max_pool2d(x, (3, 2), 2, 1)
        inside = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        return self.up(x), self.line(x[:, 0]), mean, inside, most


class Scaling(nn.Module):
    def forward(self, x):
        near = F.interpolate(x, scale_factor=2.0, mode="nearest")
        smooth = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        return near, smooth, F.pixel_shuffle(x, 2), F.pixel_unshuffle(x, 2)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.out = nn.Linear(6, 5)
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))

    def forward(self, ids):
        x = self.words(ids).unflatten(-1, (2, 3)).transpose(1, 2)
        x = F.scaled_dot_product_attention(x, x * 2, x + 1, self.mask)
        left, right = self.out(x.transpose(1, 2).flatten(2)).split([2, 3], -1)
        return F.gelu(left, approximate="tanh"), right[:, 1:, ::2]


PICTURE = torch.linspace(-2, 2, 144).sin().reshape(1, 4, 6, 6) * 2
IDS = torch.tensor([[3, 0, 10]])
MODULES = {
    "attention": (Attention, IDS, "iOS17"),
    "attention of iOS 18": (Attention, IDS, "iOS18"),
    "convolutions": (Convolutions, PICTURE, "iOS17"),
    "norms": (Norms, PICTURE, "iOS17"),
    "pools": (Pools, PICTURE, "iOS17"),
    "scaling": (Scaling, PICTURE, "iOS17"),
}


def convert(module, x, folder: Path, precision="fp32", opset="iOS17") -> Path:
    """A module as a saved package."""
    scheme = SCHEMES[precision]
    layers = {p.replace(".", "_"): m for p, m in module.named_modules() if isinstance(m, LAYERS)}
    with torch.no_grad(), quiet():
        program = torch.export.export(module.eval(), (x,)).run_decompositions(dict(DECOMPOSITIONS))
        model = ct.convert(
            program,
            minimum_deployment_target=ct.target[opset],
            compute_precision=ct.precision.FLOAT16 if scheme.half else ct.precision.FLOAT32,
            pass_pipeline=scheme.pipeline({f"p_{k}_weight_to_fp16": v for k, v in layers.items()}),
            skip_model_load=True,
        )
        model.save(str(folder / "module.mlpackage"))
    return folder / "module.mlpackage"


def run(package: Path, x) -> list[np.ndarray]:
    program = read_package(package)
    return list(Interpreter(program)(**{program.inputs[0].name: x.numpy()}).values())


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Every module with its package."""
    torch.manual_seed(0)
    found = {}
    for name, (kind, x, opset) in MODULES.items():
        module = kind()
        found[name] = module, convert(module, x, tmp_path_factory.mktemp("mil"), opset=opset), x
    return found


@pytest.mark.parametrize("name", MODULES)
def test_a_module_means_the_same_when_interpreted(name, converted):
    module, package, x = converted[name]
    with torch.no_grad():
        expected = module(x)
    for ours, theirs in zip(run(package, x), expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)


def test_no_operator_is_without_a_test(converted):
    tried = {case[0] for case in CASES}
    for _, package, _ in converted.values():
        tried.update(operation.kind for operation in read_package(package).operations)
    assert OPERATORS.keys() <= tried


class Weights(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(36, 24, 3), nn.Linear(40, 64)

    def forward(self, x):
        return self.linear(F.pad(x, (0, 34))), self.conv(x.repeat(1, 9, 1, 1))


@pytest.fixture(scope="module", params=[name for name in SCHEMES if SCHEMES[name].steps])
def compressed(request, tmp_path_factory):
    """(precision, a package)."""
    torch.manual_seed(1)
    module, scheme = Weights(), SCHEMES[request.param]
    folder = tmp_path_factory.mktemp("weights")
    return request.param, convert(module, PICTURE, folder, request.param, scheme.opset)


def dense(op):
    """A weight as coremltools unpacks it, which does not look into a packed table."""
    if "lut" in op.inputs and op.lut.val is None:
        return op.decompress(op.indices.val, dense(op.lut.op), None)
    return op.materialized_val_inference()


def test_weights_unpack_as_coremltools_unpacks_them(compressed):
    from coremltools.converters.mil.frontend.milproto.load import load

    precision, package = compressed
    spec = ct.utils.load_spec(str(package))
    weights = package / "Data/com.apple.CoreML/weights"
    block = load(spec, spec.specificationVersion, str(weights)).functions["main"]
    theirs = {
        op.outputs[0].name: dense(op)
        for op in block.operations
        if op.op_type in CONSTEXPR
        and not any(child.op_type in CONSTEXPR for child in op.outputs[0].child_ops)
    }
    assert len(theirs) == 2, precision
    program = read_package(package)
    interpreter = Interpreter(program)
    for name, value in theirs.items():
        np.testing.assert_array_equal(interpreter.constants[name].numpy(), value)


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        ("uint1", b"\x05", [1, 0, 1, 0, 0]),
        ("uint2", b"\xe4\x01", [0, 1, 2, 3, 1]),
        ("uint3", b"\x88\xc6\x00", [0, 1, 2, 3, 4]),
        ("uint4", b"\x21\x43\x0f", [1, 2, 3, 4, 15]),
        ("uint6", b"\x81\x30\x10\x3f", [1, 2, 3, 4, 63]),
        ("int4", b"\xf8\x17\x02", [-8, -1, 7, 1, 2]),
        ("uint8", b"\x00\x01\xff\x80\x7f", [0, 1, 255, 128, 127]),
        ("fp16", b"\x00\x3c\x00\xc0\x00\x38\x00\x7c\x01\x00", [1, -2, 0.5, np.inf, 2**-24]),
    ],
)
def test_numbers_are_packed_from_the_lowest_bit(kind, data, expected):
    assert unpack(data, BY_NAME[kind], (5,)).tolist() == expected


def blob(sentinel=0xDEADBEEF, code=2, size=8, start=64, data=b"\0\0\x80\x3f\0\0\0\x40"):
    head = np.array([sentinel, code], "<u4").tobytes() + np.array([size, start], "<u8").tobytes()
    return memoryview(head.ljust(64, b"\0") + data)


def test_a_blob_is_read_by_its_entry():
    assert read_blob(blob(), 0, BY_NAME["fp32"], (2, 1)).tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("file", "offset", "message"),
    [
        (blob(sentinel=1), 0, "no fp32 entry at 0"),
        (blob(code=1), 0, "no fp32 entry at 0"),
        (blob(size=4), 0, "4 bytes at 64, 8 needed"),
        (blob(start=68), 0, "8 bytes at 68, 8 needed"),
        (blob(), 64, "no entry at 64, it ends at 72"),
    ],
)
def test_a_wrong_weight_file_is_named(file, offset, message):
    with pytest.raises(ValueError, match=message):
        read_blob(file, offset, BY_NAME["fp32"], (2,))


def test_a_folder_that_is_no_package_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"x: not an \.mlpackage"):
        read_package(tmp_path / "x")
    (tmp_path / "Manifest.json").write_text(json.dumps({"itemInfoEntries": {}}))
    with pytest.raises(ValueError, match=r"not an \.mlpackage"):
        read_package(tmp_path)


def operations(spec):
    main = spec.mlProgram.functions["main"]
    return main.block_specializations[main.opset].operations


def constant(spec):
    return next(op for op in operations(spec) if op.type == "const")


FLOAT64 = ct.proto.MIL_pb2.DataType.Value("FLOAT64")
EDITS = {
    "a pipeline, not an mlProgram": lambda spec: spec.pipeline.SetInParent(),
    "functions main, other; only main is run": lambda spec: spec.mlProgram.functions["other"],
    "operator 'const' holds blocks": lambda spec: constant(spec).blocks.add(),
    "type 'listType': only tensors": lambda spec: (
        operations(spec)[-1].outputs[0].type.listType.SetInParent()
    ),
    "numbers of type FLOAT64 are not in": lambda spec: setattr(
        operations(spec)[-1].outputs[0].type.tensorType, "dataType", FLOAT64
    ),
    "value 'list': only tensors": lambda spec: (
        constant(spec).attributes["val"].immediateValue.list.SetInParent()
    ),
}


@pytest.mark.parametrize("message", EDITS)
def test_what_is_not_read_here_is_named(message, converted, tmp_path):
    package = shutil.copytree(converted["norms"][1], tmp_path / "edited.mlpackage")
    spec = ct.utils.load_spec(str(package))
    EDITS[message](spec)
    (package / "Data/com.apple.CoreML/model.mlmodel").write_bytes(spec.SerializeToString())
    with pytest.raises(ValueError, match=message):
        read_package(package)


def test_palettes_of_vectors_are_refused():
    indices, lut = np.zeros((4, 4), np.uint8), np.zeros((1, 1, 16, 2), np.float16)
    with pytest.raises(ValueError, match="tables of 2-vectors"):
        CONSTEXPR["constexpr_lut_to_dense"](indices=indices, lut=lut, vector_axis=np.int32(0))


def single(kind, dtype="fp16", shape=(2,)) -> Program:
    """y = kind(x=x)."""
    x, y = (Slot(name, BY_NAME[dtype], shape) for name in "xy")
    operation = Operation(kind, {"x": ["x"]}, [y])
    return Program(Path("one.mlpackage"), "CoreML7", [x], ["y"], {}, [operation])


def test_results_are_rounded_to_the_declared_type():
    result = Interpreter(single("square"))(x=np.float32([256.0, 1.0 + 2**-9]))["y"]
    assert result.tolist() == [np.inf, 1 + 2**-8]  # 65536 is too much, 2**-18 too little


def test_integers_wrap_as_they_are_stored():
    result = Interpreter(single("identity", "int16"))(x=np.int64([40000, 5]))["y"]
    assert result.tolist() == [40000 - 65536, 5]


def test_an_unknown_operator_is_named_before_anything_runs():
    with pytest.raises(ValueError, match=r"one\.mlpackage: operator 'frobnicate' is in no table"):
        Interpreter(single("frobnicate"))


def test_inputs_are_checked():
    run = Interpreter(single("square"))
    with pytest.raises(ValueError, match="input 'x' is missing"):
        run(y=np.zeros(2))
    with pytest.raises(ValueError, match=r"'x': shape \(3,\), the program says \(2,\)"):
        run(x=np.zeros(3, np.float32))


def test_a_result_of_another_shape_than_declared_is_an_error():
    program = single("square")
    slot = replace(program.operations[0].outputs[0], shape=(1, 2))
    operation = replace(program.operations[0], outputs=[slot])
    with pytest.raises(ValueError, match=r"square 'y': shape \(2,\), the program says \(1, 2\)"):
        Interpreter(replace(program, operations=[operation]))(x=np.zeros(2, np.float32))


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("gather", {"x": X, "indices": [0], "batch_dims": 1}, "gather: batch_dims 1"),
    ],
)
def test_a_parameter_not_run_here_is_named(kind, given, message):
    arguments = {
        key: [tensor(v) for v in value] if key == "values" else tensor(value)
        for key, value in given.items()
    }
    with pytest.raises(ValueError, match=message):
        OPERATORS[kind](**arguments)
