"""A stream as an ONNX model, built node by node with the `onnx` package.

Input `images`, uint8 [batch, height, width, 3]; output `feature`, float32 [batch, d]. Inside, maps
are NCHW, which is ONNX's layout. The metadata is in `metadata_props`, each value as JSON.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx.checker
import onnx.helper
import onnx.numpy_helper
import onnx.shape_inference
import onnxruntime
from jaxtyping import Float32, UInt8

import ddag_jax
from ddag_jax.io.files import parse_json
from ddag_jax.serving.export.network import Stream, embed

OPSET, IR_VERSION = 17, 8
"""Of the same release of ONNX, 1.12."""
IMAGES, FEATURE = "images", "feature"
"""Names of the input and of the output."""


class Tensor:
    """A value of a graph that is being built: what a node computes, or an input."""

    __array_ufunc__ = None  # NumPy leaves operators to this class

    def __init__(self, graph: "OnnxOperations", name: str) -> None:
        self.graph = graph
        self.name = name

    def __add__(self, other: "Operand") -> "Tensor":
        return self.graph.node("Add", self, other)

    def __mul__(self, other: "Operand") -> "Tensor":
        return self.graph.node("Mul", self, other)

    def __truediv__(self, other: "Operand") -> "Tensor":
        return self.graph.node("Div", self, other)

    def __pow__(self, other: "Operand") -> "Tensor":
        return self.graph.node("Pow", self, other)


Operand: TypeAlias = Tensor | np.ndarray


class OnnxOperations:
    """The operations of network.py as nodes of a graph. A map is [b, c, h, w]."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def node(self, kind: str, *inputs: Operand, outputs: int = 1, **attributes: Any) -> Any:
        """Append a node; return its output, or a tuple of several. Arrays become constants."""
        names = [x.name if isinstance(x, Tensor) else self._constant(x) for x in inputs]
        stem = f"{kind.lower()}_{len(self.nodes)}"
        results = [stem] if outputs == 1 else [f"{stem}_{number}" for number in range(outputs)]
        self.nodes.append(onnx.helper.make_node(kind, names, results, name=stem, **attributes))
        tensors = tuple(Tensor(self, name) for name in results)
        return tensors[0] if outputs == 1 else tensors

    def _constant(self, array: np.ndarray) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def _reshape(self, x: Tensor, *shape: int) -> Tensor:
        """Reshape; 0 keeps the size of an axis, -1 is what is left."""
        return self.node("Reshape", x, np.array(shape))

    def to_float32(self, x: Tensor) -> Tensor:
        return self.node("Cast", x, to=onnx.TensorProto.FLOAT)

    def mirror(self, images: Tensor) -> Tensor:
        start, end, axis, step = (np.array([n]) for n in (-1, np.iinfo(np.int64).min, 2, -1))
        return self.node("Slice", images, start, end, axis, step)

    def images_to_map(self, images: Tensor) -> Tensor:
        return self.node("Transpose", images, perm=(0, 3, 1, 2))

    def convolve(
        self,
        x: Tensor,
        kernel: Float32[np.ndarray, "k k c o"],
        bias: Float32[np.ndarray, " o"],
        stride: int,
    ) -> Tensor:
        size = len(kernel)
        return self.node(
            "Conv",
            x,
            kernel.transpose(3, 2, 0, 1),
            bias,
            kernel_shape=(size, size),
            strides=(stride, stride),
            pads=(size // 2,) * 4,
        )

    def max_pool(self, x: Tensor) -> Tensor:
        return self.node("MaxPool", x, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))

    def relu(self, x: Tensor) -> Tensor:
        return self.node("Relu", x)

    def map_to_cells(self, x: Tensor) -> Tensor:
        return self.transpose(self._reshape(x, 0, 0, -1))

    def cells_to_map(self, cells: Tensor, like: Tensor) -> Tensor:
        return self.node("Reshape", self.transpose(cells), self.node("Shape", like))

    def matmul(self, x: Operand, y: Operand) -> Tensor:
        return self.node("MatMul", x, y)

    def transpose(self, x: Tensor) -> Tensor:
        return self.node("Transpose", x, perm=(0, 2, 1))

    def flatten(self, x: Tensor) -> Tensor:
        return self._reshape(x, 0, -1)

    def concatenate(self, values: Sequence[Tensor], axis: int) -> Tensor:
        return self.node("Concat", *values, axis=axis)

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.node("Split", x, outputs=2, axis=0)

    def mean(self, x: Tensor) -> Tensor:
        return self.node("ReduceMean", x, axes=(1,), keepdims=0)

    def log_sum_exp(self, x: Tensor) -> Tensor:
        return self.node("ReduceLogSumExp", x, axes=(1,), keepdims=0)

    def softmax(self, x: Tensor) -> Tensor:
        return self.node("Softmax", x, axis=-1)

    def exp(self, x: Tensor) -> Tensor:
        return self.node("Exp", x)

    def log(self, x: Tensor) -> Tensor:
        return self.node("Log", x)

    def maximum(self, x: Tensor, least: float) -> Tensor:
        return self.node("Max", x, np.array(least, np.float32))

    def length(self, x: Tensor) -> Tensor:
        return self.node("ReduceL2", x, axes=(1,), keepdims=1)


def serialize(stream: Stream, metadata: Mapping[str, Any]) -> bytes:
    """Return the model of a stream, for any number of images.

    Args:
        stream: what to export.
        metadata: what JSON can represent, read again by `read_metadata`.
    """
    graph = OnnxOperations()
    feature = embed(graph, stream, Tensor(graph, IMAGES))
    graph.nodes[-1].output[:] = [FEATURE]
    assert feature.name not in {name for node in graph.nodes for name in node.input}
    kind = onnx.helper.make_tensor_value_info
    images = kind(IMAGES, onnx.TensorProto.UINT8, ["batch", *stream.image_size, 3])
    output = kind(FEATURE, onnx.TensorProto.FLOAT, ["batch", None])
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, stream.modality, [images], [output], graph.constants),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="ddag_jax",
        producer_version=ddag_jax.__version__,
    )
    onnx.helper.set_model_props(model, {name: json.dumps(v) for name, v in metadata.items()})
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)  # the feature's width, too
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def load(content: bytes) -> Callable[[UInt8[np.ndarray, "b h w 3"]], Float32[np.ndarray, "b d"]]:
    """Return the function of a model, run by onnxruntime on the CPU."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run([FEATURE], {IMAGES: images})[0])


def read_metadata(content: bytes) -> Any:
    """Return the metadata of a model. Raises ValueError if it is not JSON."""
    model = onnx.load_model_from_string(content)
    return {prop.key: parse_json(prop.value) for prop in model.metadata_props}
