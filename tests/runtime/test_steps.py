from dataclasses import asdict

import numpy as np
import pytest
from javascript import needs_node, node

from edgedistill_runtime.steps import Row, StepTable, resized, sample

TABLE = StepTable(
    init_scale=2.0,
    rows=(
        Row(t=900.0, scale=0.5, a=0.25, b=2.0, c=0.5),
        Row(t=100.0, scale=1.0, a=1.0, b=-1.0, c=0.0),
    ),
)


def test_sampler_follows_the_table_by_hand():
    x_T = np.array([[1.0, -2.0]], np.float32)
    extra = np.array([[4.0, 8.0]], np.float32)
    seen = []

    def net(x, t):
        seen.append((x.tolist(), t.tolist()))
        return x + t[:, None] / 100

    result = sample(net, TABLE, [x_T, extra])
    # x = [2, -4]; f = 0.5 x + 9 = [10, 7]; x = 0.25 x + 2 f + 0.5 extra = [22.5, 17]
    # f = x + 1 = [23.5, 18]; x = x - f = [-1, -1]
    assert seen == [([[1.0, -2.0]], [900.0]), ([[22.5, 17.0]], [100.0])]
    np.testing.assert_allclose(result, [[-1.0, -1.0]])
    assert result.dtype == np.float32


def test_noise_is_drawn_only_where_c_is_not_zero():
    assert TABLE.draws == 2
    with pytest.raises(ValueError, match="consumes 2 noise tensors, not 3"):
        sample(lambda x, t: x, TABLE, [np.zeros((1, 2), np.float32)] * 3)


def test_noise_of_the_caller_is_left_alone():
    noise = [np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)]
    sample(lambda x, t: x, TABLE, noise)
    assert all((tensor == 1).all() for tensor in noise)


PAST = StepTable(
    init_scale=1.0,
    rows=(
        Row(t=3.0, scale=1.0, a=2.0, b=1.0, c=0.0),
        Row(t=2.0, scale=0.5, a=1.0, b=0.0, c=0.5, past=((10.0, 100.0),)),
        Row(t=1.0, scale=1.0, a=0.0, b=1.0, c=0.0, past=((0.0, 1.0), (1.0, -1.0))),
    ),
)


def test_a_row_adds_what_earlier_rows_started_from_and_gave():
    noise = [np.ones((1, 1), np.float32), np.full((1, 1), 4.0, np.float32)]
    found = sample(lambda x, t: np.zeros_like(x) + t[:, None], PAST, noise)
    # x = 1, f = 3 -> 2 + 3 = 5; f = 2 -> 5 + 10 * 1 + 100 * 3 + 0.5 * 4 = 317;
    # f = 1 -> 1 + 2 + (1 - 3) = 1
    assert found.tolist() == [[1.0]]
    assert noise[0].tolist() == [[1.0]]


@needs_node
def test_javascript_takes_the_same_steps_bit_for_bit():
    code = """
    import { sample } from "./steps.mjs";
    const [steps, noise, shape] = input;
    const net = async (x, t) => x.map((value) => Math.fround(value * value) - Math.fround(t));
    const x = await sample(net, steps, Float32Array.from(noise), shape);
    give(Array.from(x));
    """
    noise = np.random.default_rng(0).normal(size=(2, 1, 7)).astype(np.float32)
    numbers = [0.3, -0.7, 1 / 3, 0.1]
    a, b, k, m = numbers
    rows = (
        Row(t=0.7, scale=0.5, a=a, b=b, c=0.2),
        Row(t=0.4, scale=1.0, a=b, b=m, c=0.0, past=((k, m),)),
        Row(t=0.1, scale=1.0, a=m, b=k, c=0.0, past=((a, b), (m, k))),
    )
    table = StepTable(init_scale=1.1, rows=rows)
    ours = sample(lambda x, t: x * x - t[:, None], table, list(noise))
    plain = asdict(table)
    (theirs,) = [node(code, plain, noise.ravel().tolist(), [7])]
    assert theirs == ours[0].tolist()


GROWING = StepTable(
    init_scale=2.0,
    rows=(
        Row(t=900.0, scale=0.5, a=0.25, b=2.0, c=0.5, size=0.5),
        Row(t=100.0, scale=1.0, a=1.0, b=-1.0, c=0.0),
    ),
)


@pytest.mark.parametrize("sides", [(4, 4, 8, 8), (4, 5, 6, 8), (8, 5, 13, 5), (2, 1, 4, 2)])
def test_resizing_is_torchs(sides):
    torch = pytest.importorskip("torch")
    h, w, height, width = sides
    x = np.random.default_rng(0).normal(size=(2, 3, h, w)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(x), (height, width), mode="bicubic", align_corners=False
    )
    found = resized(x, height, width)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-6)


def test_a_table_that_grows_by_hand():
    assert GROWING.shapes((1, 2, 2)) == [(1, 1, 1), (1, 2, 2)]
    seen = []

    def net(x, t):
        seen.append(x.shape)
        return x + t[:, None, None, None] / 100

    extra = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    found = sample(net, GROWING, [np.ones((1, 1, 1, 1), np.float32), extra])
    # x = 2; f = 0.5 x + 9 = 10; x = 0.25 x + 2 f = 20.5, then 2 x 2 of it + 0.5 extra
    # f = x + 1; x = x - f = -1
    assert seen == [(1, 1, 1, 1), (1, 1, 2, 2)]
    np.testing.assert_allclose(found, np.full((1, 1, 2, 2), -1.0))


@pytest.mark.parametrize(
    ("sizes", "c", "shape", "line"),
    [
        ((0.5, 1.0), 1.0, (4, 8, 8), None),
        ((1.0, 1.0), 0.0, (2,), None),
        ((0.5, 0.5), 1.0, (4, 8, 8), "end at 1"),
        ((0.5, 1.0), 1.0, (4, 7, 8), "whole numbers"),
        ((0.5, 1.0), 1.0, (2,), "whole numbers"),
        ((0.5, 1.0), 0.0, (4, 8, 8), "must draw noise"),
    ],
)
def test_what_is_wrong_with_sizes(sizes, c, shape, line):
    rows = tuple(Row(t=1.0, scale=1.0, a=1.0, b=1.0, c=c, size=size) for size in sizes)
    problem = StepTable(init_scale=1.0, rows=rows).problem(shape)
    assert problem is None if line is None else line in problem
