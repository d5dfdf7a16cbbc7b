"""As much of the Protocol Buffers wire format as the service's messages need.

Read by hand, because a packed sfixed32 field has the bytes of a little-endian int32 array: here it is a view of the
received message, where a generated class would copy every value.
"""

from collections import defaultdict

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
_UINT64_MAX = 2**64 - 1


class Message:
    """A message's fields, by number; the getters follow proto3: 0 or empty where a field is absent, the last one wins.

    Fields may come in any order, and those nobody asks for are skipped. ValueError where the bytes are no message.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        self._integers: dict[int, int] = {}
        self._chunks: defaultdict[int, list[memoryview]] = defaultdict(list)
        view = memoryview(data)
        at = 0
        while at < len(view):
            tag, at = _read_varint(view, at)
            number, wire_type = tag >> 3, tag & 7
            if number == 0:
                raise ValueError(f"a field has the number 0, before byte {at}")
            if wire_type == _VARINT:
                self._integers[number], at = _read_varint(view, at)
                continue
            if wire_type == _LEN:
                size, at = _read_varint(view, at)
            elif wire_type in (_I32, _I64):
                size = 4 if wire_type == _I32 else 8
            else:
                raise ValueError(f"field {number} has the wire type {wire_type}, before byte {at}")
            if size > len(view) - at:
                raise ValueError(f"field {number} has {size} bytes, and {len(view) - at} are left")
            # None of the messages read here has a 64-bit field.
            if wire_type != _I64:
                self._chunks[number].append(view[at : at + size])
            at += size

    def uint64(self, number: int) -> int:
        return self._integers.get(number, 0)

    def int64(self, number: int) -> int:
        value = self.uint64(number)
        return value - 2**64 if value >= 2**63 else value

    def text(self, number: int) -> str:
        return str(self.chunks(number)[-1], "utf-8") if number in self._chunks else ""

    def messages(self, number: int) -> list["Message"]:
        """A repeated field's messages."""
        return [Message(chunk) for chunk in self.chunks(number)]

    def message(self, number: int) -> "Message | None":
        """A singular field's message, or None where it is absent. Several are merged, as in proto3."""
        return Message(b"".join(self.chunks(number))) if number in self._chunks else None

    def chunks(self, number: int) -> list[memoryview]:
        """The bytes of each occurrence. Of a repeated sfixed32, that is a packed one's or one value's, in order."""
        return self._chunks.get(number, [])


def integer_field(number: int, value: int) -> bytes:
    """A field of any integer, bool or enum type; a negative value as int32 and int64 have it."""
    return _varint(number << 3 | _VARINT) + _varint(value)


def bytes_head(number: int, size: int) -> bytes:
    """What comes before the `size` bytes of a string, message or packed array."""
    return _varint(number << 3 | _LEN) + _varint(size)


def _varint(value: int) -> bytes:
    value &= _UINT64_MAX
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    """The varint at `at`, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at == len(view):
            raise ValueError("the last number has no end")
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _UINT64_MAX, at
    raise ValueError(f"a number has more than 10 bytes, before byte {at}")
