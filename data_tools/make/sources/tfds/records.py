"""Read TFRecord files: frames with checksums, each a message `tf.train.Example` of named lists.

The frame is that of tensorflow/core/lib/io/record_writer.h, the message that of tensorflow/core/example/feature.proto:

    uint64 length, uint32 masked CRC-32C of it, length bytes, uint32 masked CRC-32C of them
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.data.stand_ins import refuse_stand_in
from pipeline.errors import DataError

HOW_TO_INSTALL = "pip install '.[tfds]'"
LARGEST_RECORD = 2**31  # protobuf's limit of a message
FIRST_BYTES = 64
_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_MASK = 0xA282EAD8

Features = dict[str, list[Any]]
"""Values of one example by name: bytes, numbers, or none."""


def read_examples(path: str, *, first: int, end: int) -> Iterator[Features]:
    """Yield the examples from number `first` up to `end` of a file. Those before are passed over unread.

    Raises:
        DataError: the file is damaged, truncated, or has fewer examples.
    """
    parse = _parser()
    number = 0
    with Path(path).open("rb") as file:
        refuse_stand_in(file.read(FIRST_BYTES), name=path)
        file.seek(0)
        for number, data in enumerate(_read_records(file, path=path, first=first), first):
            if number >= end:
                return
            try:
                yield parse(data)
            except ValueError as error:
                raise DataError(f"{path}: record {number} is no tf.train.Example ({error})") from error
    if number + 1 < end:
        raise DataError(f"{path} has {number + 1} records, and {end} are needed; it is truncated, or of another version")


def _read_records(file: BinaryIO, *, path: str, first: int) -> Iterator[bytes]:
    for number in range(first):
        if (length := _read_length(file, path=path, number=number)) is None:
            raise DataError(f"{path} has {number} records, and record {first} is needed; it is truncated")
        file.seek(length + _CHECKSUM.size, 1)
    for number in _count_from(first):
        length = _read_length(file, path=path, number=number)
        if length is None:
            return
        data, stored = file.read(length), file.read(_CHECKSUM.size)
        if len(data) < length or len(stored) < _CHECKSUM.size:
            raise DataError(f"{path} is truncated in record {number}; copy it again")
        if _masked_crc(data) != _CHECKSUM.unpack(stored)[0]:
            raise DataError(f"{path}: record {number} is damaged: its checksum is another; copy it again")
        yield data


def _count_from(first: int) -> Iterator[int]:
    number = first
    while True:
        yield number
        number += 1


def _read_length(file: BinaryIO, *, path: str, number: int) -> int | None:
    """Return the length of the next record; None at the file's end."""
    header = file.read(_HEADER.size)
    if not header:
        return None
    if len(header) < _HEADER.size:
        raise DataError(f"{path} is truncated in record {number}; copy it again")
    length, stored = _HEADER.unpack(header)
    if _masked_crc(header[:8]) != stored or length > LARGEST_RECORD:
        raise DataError(f"{path}: record {number} has no valid header; it is no TFRecord file, or a compressed or damaged one")
    return length


def _masked_crc(data: bytes) -> int:
    crc = _crc32c()(data)
    return (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF


@functools.cache
def _crc32c() -> Any:
    try:
        import google_crc32c
    except ImportError as error:
        raise DataError(
            f"TFRecord files are read with google-crc32c, which is not installed ({error}): {HOW_TO_INSTALL}"
        ) from error
    return google_crc32c.value


@functools.cache
def _parser() -> Any:
    """Return a function from a message's bytes to its features."""
    example = _make_message()

    def parse(data: bytes) -> Features:
        message = example()
        try:
            message.ParseFromString(data)
        except Exception as error:  # protobuf's DecodeError has another home in each version
            raise ValueError(error) from error
        found: Features = {}
        for name, feature in message.features.feature.items():
            kind = feature.WhichOneof("kind")
            found[name] = [] if kind is None else list(getattr(feature, kind).value)
        return found

    return parse


def _make_message() -> Any:
    """Return the class of the message, from a description of its fields: TensorFlow, which has it, is not needed."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError as error:
        raise DataError(f"TFRecord files are read with protobuf, which is not installed ({error}): {HOW_TO_INSTALL}") from error
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")

    def add(message: Any, name: str, number: int, kind: int, type_name: str = "", *, repeated: bool = False) -> Any:
        label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
        return message.field.add(name=name, number=number, type=kind, label=label, type_name=type_name or None)

    lists = (("BytesList", field.TYPE_BYTES), ("FloatList", field.TYPE_FLOAT), ("Int64List", field.TYPE_INT64))
    for name, kind in lists:
        add(file.message_type.add(name=name), "value", 1, kind, repeated=True)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, of_type) in enumerate(
        (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")), 1
    ):
        add(feature, name, number, field.TYPE_MESSAGE, f".tensorflow.{of_type}").oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, field.TYPE_STRING)
    add(entry, "value", 2, field.TYPE_MESSAGE, ".tensorflow.Feature")
    add(features, "feature", 1, field.TYPE_MESSAGE, ".tensorflow.Features.FeatureEntry", repeated=True)
    add(file.message_type.add(name="Example"), "features", 1, field.TYPE_MESSAGE, ".tensorflow.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))
