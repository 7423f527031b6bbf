"""What compiled functions need beyond Python: raw memory, calls through addresses, bits of numbers.

All that is compiled for the host takes four int64 numbers, addresses among them, and returns nothing: FUNCTION. So one
loop serves every rule and every format, which it calls through addresses that its arguments hold.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

float32, float64, int32, int64, uint16, uint32, uint64 = (
    getattr(types, name) for name in ("float32", "float64", "int32", "int64", "uint16", "uint32", "uint64")
)
FUNCTION = types.void(int64, int64, int64, int64)


@intrinsic
def pointer(typingctx: Any, address: Any, element: Any) -> Any:
    """The memory at an address, as elements of a type; unlike an array's, its indices do not wrap around."""
    signature = types.CPointer(element.dtype)(int64, element)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


@intrinsic
def call(typingctx: Any, function: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Calls the FUNCTION at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [word] * 4)
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(*[int64] * 5), generate


@intrinsic
def prefetch_line(typingctx: Any, address: Any) -> Any:
    """Has the processor fetch what lies at an address, if anything does, while it goes on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        at = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [at.type, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [at, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(int64), generate


@njit(inline="always")
def prefetch(address: int, size: int) -> None:
    """Has the processor fetch so many bytes, a line of its cache at a time."""
    for line in range(0, size, 64):
        prefetch_line(address + line)


@intrinsic
def nothing_overlaps(typingctx: Any) -> Any:
    """Promises that the pointers which the function around it takes lead to memory that does not overlap."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        for argument in builder.function.args:
            if argument.name.startswith("arg.") and isinstance(argument.type, ir.PointerType):
                argument.add_attribute("noalias")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def exactly(typingctx: Any, number: Any, kind: Any) -> Any:
    """The number, which is of this type already: elsewhere it would be rounded twice, and to other bits."""
    if number != kind.dtype:
        raise TypingError(
            f"a rule returns {number} where it computes in {kind.dtype}: a literal without a point is an integer, and "
            "numbers of the two make a float64"
        )
    return number(number, kind), lambda context, builder, signature, arguments: arguments[0]


@intrinsic
def bits_of(typingctx: Any, number: Any) -> Any:
    """The bits of a float32, as uint32."""
    return uint32(float32), lambda context, builder, signature, arguments: builder.bitcast(arguments[0], ir.IntType(32))


@intrinsic
def number_of(typingctx: Any, bits: Any) -> Any:
    """The float32 with these bits, a uint32."""
    return float32(uint32), lambda context, builder, signature, arguments: builder.bitcast(arguments[0], ir.FloatType())


@njit(fastmath={"reassoc"})  # what else there is to speed, infinities and NaN forbid
def total(values: Any, count: int) -> float:
    """The sum of the first elements, in float64."""
    result = 0.0
    for i in range(count):
        result += values[i]
    return result
