"""What a compiled student computes and stores, counted, so that a lost pass fails a test."""

from collections import Counter

import onnx
import pytest
import torch

from edgedistill_export.fuse import fuse
from edgedistill_export.onnx_build import build_onnx
from edgedistill_export.walk import networks

PRODUCTS = {"Conv", "Gemm", "MatMul"}
SLACK = 4096
"""Bytes of shapes, scales and other small constants."""


@pytest.fixture(scope="module")
def graphs(student, tmp_path_factory):
    """The denoiser's and the fused graph."""
    folder = tmp_path_factory.mktemp("graphs")
    made = {"denoiser": networks(student)["denoiser"], "fused": fuse(student)}
    for name, graph in made.items():
        build_onnx(graph, folder / f"{name}.onnx")
    return {name: onnx.load(str(folder / f"{name}.onnx")).graph for name in made}


def layers(net):
    """The layers of a network that multiply by weights, by name."""
    kinds = torch.nn.Linear | torch.nn.Conv2d
    return {name: module for name, module in net.named_modules() if isinstance(module, kinds)}


def attention_count(module):
    return sum(type(each).__name__ in {"Attention", "CLIPAttention"} for each in module.modules())


def drawing(student):
    """What of the autoencoder decodes."""
    whole = student.teacher.autoencoder
    return torch.nn.ModuleList([whole.post_quant_conv, whole.decoder])


def split(net):
    """Names of a U-Net's layers: of the time path, of the text's keys and values, all others."""
    names = set(layers(net))
    time = {name for name in names if "time_emb" in name}
    text = {name for name in names if "attn2.to_k" in name or "attn2.to_v" in name}
    return time, text, names - time - text


def products(graph):
    return sum(node.op_type in PRODUCTS for node in graph.node)


def stored(graph):
    """Bytes of constants."""
    sizes = [len(tensor.raw_data) for tensor in graph.initializer]
    for node in graph.node:
        tensors = [a.t for a in node.attribute if a.type == onnx.AttributeProto.TENSOR]
        sizes += [len(tensor.raw_data) for tensor in tensors]
    return sum(sizes)


def weights(net, without=()):
    return sum(
        4 * value.numel()
        for name, value in net.named_parameters()
        if not name.startswith(tuple(without))
    )


def test_a_denoiser_multiplies_by_each_weight_once_and_by_none_of_the_time_path(student, graphs):
    net = student.net
    time, text, rest = split(net)
    assert time
    assert text
    assert products(graphs["denoiser"]) == len(text) + len(rest) + 2 * attention_count(net)


def test_a_fused_graph_multiplies_the_text_once_and_the_rest_in_every_step(student, graphs):
    net, steps = student.net, len(student.table.rows)
    assert steps > 1
    _, text, rest = split(net)
    in_steps = steps * (len(rest) + 2 * attention_count(net))
    others = 0
    for module in (student.teacher.graphs()["text_encoder"].module, drawing(student)):
        others += len(layers(module)) + 2 * attention_count(module)
    assert products(graphs["fused"]) == len(text) + in_steps + others


def test_attention_has_one_softmax(student, graphs):
    kinds = Counter(node.op_type for node in graphs["denoiser"].node)
    assert kinds["Softmax"] == attention_count(student.net)


def test_a_denoiser_stores_its_weights_once_and_none_of_the_time_path(student, graphs):
    time, _, _ = split(student.net)
    assert stored(graphs["denoiser"]) == pytest.approx(weights(student.net, time), abs=SLACK)


def test_a_fused_graph_stores_weights_once(student, graphs):
    time, _, _ = split(student.net)
    text = weights(student.teacher.graphs()["text_encoder"].module)
    whole = weights(student.net, time) + text + weights(drawing(student))
    assert stored(graphs["fused"]) == pytest.approx(whole, abs=2 * SLACK)
