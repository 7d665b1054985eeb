"""The node tests that ship with the onnx package, for the operators that Weft reads, in float32.

A test gives one node and its inputs; which of them are samples and which are weights it does not say. So each
is read in up to eight ways (WAYS). Every way that the reader takes must give the expected output, and one
must be taken, unless the test is listed in LEFT_OUT: then none may be.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from tests.launch import ROOT
from tests.pure.graph.onnx_files import compute
from weft.runtime.errors import GraphError
from weft.runtime.graph.onnx import Model, read
from weft.runtime.graph.onnx.reader import OPERATORS

FIXED = ("Constant", "ConstantOfShape")  # operators without a kernel: they are computed when a file is read

LEFT_OUT = {
    r"test_(average|max)pool_[23]d_dilations.*": "Weft's pools have no dilation",
    r"test_batchnorm_.*_training_mode": "a file exported for training: Weft has its own",
    r"test_training_dropout.*": "a file exported for training, with a random mask",
    r"test_cast.*_FLOAT_to_(BFLOAT16|FLOAT8.*|FLOAT4.*|U?INT[24])(_expanded)?": "NumPy lacks the type",
    r"test_pow_types_int(32|64)_float32": "powers of whole numbers: Weft computes in float32",
    r"test_resize_(tf_crop|.*(antialias|outside|not_(larg|small)er|downsample_scales_.*_align_corners)).*": (
        "Weft resizes whole images to sizes that the file says, without antialias"
    ),
    r"test_attention_.*(past|nonpad|padded_kv|ext_cache).*": "Weft's graphs keep no state between requests",
    r"test_lstm_with_peepholes": "Weft's cells have no peepholes",
    r"test_reshape_allowzero_reordered|test_(split_zero_size|reduce.*empty_set).*": "its input is empty",
}
"""Patterns of the tests' names, and why Weft does not read these."""

FIRST_OUTPUT_ALONE = {
    "Attention": "its others are what the next request would be given, and scores on the way",
    "Dropout": "its second output is the mask, which Weft draws from a counter and never stores",
    "LayerNormalization": "its others are mean and inverse deviation, which only its gradient reads",
    "MaxPool": "its second output are the places of the winners, which Weft stores in another form",
}


class Case(NamedTuple):
    name: str
    proto: onnx.ModelProto
    inputs: list[np.ndarray]
    outputs: list[np.ndarray]


