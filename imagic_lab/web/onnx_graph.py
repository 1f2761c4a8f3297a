"""Convert a traced function to an ONNX graph, for the operations in Stable Diffusion's networks and their gradients."""

import math
import operator
from collections.abc import Sequence

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor, fx

from imagic_lab.web.gradients import aten

OPSET, IR = 18, 9
TYPES = {torch.float32: onnx.TensorProto.FLOAT, torch.int64: onnx.TensorProto.INT64, torch.bool: onnx.TensorProto.BOOL}
SAME = {aten.alias.default, aten.clone.default}
SHAPES = {aten.view.default, aten.unsqueeze.default, aten.squeeze.dims, aten.as_strided.default}
PLAIN = {
    aten.add.Tensor: "Add", aten.sub.Tensor: "Sub", aten.mul.Tensor: "Mul", aten.mul.Scalar: "Mul",
    aten.div.Tensor: "Div", aten.div.Scalar: "Div", aten.pow.Tensor_Scalar: "Pow", aten.mm.default: "MatMul",
    aten.bmm.default: "MatMul", aten.sigmoid.default: "Sigmoid", aten.neg.default: "Neg", aten.exp.default: "Exp",
    aten.erf.default: "Erf", aten.sin.default: "Sin", aten.cos.default: "Cos", aten.embedding.default: "Gather",
}  # fmt: skip


class Writer(fx.Interpreter):
    """Runs a traced graph on names instead of tensors, and records the operations. Values that depend on no input are
    computed. free_batch: whether the first size of the inputs, and of everything computed from them, is free."""

    def __init__(self, module: fx.GraphModule, free_batch: bool):
        super().__init__(module)
        self.free_batch, self.nodes, self.constants = free_batch, [], {}

    def add(self, kind: str, *inputs, outputs: int = 1, **attributes) -> str | list[str]:
        """Add an operation. Returns the name of its output, or the names."""
        names = [f"{kind}{len(self.nodes)}" + "'" * k for k in range(outputs)]
        self.nodes.append(helper.make_node(kind, [self.named(x) for x in inputs], names, **attributes))
        return names[0] if outputs == 1 else names

    def named(self, value: str | Tensor | Sequence[int]) -> str:
        """Return the name of a value. A tensor or a list of whole numbers becomes a constant of the graph."""
        if isinstance(value, str):
            return value
        array = value.contiguous().numpy() if isinstance(value, Tensor) else np.array(value, dtype=np.int64)
        key = (array.dtype.str, array.shape, array.tobytes())
        return self.constants.setdefault(key, (f"constant{len(self.constants)}", array))[0]

    def run_node(self, n: fx.Node):
        self.node = n
        return super().run_node(n)

    def call_function(self, target, args, kwargs):
        given = [self.env[node] for node in self.node.all_input_nodes]
        if target is operator.getitem or not any(isinstance(x, str | list) for x in given):
            return super().call_function(target, args, kwargs)
        if target in SAME:
            return args[0]
        if target in SHAPES:
            return self.add("Reshape", args[0], self.free(self.shape))
        if target in PLAIN:
            numbers = {"dtype": self.node.all_input_nodes[0].meta["tensor_meta"].dtype}
            given = [x if isinstance(x, str | Tensor) else torch.tensor(x, **numbers) for x in args]
            return self.add(PLAIN[target], *given)
        if target not in SPECIAL:
            raise ValueError(f"no ONNX operation is known for {target}: add it to imagic_lab/web/onnx_graph.py")
        return SPECIAL[target](self, *args)

    @property
    def shape(self) -> list[int]:
        """The shape of the current node's output."""
        return list(self.node.meta["tensor_meta"].shape)

    def free(self, shape: list[int]) -> list[int]:
        return [-1, *shape[1:]] if self.free_batch and shape else shape


def convolution(w, x, kernel, bias, stride, padding, dilation, transposed, more, groups):
    how = {"strides": stride, "pads": [*padding, *padding], "dilations": dilation, "group": groups}
    how |= {"output_padding": more} if transposed else {}
    return w.add("ConvTranspose" if transposed else "Conv", x, kernel, *([] if bias is None else [bias]), **how)


