"""TensorBoard's event files by hand: scalars alone, without TensorFlow.

A file is a row of TFRecords, each a serialised `Event` of tensorboard/compat/proto/event.proto.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from cai_jax.shards import write_atomically


def write(path: Path, rows: Iterable[tuple[float, int, Mapping[str, float]]]) -> None:
    """Writes an event file, replacing what was there.

    Args:
      path: its name has to hold "tfevents" for TensorBoard to see it.
      rows: (time in seconds since 1970, step, name to scalar).

    Raises:
      OSError: it cannot be written.
    """
    events = [_double(1, 0.0) + _bytes(3, b"brain.Event:2")]
    for seconds, step, scalars in rows:
        values = (
            _bytes(1, _bytes(1, name.encode()) + _float(2, value))
            for name, value in scalars.items()
        )
        events.append(_double(1, seconds) + _integer(2, step) + _bytes(5, b"".join(values)))
    write_atomically(path, b"".join(map(record, events)))


def record(data: bytes) -> bytes:
    """A TFRecord: length, its checksum, data, its checksum."""
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def crc32c(data: bytes) -> int:
    """Castagnoli's cyclic redundancy check of RFC 3720, appendix B.4."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@functools.cache
def _table() -> tuple[int, ...]:
    """The remainder of each byte by the polynomial 0x1EDC6F41, bits reversed."""
    found = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        found.append(byte)
    return tuple(found)


def _checksum(data: bytes) -> bytes:
    """TFRecords rotate and shift the check, as the data may hold checks of its own."""
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)
