import math

import numpy as np
import pytest

from edgedistill_runtime.noise import noise, normals

MASK = 2**64 - 1


def philox4x64(key, counter):
    """Philox4x64-10 from the paper (Salmon et al. 2011), as another language would write it."""
    k, c = list(key), list(counter)
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(p1 >> 64) ^ c[1] ^ k[0], p1 & MASK, (p0 >> 64) ^ c[3] ^ k[1], p0 & MASK]
        k = [(k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK]
    return c


def reference(seed, index, count):
    words = []
    while len(words) < count + 1:
        words += philox4x64((seed, index), (len(words) // 4 + 1, 0, 0, 0))
    u = [((word >> 11) + 0.5) * 2.0**-53 for word in words]
    z = []
    for u1, u2 in zip(u[0::2], u[1::2], strict=True):
        radius = math.sqrt(-2 * math.log(u1))
        z += [radius * math.cos(2 * math.pi * u2), radius * math.sin(2 * math.pi * u2)]
    return z[:count]


@pytest.mark.parametrize(("seed", "index"), [(0, 0), (1234, 7), (2**64 - 1, 2**40)])
@pytest.mark.parametrize("count", [1, 9, 64])
def test_normals_are_what_the_documentation_says(seed, index, count):
    # Half a unit in the last place of float32: libraries differ in the last bit of float64.
    np.testing.assert_allclose(normals(seed, index, count), reference(seed, index, count), 6e-8)


def test_pinned_values():
    expected = [0.15853384, 2.9828794, -1.925692, -0.82492554, -0.20250328, 1.1557642]
    np.testing.assert_allclose(normals(0, 0, 6), expected, rtol=1e-6)


def test_moments_of_a_normal():
    z = np.stack(noise(5, 0, 128, [(16, 8, 8)] * 4)).astype(np.float64).ravel()
    n = len(z)
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n)


def test_a_picture_does_not_depend_on_its_batch_or_on_later_draws():
    whole = noise(3, 0, 5, [(2, 3)] * 4)
    assert [tensor.shape for tensor in whole] == [(5, 2, 3)] * 4
    np.testing.assert_array_equal([t[3:4] for t in whole], noise(3, 3, 1, [(2, 3)] * 4))
    np.testing.assert_array_equal(whole[:2], noise(3, 0, 5, [(2, 3)] * 2))


def test_tensors_of_several_shapes_take_the_same_normals_one_after_another():
    small, large = noise(3, 2, 2, [(1, 2, 2), (1, 4, 4)])
    assert (small.shape, large.shape) == ((2, 1, 2, 2), (2, 1, 4, 4))
    for row, index in enumerate((2, 3)):
        z = normals(3, index, 20)
        np.testing.assert_array_equal(small[row].ravel(), z[:4])
        np.testing.assert_array_equal(large[row].ravel(), z[4:])


def test_pictures_and_seeds_differ():
    first = noise(0, 0, 2, [(64,)])[0]
    assert abs(np.corrcoef(first)[0, 1]) < 0.5
    assert not np.allclose(first, noise(1, 0, 2, [(64,)])[0])


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_named(seed):
    with pytest.raises(ValueError, match=str(seed)):
        normals(seed, 0, 2)
