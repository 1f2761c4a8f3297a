"""Trace a training step as a graph of plain operations. The gradients that ONNX lacks are written out here."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions, get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten
NORMALISATION = aten.native_group_norm, aten.native_layer_norm
BACKWARD = (aten.native_group_norm_backward, aten.native_layer_norm_backward, aten._softmax_backward_data,
            aten.silu_backward, aten.gelu_backward, aten.mse_loss_backward)  # fmt: skip


def convolution_backward(go, x, w, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, mask):
    """Return a convolution's gradients for its input x, kernel w and bias. go: gradient of its output, (n, c, h, w).

    For x, it is the transposed convolution of go, padded so that it has the size of x. For w, it is one product of
    matrices: go, and x as each place of the kernel sees it."""
    in_x = in_w = in_bias = None
    height, width = w.shape[2:]
    if mask[0]:
        more = [x.shape[2 + k] - ((go.shape[2 + k] - 1) * stride[k] - 2 * padding[k] + w.shape[2 + k]) for k in (0, 1)]
        in_x = aten.convolution(go, w, None, stride, padding, dilation, True, more, 1)
    if mask[1]:
        wide = F.pad(x.transpose(0, 1), [padding[1], padding[1], padding[0], padding[0]])
        ends = [stride[k] * (go.shape[2 + k] - 1) + 1 for k in (0, 1)]
        seen = [
            wide[:, :, i : i + ends[0] : stride[0], j : j + ends[1] : stride[1]].flatten(1)
            for i in range(height)
            for j in range(width)
        ]
        product = torch.mm(torch.cat(seen), go.transpose(0, 1).flatten(1).t())  # (height · width · c_in, c_out)
        in_w = product.reshape(height, width, x.shape[1], go.shape[1]).permute(3, 2, 0, 1)
    if mask[2]:
        in_bias = go.sum((0, 2, 3))
    return in_x, in_w, in_bias


def upsample(x, output_size, scales_h=None, scales_w=None):
    """Repeat each number in a rectangle of equal numbers."""
    _, c, h, w = x.shape
    tall, wide = output_size[0] // h, output_size[1] // w
    rows = torch.cat([x.reshape(-1, c, h, 1, w)] * tall, 3).reshape(-1, c, h * tall, w, 1)
    return torch.cat([rows] * wide, 4).reshape(-1, c, h * tall, w * wide)


def upsample_backward(go, output_size, input_size, scales_h=None, scales_w=None):
    """Return the gradient of `upsample`, in which each number gets the sum over its rectangle."""
    n, c, h, w = input_size
    return go.reshape(n, c, h, output_size[0] // h, w, output_size[1] // w).sum((3, 5))


def traced(function: Callable, arguments: Sequence[Tensor]) -> nn.Module:
    """Trace a function, which can call `torch.autograd.grad`, as a graph of operations that ONNX has."""
    table = core_aten_decompositions()
    table.update(get_decompositions([*NORMALISATION, *BACKWARD]))
    table[aten.upsample_nearest2d.default] = upsample
    table[aten.convolution_backward.default] = convolution_backward
    table[aten.upsample_nearest2d_backward.default] = upsample_backward
    return make_fx(function, decomposition_table=table, tracing_mode="real")(*arguments)
