"""A request: its arguments checked as far as the wire can't hold them, and its bytes."""

import operator
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nsa_metadata.enums import MODES, OUTPUTS, Mode, Output, number_of
from nsa_metadata.wire import bytes_head, integer_field

_INT32 = np.iinfo(np.int32)
_UINT64_MAX = 2**64 - 1


def asked_outputs(outputs: Iterable[Output] | None) -> tuple[Output, ...]:
    """The outputs that a request with this list gets, each once: the first two where it is None or empty."""
    asked = tuple(outputs or ())
    for index, name in enumerate(asked):
        number_of(f"outputs[{index}]", name, OUTPUTS)
    return tuple(dict.fromkeys(asked)) or OUTPUTS[:2]


def int32_array(argument: str, values: ArrayLike) -> NDArray[np.int32]:
    """`values` as a contiguous little-endian array, itself where it is one. ValueError where they don't fit int32."""
    if hasattr(values, "detach"):  # torch's, of whatever device
        values = values.detach().cpu()
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{argument} has the shape {list(array.shape)}, want [num_sequences]")
    if array.dtype.kind not in "iu":
        # numpy makes floats of an empty list, and floats or objects of integers that pass int64.
        array = np.asarray(values, dtype=object)
        for index, value in enumerate(array):
            if not isinstance(value, (int, np.integer)):
                raise TypeError(f"{argument}[{index}] is {value!r}, want an integer")
    if not np.can_cast(array.dtype, np.int32):
        outside = (array < _INT32.min) | (array > _INT32.max)
        if outside.any():
            index = int(outside.argmax())
            _check_range(f"{argument}[{index}]", int(array[index]), _INT32.min, _INT32.max)
    return np.ascontiguousarray(array, dtype="<i4")


def encode(
    extend_seq_lens: ArrayLike,
    seq_lens: ArrayLike,
    nsa_index_topk: int,
    mode: Mode,
    asked: tuple[Output, ...],
    request_id: int,
    include_timing: bool,
) -> bytes:
    """The bytes of an ExpandRequest. What the wire can hold is not checked: the server says what it refuses."""
    q = int32_array("extend_seq_lens", extend_seq_lens)
    s = int32_array("seq_lens", seq_lens)
    return b"".join(
        (
            integer_field(1, _check_range("request_id", request_id, 0, _UINT64_MAX)),
            bytes_head(2, q.nbytes),
            q.data,
            bytes_head(3, s.nbytes),
            s.data,
            integer_field(4, int32("nsa_index_topk", nsa_index_topk)),
            integer_field(5, number_of("mode", mode, MODES)),
            bytes_head(6, len(asked)),
            bytes(OUTPUTS.index(name) + 1 for name in asked),
            integer_field(7, int(include_timing)),
        )
    )


def int32(argument: str, value: int) -> int:
    """`value` as an int. TypeError where it is no integer, ValueError where it doesn't fit int32."""
    return _check_range(argument, value, _INT32.min, _INT32.max)


def _check_range(name: str, value: int, least: int, most: int) -> int:
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, want an integer") from None
    if value < least:
        raise ValueError(f"{name} is {value}, want at least {least}")
    if value > most:
        raise ValueError(f"{name} is {value}, want at most {most}")
    return value
