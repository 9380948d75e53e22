"""FLOPs of calls that no rule counts, from the graphs that TensorFlow traces of them.

A handle counts each kind of TensorFlow operator. Operators without a handle count as 0 where they
are known to be cheap; others are named, as what the number leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras

from sgdap import _keras
from sgdap.model.program import Program, Ref
from sgdap.model.sample_sizes import Sizes, fixed_batch, sizes_of_a_sample

Handle = Callable[[Any], float]
"""Returns the FLOPs of one operator of a graph, one multiply-add = 2."""

_HANDLES: dict[str, Handle] = {}


@dataclass(frozen=True)
class TracedWork:
    """What one call computes.

    Attributes:
        flops: FLOPs for one sample, one multiply-add = 2, of the operators that can be counted.
        uncounted: What the number leaves out, in words; empty where it is the whole.
    """

    flops: float
    uncounted: tuple[str, ...] = ()


def traced_work(program: Program, numbers: Iterable[int]) -> dict[int, TracedWork]:
    """Counts what some calls of a model compute, without running them.

    Operators that only pass over their numbers (activations, sums, copies) count as 0, as they do
    in layers that have a rule. Axes that grow with the batch are as long as for one sample; other
    sizes that the model leaves open count as 1.

    Args:
        program: The model's calls.
        numbers: The numbers of the calls.

    Returns:
        The work of each call, by its number.
    """
    numbers = list(numbers)
    if not numbers:
        return {}
    if keras.backend.backend() != "tensorflow":
        reason = f"the backend {keras.backend.backend()} traces no TensorFlow graph"
        return {number: TracedWork(0.0, (reason,)) for number in numbers}
    import tensorflow as tf

    found: dict[int, TracedWork] = {}
    sizes, batch = sizes_of_a_sample(program), fixed_batch(program) or 1

    def step() -> Any:
        graph = tf.compat.v1.get_default_graph()
        for number in numbers:
            try:
                # Variables that a call assigns and losses that it adds stay in the scope.
                with keras.StatelessScope(), _keras.name_counters_kept():
                    inputs = program.calls[number].inputs
                    values = {r.index: _placeholder(program, r, sizes[r.index]) for r in inputs}
                    program.advance(values, None, number, number + 1)
            except Exception as error:  # whatever stops a layer of the user's from being traced
                found[number] = TracedWork(0.0, (f"it can't be traced ({type(error).__name__})",))
            else:
                made = [values[ref.index] for ref in program.calls[number].outputs]
                work = _work_of(graph, tf.nest.flatten(made, expand_composites=True))
                found[number] = replace(work, flops=work.flops / batch)
        return tf.constant(0)

    tf.function(step, autograph=False).get_concrete_function()
    return found


def _work_of(graph: Any, tensors: Sequence[Any]) -> TracedWork:
    """The work of those operators of a graph that are needed to compute some of its tensors."""
    flops, uncounted = 0.0, []
    for operator in _needed(tensors):
        if operator.type in _HANDLES:
            try:
                flops += _HANDLES[operator.type](operator)
            except ValueError:  # a size that is not known before it runs
                uncounted.append(f"{operator.type} of sizes that are not known")
        elif operator.type in _CALLS:
            functions, times = _CALLS[operator.type](operator)
            for name in functions:
                inner = _keras.function_graph(graph, name)
                work = _work_of(inner, inner.outputs)
                flops += work.flops * (1 if times is None else times)
                uncounted += work.uncounted
                if work.flops and times is None:
                    uncounted.append(f"{operator.type} runs a number of times that is not known")
        elif operator.type not in _CHEAP:
            uncounted.append(f"no count for {operator.type}")
    return TracedWork(flops, tuple(dict.fromkeys(uncounted)))


def _needed(tensors: Sequence[Any]) -> list[Any]:
    """The operators that some tensors are computed with; TensorFlow does not run the others."""
    import tensorflow as tf

    waiting = [tensor.op for tensor in tensors if tf.is_symbolic_tensor(tensor)]
    found: dict[str, Any] = {}
    while waiting:
        operator = waiting.pop()
        if operator.name not in found:
            found[operator.name] = operator
            waiting += [tensor.op for tensor in operator.inputs]
    return list(found.values())


def _placeholder(program: Program, ref: Ref, sizes: Sizes) -> Any:
    import tensorflow as tf

    whole = zip(program.shapes[ref.index], sizes, strict=True)
    shape = [int(own) if size is None else size for size, own in whole]
    return tf.compat.v1.placeholder(program.dtypes[ref.index], shape)


# Handles


def _counts(*operators: str) -> Callable[[Handle], Handle]:
    def register(handle: Handle) -> Handle:
        _HANDLES.update(dict.fromkeys(operators, handle))
        return handle

    return register


def _size(tensor: Any) -> int:
    """The number of entries of a tensor.

    Raises:
        ValueError: Its shape is not known.
    """
    return math.prod(_shape(tensor))


def _shape(tensor: Any) -> list[int]:
    """The sizes of a tensor.

    Raises:
        ValueError: They are not known.
    """
    sizes: list[int] = tensor.shape.as_list()
    if None in sizes:
        raise ValueError(f"A size of {tensor} is not known.")
    return sizes


def _multiply_adds(tensor: Any, each: float) -> float:
    """FLOPs of a tensor of which each entry is a sum of `each` products."""
    return (8 if tensor.dtype.is_complex else 2) * _size(tensor) * each


@_counts("MatMul")
def _matrix_product(operator: Any) -> float:
    axis = 0 if operator.get_attr("transpose_a") else 1
    return _multiply_adds(operator.outputs[0], _shape(operator.inputs[0])[axis])


@_counts("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3")
def _batch_product(operator: Any) -> float:
    axis = -2 if operator.get_attr("adj_x") else -1
    return _multiply_adds(operator.outputs[0], _shape(operator.inputs[0])[axis])


@_counts("Einsum")
def _einsum(operator: Any) -> float:
    read, made = operator.get_attr("equation").decode().split("->")
    if len(operator.inputs) == 1:
        return 0.0
    sizes: dict[str, int] = {}
    for term, tensor in zip(read.split(","), operator.inputs, strict=True):
        before, _, after = term.partition("...")
        shape = _shape(tensor)
        sizes |= dict(zip(before, shape[: len(before)], strict=True))
        sizes |= dict(zip(after, shape[len(shape) - len(after) :], strict=True))
    met = [size for letter, size in sizes.items() if letter not in made]
    return _multiply_adds(operator.outputs[0], math.prod(met))


@_counts("Conv2D", "Conv3D", "Conv")
def _convolution(operator: Any) -> float:
    kernel = _shape(operator.inputs[1])
    return _multiply_adds(operator.outputs[0], math.prod(kernel[:-1]))


@_counts("DepthwiseConv2dNative")
def _depthwise(operator: Any) -> float:
    kernel = _shape(operator.inputs[1])
    return _multiply_adds(operator.outputs[0], math.prod(kernel[:2]))


@_counts("Conv2DBackpropInput", "Conv3DBackpropInputV2")
def _transposed_convolution(operator: Any) -> float:
    kernel = _shape(operator.inputs[1])
    return _multiply_adds(operator.inputs[2], math.prod(kernel[:-1]))


@_counts(*(f"{i}FFT{n}" for i in ("", "I") for n in ("", "2D", "3D")))
def _fourier(operator: Any) -> float:
    """`5 n log2 n` for each transform of n complex points."""
    axes = int(operator.type.partition("FFT")[2][:1] or 1)
    points = math.prod(_shape(operator.outputs[0])[-axes:])
    return 5 * _size(operator.outputs[0]) * math.log2(points)


@_counts("FFTND", "IFFTND")
def _fourier_along_axes(operator: Any) -> float:
    """`5 n log2 n` for each transform of n complex points."""
    return 5 * _size(operator.outputs[0]) * math.log2(math.prod(_constant(operator.inputs[1])))


@_counts(*(f"{i}RFFT{n}" for i in ("", "I") for n in ("", "2D", "3D", "ND")))
def _real_fourier(operator: Any) -> float:
    """Half of `5 n log2 n` for each transform of n real points, or to such."""
    lengths = _constant(operator.inputs[1])
    halves = operator.inputs[0] if operator.type.startswith("I") else operator.outputs[0]
    complex_points = math.prod(_shape(halves)[-len(lengths) :])
    transforms = _size(halves) / complex_points
    points = math.prod(lengths)
    return 2.5 * transforms * points * math.log2(points)


@_counts("Cholesky", "MatrixDeterminant", "LogMatrixDeterminant", "MatrixInverse", "Lu")
def _factorization(operator: Any) -> float:
    """Multiples of n³ for each matrix (Golub & Van Loan, Matrix Computations, chapters 3, 4)."""
    share = {"Cholesky": 1 / 3, "MatrixInverse": 2}.get(operator.type, 2 / 3)
    return share * _size(operator.inputs[0]) * _shape(operator.inputs[0])[-1]


@_counts("MatrixSolve", "MatrixTriangularSolve", "CholeskySolve")
def _solution(operator: Any) -> float:
    """`n²` for each right side and triangular matrix, of which there are two but for one kind.

    `MatrixSolve` factors its matrix first.
    """
    matrix, n = operator.inputs[0], _shape(operator.inputs[0])[-1]
    triangles = 1 if operator.type == "MatrixTriangularSolve" else 2
    factors = 2 / 3 * _size(matrix) * n if operator.type == "MatrixSolve" else 0.0
    return factors + triangles * _size(operator.outputs[0]) * n


def _constant(tensor: Any) -> list[int]:
    """The numbers in a tensor that is known before the graph runs.

    Raises:
        ValueError: They are not known.
    """
    import tensorflow as tf

    value = tf.get_static_value(tensor)
    if value is None:
        raise ValueError(f"{tensor} is not known before the graph runs.")
    return [int(number) for number in value.ravel()]


# Operators that call functions: the functions' names and how often they run


def _function(operator: Any) -> tuple[list[str], int | None]:
    return [operator.get_attr("f").name], 1


def _loop(operator: Any) -> tuple[list[str], int | None]:
    """A loop counts as often as it may run at most, None where that is not known."""
    import tensorflow as tf

    limit = operator.inputs[1]
    if limit.op.type == "Max":  # of the lengths of all sequences, in recurrent layers
        limit = limit.op.inputs[0]
    turns = tf.get_static_value(limit)
    known = turns is not None and turns.min() >= 0
    functions = [operator.get_attr(part).name for part in ("cond", "body")]
    return functions, int(turns.max()) if known else None


def _branches(operator: Any) -> tuple[list[str], int | None]:
    if operator.type.endswith("Case"):
        return [function.name for function in operator.get_attr("branches")], None
    return [operator.get_attr(f"{branch}_branch").name for branch in ("then", "else")], None


_CALLS: dict[str, Callable[[Any], tuple[list[str], int | None]]] = {
    "PartitionedCall": _function,
    "StatefulPartitionedCall": _function,
    "While": _loop,
    "StatelessWhile": _loop,
    "If": _branches,
    "StatelessIf": _branches,
    "Case": _branches,
    "StatelessCase": _branches,
}

_CHEAP = frozenset(
    """
    Abs Acos Acosh Add AddN AddV2 All Angle Any ApproximateEqual ArgMax ArgMin AsString Asin Asinh
    Assert AssignAddVariableOp AssignSubVariableOp AssignVariableOp Atan Atan2 Atanh AvgPool
    AvgPool3D BatchToSpaceND BesselI0e BesselI1e Betainc BiasAdd Bincount Bitcast BitwiseAnd
    BitwiseOr BitwiseXor BroadcastArgs BroadcastTo Bucketize Cast Ceil CheckNumerics ClipByValue
    Complex ComplexAbs Concat ConcatV2 Conj ConjugateTranspose Const Cos Cosh CropAndResize Cross
    Cumprod Cumsum CumulativeLogsumexp DenseBincount DenseCountSparseOutput DepthToSpace Diag
    DiagPart Digamma Div DivNoNan DynamicPartition DynamicStitch Elu EmptyTensorList EnsureShape
    Equal Erf Erfc Erfinv Exp ExpandDims Expm1 Fill Floor FloorDiv FloorMod FusedBatchNorm
    FusedBatchNormV2 FusedBatchNormV3 Gather GatherNd GatherV2 Greater GreaterEqual HSVToRGB
    HistogramFixedWidth Identity IdentityN Igamma Igammac Imag ImageProjectiveTransformV2
    ImageProjectiveTransformV3 InTopKV2 Inv Invert InvertPermutation IsFinite IsInf IsNan L2Loss
    LRN LeakyRelu LeftShift Less LessEqual Lgamma LinSpace Log Log1p LogSoftmax LogicalAnd
    LogicalNot LogicalOr LookupTableFindV2 LookupTableSizeV2 LowerBound MatrixBandPart MatrixDiag
    MatrixDiagPart MatrixDiagPartV2 MatrixDiagPartV3 MatrixDiagV2 MatrixDiagV3 MatrixSetDiag
    MatrixSetDiagV2 MatrixSetDiagV3 Max MaxPool MaxPool3D MaxPoolV2 Maximum Mean Min Minimum
    MirrorPad Mod Mul MulNoNan Ndtri Neg NextAfter NoOp NotEqual OneHot OnesLike Pack Pad PadV2
    Placeholder PlaceholderWithDefault Polygamma PopulationCount Pow PreventGradient Prod RGBToHSV
    RaggedBincount RaggedCountSparseOutput RaggedCross RaggedGather RaggedRange
    RaggedTensorFromVariant RaggedTensorToSparse RaggedTensorToTensor RaggedTensorToVariant
    RandomShuffle RandomStandardNormal RandomUniform RandomUniformInt Range Rank ReadVariableOp
    Real RealDiv Reciprocal ReduceJoin RegexFullMatch RegexReplace Relu Relu6 Reshape ResizeArea
    ResizeBicubic ResizeBilinear ResizeNearestNeighbor ResourceGather ResourceGatherNd Reverse
    ReverseSequence ReverseV2 RightShift Rint Roll Round Rsqrt ScaleAndTranslate ScatterNd
    SearchSorted SegmentMax SegmentMean SegmentMin SegmentProd SegmentSum Select SelectV2 Selu
    Shape ShapeN Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToBatchND
    SpaceToDepth SparseBincount SparseCountSparseOutput SparseCross SparseCrossHashed
    SparseCrossV2 SparseReorder SparseReshape SparseSoftmaxCrossEntropyWithLogits SparseToDense
    Split SplitV Sqrt Square SquaredDifference Squeeze StatelessMultinomial StatelessRandomGammaV2
    StatelessRandomGetAlg StatelessRandomGetKeyCounter StatelessRandomNormal
    StatelessRandomNormalV2 StatelessRandomUniform StatelessRandomUniformFullInt
    StatelessRandomUniformFullIntV2 StatelessRandomUniformInt StatelessRandomUniformIntV2
    StatelessRandomUniformV2 StatelessTruncatedNormal StatelessTruncatedNormalV2
    StaticRegexFullMatch StaticRegexReplace StopGradient StridedSlice StringFormat StringJoin
    StringLength StringLower StringNGrams StringSplit StringSplitV2 StringStrip StringToHashBucket
    StringToHashBucketFast StringToHashBucketStrong StringToNumber StringUpper Sub Substr Sum Tan
    Tanh TensorListFromTensor TensorListGetItem TensorListLength TensorListReserve
    TensorListSetItem TensorListStack TensorScatterAdd TensorScatterMax TensorScatterMin
    TensorScatterSub TensorScatterUpdate Tile TopK TopKV2 Transpose TruncateDiv TruncateMod
    TruncatedNormal UnicodeDecode UnicodeDecodeWithOffsets UnicodeEncode UnicodeScript
    UnicodeTranscode Unique UniqueV2 Unpack UnravelIndex UnsortedSegmentJoin UnsortedSegmentMax
    UnsortedSegmentMean UnsortedSegmentMin UnsortedSegmentProd UnsortedSegmentSum UpperBound
    VarHandleOp VarIsInitializedOp Where Xdivy Xlog1py Xlogy ZerosLike Zeta
    """.split()
)
"""Operators that only pass over their numbers once or a few times: they count as 0."""