@cache
def cases() -> dict[str, Case]:
    """All node tests whose graph has only operators that Weft reads, and float32 among its tensors."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package divides by zero to make its expected outputs
        loaded = load_model_tests(kind="node")
    known = {*OPERATORS, *FIXED}
    found = {}
    for each in loaded:
        if not all(node.op_type in known and node.domain == "" for node in each.model.graph.node):
            continue
        inputs, outputs = ([_array(value) for value in values] for values in each.data_sets[0])
        if any(getattr(array, "dtype", None) == np.float32 for array in (*inputs, *outputs)):
            found[each.name] = Case(each.name, each.model, inputs, outputs)
    return found


def _array(value: Any) -> Any:
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return value if isinstance(value, list | type(None)) else np.asarray(value)


class Way(NamedTuple):
    batched: bool
    samples: str  # which inputs vary: the first, those like it, those of float32, those of integers


WAYS = [
    Way(batched, which) for batched in (True, False) for which in ("first", "alike", "floats", "integers")
]


def readings(case: Case) -> Iterator[tuple[Way, Model, dict[str, np.ndarray]]]:
    """The ways that the reader takes, each with the samples to compute with."""
    names = [each.name for each in case.proto.graph.input]
    arrays = dict(zip(names, case.inputs, strict=True))
    for way in WAYS:
        match way.samples:
            case "first":
                varying = names[:1]
            case "alike":
                first = np.shape(next(iter(arrays.values()), 0))
                found = [name for name in names if np.shape(arrays[name])[:1] == first[:1]]
                varying = [name for name in found if np.ndim(arrays[name]) == len(first)]
                if len(varying) in (0, 1, len(names)):
                    continue
            case "floats":
                varying = [name for name in names if getattr(arrays[name], "dtype", None) == np.float32]
            case _:
                varying = [name for name in names if getattr(arrays[name], "dtype", None) == np.int64]
                if any((arrays[name] < 0).any() for name in varying):
                    continue  # computed tokens count from 0, and the kernel says so when it meets another
        if all(each.op_type in FIXED for each in case.proto.graph.node):
            varying = []
        elif not varying:
            continue  # else the onnx package would compute what it is compared with
        proto = onnx.ModelProto.FromString(case.proto.SerializeToString())
        del proto.graph.input[:]
        for each in case.proto.graph.input:
            if each.name in varying:
                proto.graph.input.append(each)
            elif isinstance(arrays[each.name], np.ndarray):
                proto.graph.initializer.append(numpy_helper.from_array(arrays[each.name], each.name))
        outputs = [each.name for each in case.proto.graph.output]
        ops = {each.op_type for each in proto.graph.node}
        if ops & {*FIRST_OUTPUT_ALONE}:
            outputs = outputs[:1]
        try:
            model = read(proto, batched=way.batched, outputs=outputs)
        except GraphError:
            continue
        samples = {name: arrays[name] if way.batched else np.stack([arrays[name]] * 2) for name in varying}
        yield way, model, samples


def reason(name: str) -> str | None:
    return next((why for pattern, why in LEFT_OUT.items() if re.fullmatch(pattern, name)), None)


def test_the_operators_named_are_read():
    """Conv, Gemm, … as the light models use them, and those of exported transformers and other networks."""
    named = """
        Conv Gemm MatMul BatchNormalization LRN MaxPool AveragePool GlobalAveragePool Relu Concat Add Sum Mul
        Reshape Transpose Unsqueeze Flatten Dropout Softmax ConstantOfShape Constant Identity
        LayerNormalization Gelu Erf Gather Slice Split Squeeze Sub Div Pow Sqrt ReduceMean Tanh Sigmoid Cast
        Shape Clip LeakyRelu HardSigmoid HardSwish Neg Abs Elu Expand GlobalMaxPool InstanceNormalization Pad
        ReduceMax ReduceSum Where GroupNormalization Reciprocal Resize
        Exp Log LogSoftmax Mish ReduceL2 Softplus PRelu DepthToSpace SpaceToDepth ConvTranspose
        Max Min ReduceL1 ReduceLogSumExp ReduceMin ReduceSumSquare Selu
        Equal Greater GreaterOrEqual Less LessOrEqual And Or Xor Not IsInf IsNaN
        Einsum RMSNormalization Attention
        Atan Ceil Floor Round Celu Cos Sign Sin Softsign ThresholdedRelu Tile Upsample
        RNN GRU LSTM ArgMax ArgMin CumSum TopK
    """
    assert {*named.split()} == {*OPERATORS, *FIXED}
    page = " ".join((ROOT / "docs" / "onnx.md").read_text().split())
    assert f"Operators that are read: {', '.join(sorted({*OPERATORS, *FIXED}))}. " in page


def test_every_node_test_is_run_or_left_out_for_a_reason():
    wrong = []
    run = 0
    for name, case in cases().items():
        taken = False
        for way, model, samples in readings(case):
            taken = True
            outputs = compute(model, samples)
            for (got, array), wanted in zip(outputs.items(), case.outputs, strict=False):
                repeat = way.batched or got in model.constants
                target = wanted if repeat else np.stack([wanted] * 2)
                try:
                    np.testing.assert_allclose(array, target, rtol=1e-3, atol=1e-6)
                    assert array.dtype == wanted.dtype
                except AssertionError as error:
                    wrong.append(f"{name}, {way}: {error}")
        run += taken
        if taken and reason(name):
            wrong.append(f"{name} is listed as left out ({reason(name)}), and is read")
        if not taken and not reason(name):
            wrong.append(f"{name} is neither read nor left out for a reason")
    assert wrong == []
    counts = Counter(reason(name) for name in cases())
    assert sorted(why for why in counts if why) == sorted(LEFT_OUT.values())
    page = (ROOT / "docs" / "onnx.md").read_text()
    assert [why for why in LEFT_OUT.values() if f"| {counts[why]} | {why} |" not in page] == []
    assert f"{run} are run" in page.replace("\n", " ")
