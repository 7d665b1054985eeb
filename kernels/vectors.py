"""Writing compiled code by LLVM vectors, where a plain loop does not become what the machine can do."""

# numba's and llvmlite's builders are untyped.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba.core import cgutils
from numba.extending import intrinsic as _intrinsic

_features = binding.get_host_cpu_features()
VECTOR_BYTES = 64 if _features.get("avx512f") else 32 if _features.get("avx2") else 16

integer = ir.IntType(64)


def intrinsic(function: Any) -> Any:
    """numba's decorator, whose result mypy would take for a function of Python values."""
    return _intrinsic(function)


class Vectors:
    """Writes operations on vectors into the function being compiled; elements as the first argument's."""

    def __init__(self, context: Any, builder: Any, signature: Any) -> None:
        element = signature.args[0].dtype
        self._context = context
        self._builder = builder
        self._kinds = signature.args
        self._nbytes = element.bitwidth // 8
        self.lanes = VECTOR_BYTES // self._nbytes
        self._element = context.get_data_type(element)
        self._vector = ir.VectorType(self._element, self.lanes)

    def address(self, argument: int, array: Any, at: Any) -> Any:
        """Of element `at` of the flat array that is the function's argument number `argument`."""
        data = self._context.make_array(self._kinds[argument])(self._context, self._builder, array).data
        return self._builder.gep(data, [at])

    def sums(self, count: int, start: float = 0.0) -> list[Any]:
        """Places for `count` vectors, all `start`; LLVM makes them registers."""
        found = [cgutils.alloca_once(self._builder, self._vector) for _ in range(count)]
        for place in found:
            self._builder.store(ir.Constant(self._vector, [start] * self.lanes), place)
        return found

    def load(self, pointer: Any) -> Any:
        return self._builder.load(self._cast(pointer), align=self._nbytes)

    def store(self, value: Any, pointer: Any) -> None:
        self._builder.store(value, self._cast(pointer), align=self._nbytes)

    def prefetch(self, pointer: Any) -> None:
        """Ask for the line into the second cache; a pointer to nowhere does no harm."""
        word = ir.IntType(32)
        arguments = [pointer, word(0), word(2), word(1)]
        kind = ir.FunctionType(ir.VoidType(), [each.type for each in arguments])
        function = cgutils.get_or_insert_function(self._builder.module, kind, "llvm.prefetch.p0")
        self._builder.call(function, arguments)

    def first(self, count: Any) -> Any:
        """The mask of the first `count` lanes."""
        numbers = ir.VectorType(integer, self.lanes)
        lanes = ir.Constant(numbers, list(range(self.lanes)))
        undefined = ir.Constant(numbers, ir.Undefined)
        one = self._builder.insert_element(undefined, count, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self._builder.icmp_signed("<", lanes, self._builder.shuffle_vector(one, undefined, zeros))

    def load_some(self, pointer: Any, mask: Any, other: float) -> Any:
        """The lanes of the mask, `other` in the others, where nothing is read."""
        pointer, others = self._cast(pointer), ir.Constant(self._vector, [other] * self.lanes)
        arguments = [pointer, ir.IntType(32)(self._nbytes), mask, others]
        return self._builder.call(self._masked("load", self._vector, arguments), arguments)

    def store_some(self, value: Any, pointer: Any, mask: Any) -> None:
        arguments = [value, self._cast(pointer), ir.IntType(32)(self._nbytes), mask]
        self._builder.call(self._masked("store", ir.VoidType(), arguments), arguments)

    def _masked(self, action: str, result: Any, arguments: Sequence[Any]) -> Any:
        name = f"llvm.masked.{action}.v{self.lanes}f{self._nbytes * 8}.p0"
        kind = ir.FunctionType(result, [each.type for each in arguments])
        return cgutils.get_or_insert_function(self._builder.module, kind, name)

    def spread(self, scalar: Any) -> Any:
        """The scalar in every lane."""
        undefined = ir.Constant(self._vector, ir.Undefined)
        one = self._builder.insert_element(undefined, scalar, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self._builder.shuffle_vector(one, undefined, zeros)

    def add_product(self, total: Any, a: Any, b: Any) -> None:
        """total += a * b, fused where the machine can."""
        product = self._builder.fmul(a, b, flags=("contract",))
        value = self._builder.fadd(self._builder.load(total), product, flags=("contract",))
        self._builder.store(value, total)

    def across(self, total: Any) -> Any:
        """The sum of a vector's lanes."""
        name = f"llvm.vector.reduce.fadd.v{self.lanes}f{self._nbytes * 8}"
        kind = ir.FunctionType(self._element, [self._element, self._vector])
        function = cgutils.get_or_insert_function(self._builder.module, kind, name)
        start = ir.Constant(self._element, 0.0)
        return self._builder.call(function, [start, self._builder.load(total)], fastmath=("reassoc",))

    def _cast(self, pointer: Any) -> Any:
        return self._builder.bitcast(pointer, self._vector.as_pointer())
