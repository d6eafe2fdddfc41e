import numpy as np
import pytest

from edgedistill_runtime.steps import Row, StepTable, sample

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
