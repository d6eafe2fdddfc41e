"""Low precision as arithmetic says it, on layers known by their weights."""

import pytest
import torch
from torch import nn

from edgedistill.networks.fake_quant import (
    SCHEMES,
    FakeQuantize,
    FakeQuantScheme,
    layers,
    quantized,
    quantized_weight,
)


def test_an_activation_is_off_by_half_a_step_at_most_and_keeps_zero():
    x = torch.linspace(-0.3, 1.7, 999)
    found = quantized(x, 8)
    step = 2.0 / 255
    assert (found - x).abs().max() <= 0.5 * step + 1e-6
    assert len(found.unique()) <= 256
    assert quantized(torch.tensor([0.0, 0.5, 3.0]), 8)[0] == 0
    assert quantized(torch.zeros(3), 8).tolist() == [0, 0, 0]


def test_each_channel_of_a_weight_has_its_own_scale():
    weight = torch.tensor([[1.27, 0.004], [127.0, 0.4]])
    found = quantized_weight(weight, FakeQuantScheme(8))
    torch.testing.assert_close(found, torch.tensor([[1.27, 0.0], [127.0, 0.0]]))


def test_blocks_have_their_own_scale_where_they_divide_the_inputs():
    weight = torch.tensor([[8.0, 0.4, -0.08, 0.004, 0.0, 0.0]])
    whole = quantized_weight(weight, FakeQuantScheme(4))
    blocks = quantized_weight(weight, FakeQuantScheme(4, block=2))
    torch.testing.assert_close(whole, torch.tensor([[8.0, 0.0, 0.0, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(blocks, torch.tensor([[8.0, 0.0, -0.08, 0.0, 0.0, 0.0]]))


def test_what_blocks_do_not_divide_gets_8_bits_a_channel():
    torch.manual_seed(0)
    scheme = FakeQuantScheme(4, block=4)
    for weight in (torch.randn(3, 6), torch.randn(3, 4, 2, 2)):
        assert scheme.bits(weight) == 8
        assert torch.equal(
            quantized_weight(weight, scheme), quantized_weight(weight, FakeQuantScheme(8))
        )
    assert scheme.bits(torch.randn(3, 8)) == 4


def test_blocks_round_as_onnxruntime_does():
    """The scale's sign is that of the largest, so that one side has a value more."""
    weight = torch.tensor([[4.0, -3.9, 1.2, 0.3]], requires_grad=True)
    found = quantized_weight(weight, FakeQuantScheme(4, block=4))
    torch.testing.assert_close(found, torch.tensor([[4.0, -3.5, 1.0, 0.5]]))
    found.sum().backward()
    assert weight.grad.tolist() == [[1.0] * 4]


def test_gradients_pass_straight_through():
    x = torch.linspace(-1, 1, 7, requires_grad=True)
    (quantized(x, 4) * torch.arange(7.0)).sum().backward()
    torch.testing.assert_close(x.grad, torch.arange(7.0))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.linear = nn.Linear(4, 5)
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, x):
        return self.linear(self.norm(self.conv(x)).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def test_only_linear_and_convolution_are_layers(net):
    assert list(layers(net)) == ["conv", "linear"]


@pytest.mark.parametrize("name", ["conv", "linear"])
def test_the_given_layers_alone_compute_in_low_precision(net, name):
    layer, scheme = getattr(net, name), SCHEMES["int8"]
    inside = {"conv": torch.randn(2, 3, 6, 6), "linear": torch.randn(2, 4)}
    x = inside[name]
    plain = layer(x)
    with FakeQuantize([layer], scheme):
        found = layer(x)
        other = net.norm(inside["conv"][:, :1].expand(2, 4, 6, 6))
    weight = quantized_weight(layer.weight, scheme)
    function = torch.nn.functional.conv2d if name == "conv" else torch.nn.functional.linear
    extra = {"padding": 1} if name == "conv" else {}
    expected = quantized(function(quantized(x, 8), weight, layer.bias, **extra), 8)
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found, plain)
    assert torch.equal(other, net.norm(inside["conv"][:, :1].expand(2, 4, 6, 6)))
    assert torch.equal(layer(x), plain), "outside of the context nothing changes"


def test_weights_alone_leave_activations_as_they_are(net):
    x = torch.randn(2, 4)
    with FakeQuantize([net.linear], SCHEMES["int8-weights"]):
        found = net.linear(x)
    weight = quantized_weight(net.linear.weight, SCHEMES["int8-weights"])
    torch.testing.assert_close(found, x @ weight.T + net.linear.bias)
    with FakeQuantize([], SCHEMES["int8"]):
        assert torch.equal(net.linear(x), x @ net.linear.weight.T + net.linear.bias)