def variance_and_mean(w, x, axes):
    away = w.add("Sub", x, mean := w.add("ReduceMean", x, axes))
    return [w.add("ReduceMean", w.add("Mul", away, away), axes), mean]


def gelu(w, x):
    upper = w.add("Add", w.add("Erf", w.add("Div", x, torch.tensor(math.sqrt(2)))), torch.tensor(1.0))
    return w.add("Mul", w.add("Mul", x, upper), torch.tensor(0.5))


def pad(w, x, pads, value=0.0):
    rest = [0] * (len(w.shape) - len(pads) // 2)
    return w.add("Pad", x, [*rest, *pads[::2][::-1], *rest, *pads[1::2][::-1]], torch.tensor(float(value)))


def expand(w, x, shape):
    before = list(w.node.args[0].meta["tensor_meta"].shape)
    return x if before == w.shape else w.add("Expand", x, w.shape)


SPECIAL = {
    aten.convolution.default: convolution,
    aten.var_mean.correction: variance_and_mean,
    aten.gelu.default: gelu,
    aten.constant_pad_nd.default: pad,
    aten.expand.default: expand,
    aten.addmm.default: lambda w, bias, a, b: w.add("Gemm", a, b, bias),
    aten.permute.default: lambda w, x, order: w.add("Transpose", x, perm=order),
    aten.rsqrt.default: lambda w, x: w.add("Reciprocal", w.add("Sqrt", x)),
    aten.sum.dim_IntList: lambda w, x, axes, keep=False: w.add("ReduceSum", x, axes, keepdims=int(keep)),
    aten.mean.default: lambda w, x: w.add("ReduceMean", x, keepdims=0),
    aten._softmax.default: lambda w, x, axis, half: w.add("Softmax", x, axis=axis),
    aten.cat.default: lambda w, parts, axis=0: w.add("Concat", *parts, axis=axis),
    aten.slice.Tensor: lambda w, x, axis, start, end, step=1: w.add("Slice", x, [start], [end], [axis], [step]),
    aten.split_with_sizes.default: lambda w, x, sizes, axis: w.add("Split", x, sizes, outputs=len(sizes), axis=axis),
    aten.clamp.default: lambda w, x, *ends: w.add("Clip", x, *(torch.tensor(float(end)) for end in ends)),
    aten.full_like.default: lambda w, x, value: torch.full(w.shape, float(value)),
    aten._to_copy.default: lambda w, x: w.add("Cast", x, to=TYPES[w.node.meta["tensor_meta"].dtype]),
}


def declaration(name: str, node: fx.Node, free: bool) -> onnx.ValueInfoProto:
    meta = node.meta["tensor_meta"]
    return helper.make_tensor_value_info(name, TYPES[meta.dtype], ["batch"] * free + list(meta.shape)[free:])


def onnx_of(module: fx.GraphModule, inputs: Sequence[str], outputs: Sequence[str], free: int = 0) -> onnx.ModelProto:
    """Convert a traced module to an ONNX model with these names. free: number of inputs whose first size is free.
    Inputs on which nothing depends are left out. Raises ValueError for an operation that it does not know."""
    module.graph.eliminate_dead_code()
    writer = Writer(module, free > 0)
    found = writer.run(*inputs, enable_io_processing=False)
    for name, answer in zip(outputs, found if isinstance(found, tuple | list) else [found], strict=True):
        writer.nodes.append(helper.make_node("Identity", [writer.named(answer)], [name]))
    given = [node for node in module.graph.nodes if node.op == "placeholder"]
    answers = next(node for node in module.graph.nodes if node.op == "output").all_input_nodes
    pairs = enumerate(zip(inputs, given, strict=True))
    declared = [declaration(name, node, k < free) for k, (name, node) in pairs if node.users]
    answered = [declaration(name, node, free > 0) for name, node in zip(outputs, answers, strict=True)]
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in writer.constants.values()]
    graph = helper.make_graph(writer.nodes, "graph", declared, answered, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    onnx.checker.check_model(model)
    return model
