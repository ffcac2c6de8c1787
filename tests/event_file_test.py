"""Event files: checksums against published vectors, messages against protobuf's own reader."""

import struct

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from cai_jax import event_file

TYPES = descriptor_pb2.FieldDescriptorProto


@pytest.mark.parametrize(
    ("data", "expected"),
    [  # RFC 3720, appendix B.4, and the check value of the catalogue of CRCs
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_crc32c(data, expected):
    assert event_file.crc32c(data) == expected


def test_a_record_byte_by_byte():
    """The masked checks of an 8-byte length of 4 and of four bytes, by TensorFlow's rule."""

    def masked(data):
        crc = event_file.crc32c(data)
        return struct.pack("<I", ((crc >> 15) + (crc << 17) + 0xA282EAD8) % 2**32)

    length = b"\x04" + bytes(7)
    expected = length + masked(length) + b"data" + masked(b"data")
    assert event_file.record(b"data") == expected
    assert len(expected) == 8 + 4 + 4 + 4


def event_type():
    """tensorboard/compat/proto/event.proto and summary.proto, as far as scalars go."""
    file = descriptor_pb2.FileDescriptorProto(name="event.proto", package="t", syntax="proto3")
    for name, fields in {
        "Value": [("tag", 1, TYPES.TYPE_STRING), ("simple_value", 2, TYPES.TYPE_FLOAT)],
        "Summary": [("value", 1, ".t.Value")],
        "Event": [
            ("wall_time", 1, TYPES.TYPE_DOUBLE),
            ("step", 2, TYPES.TYPE_INT64),
            ("file_version", 3, TYPES.TYPE_STRING),
            ("summary", 5, ".t.Summary"),
        ],
    }.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            added = message.field.add(name=field, number=number, label=TYPES.LABEL_OPTIONAL)
            if isinstance(kind, str):
                added.type, added.type_name = TYPES.TYPE_MESSAGE, kind
            else:
                added.type = kind
            if field == "value":
                added.label = TYPES.LABEL_REPEATED
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Event"))


def read(path) -> list:
    """The events of a file, every checksum checked."""
    data, found, kind = path.read_bytes(), [], event_type()
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        assert data[: 16 + size] == event_file.record(data[12 : 12 + size])
        found.append(kind.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return found


def test_protobuf_reads_what_is_written(tmp_path):
    path = tmp_path / "stage" / "events.out.tfevents.0"
    rows = [
        (1700000000.25, 0, {"train/loss": 2.5}),
        (1700000001.5, 127, {"a": -1.0, "ä" * 100: 1e-30}),
        (1700000002.0, 128, {}),
        (1700000003.0, 2**40, {"n": 3}),
    ]
    event_file.write(path, rows)
    head, *events = read(path)
    assert head.file_version == "brain.Event:2"
    for event, (seconds, step, scalars) in zip(events, rows, strict=True):
        assert (event.wall_time, event.step) == (seconds, step)
        found = {value.tag: value.simple_value for value in event.summary.value}
        assert found == pytest.approx(scalars)
    event_file.write(path, rows[:1])
    assert len(read(path)) == 2
