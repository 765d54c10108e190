"""Scalars of TensorBoard event files, all of them, without the tensorboard package.

An event file is a sequence of records (length, checksum, protocol buffer, checksum). The few fields of a buffer that
hold a scalar are read here: event_file_writer.py, event.proto, summary.proto and tensor.proto of TensorFlow. A last
record that was cut off by a crash ends the file; of the checksums only those of the lengths are looked at, to tell it
from a damaged one, of which the good records count.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_lossacc.readers.tables import Row, UnreadableError

# DataType of tensor.proto: struct code and bytes of the element types in which scalars are written.
FLOAT, DOUBLE, INT32, INT64, HALF = 1, 2, 3, 9, 19
ELEMENTS = {FLOAT: ("<f", 4), DOUBLE: ("<d", 8), INT32: ("<i", 4), INT64: ("<q", 8), HALF: ("<e", 2)}
VALUE_FIELDS = {5: "<f", 6: "<d"}  # float_val and double_val of TensorProto


def read_events(folders: Sequence[tuple[str, Path]]) -> tuple[list[Row], list[str]]:
    """Rows of one run in the order of writing, one row a scalar with its `step`; and what was damaged.

    Args:
        folders: folders (or single files) whose events belong together, each with the prefix of its tags.

    Raises:
        UnreadableError: if a file is no event file or nothing in it can be read.
    """
    found: list[tuple[float, int, Row]] = []
    damages: list[str] = []
    for prefix, place in folders:
        for path in sorted(place.glob("*tfevents*")) if place.is_dir() else [place]:
            if not path.is_file():
                continue
            for wall_time, step, tag, value in scalars(path, damages):
                name = f"{prefix}/{tag}" if prefix else tag
                found.append((wall_time, len(found), {"step": float(step), name: value}))
    if damages and not found:
        raise UnreadableError(damages[0])
    found.sort(key=lambda item: item[:2])
    return _merged([row for _, _, row in found]), damages


def _merged(rows: list[Row]) -> list[Row]:
    """Neighbouring scalars of one step as one row."""
    merged: list[Row] = []
    for row in rows:
        if merged and merged[-1]["step"] == row["step"] and len(merged[-1].keys() & row.keys()) == 1:
            merged[-1].update(row)
        else:
            merged.append(row)
    return merged


def scalars(path: Path, damages: list[str] | None = None) -> Iterator[tuple[float, int, str, float]]:
    """Wall time (s), step, tag and value of every scalar of one event file.

    Args:
        path: the file.
        damages: takes a sentence on what of a damaged file was not read.

    Raises:
        UnreadableError: if there is no event at all.
    """
    data = path.read_bytes()
    position, number, damaged, end = 0, 0, 0, ""
    while position + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        start, position = position + 12, position + 16 + length
        number += 1
        if _checksum(data[start - 12 : start - 4]) != struct.unpack_from("<I", data, start - 4)[0]:
            end = f"record {number} has no valid length, nothing is read from there on"
            number -= 1
            break
        if position > len(data):
            number -= 1
            break
        try:
            # As a whole, so that a record that breaks off gives nothing.
            yield from list(_event(data[start : start + length]))
        except (struct.error, IndexError, UnicodeDecodeError):
            damaged += 1
    if number == damaged:
        detail = "no event in the file" if not (damaged or end) else "no event can be read; the file is damaged"
        raise UnreadableError(f"{path.name}: {detail} ({len(data)} bytes)")
    if damages is not None and (damaged or end):
        left = [f"{damaged} of {number} records cannot be read"] if damaged else []
        damages.append(f"{path.name} is damaged: {'; '.join([*left, *([end] if end else [])])}")


def _checksum(data: bytes) -> int:
    """Masked CRC-32C, as TFRecord files have it."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _event(buffer: bytes) -> Iterator[tuple[float, int, str, float]]:
    wall_time, step, summary = math.nan, 0, b""
    for number, value in _fields(buffer):
        if number == 1 and isinstance(value, bytes):
            wall_time = struct.unpack("<d", value)[0]
        elif number == 2 and isinstance(value, int):
            step = value
        elif number == 5 and isinstance(value, bytes):
            summary = value
    for number, value in _fields(summary):
        if number == 1 and isinstance(value, bytes):
            tag, scalar = _value(value)
            if scalar is not None:
                yield wall_time, step, tag, scalar


def _value(buffer: bytes) -> tuple[str, float | None]:
    """Tag and number of a Summary.Value; None for images, histograms, texts …"""
    tag, scalar = "", None
    for number, value in _fields(buffer):
        if not isinstance(value, bytes):
            continue
        if number == 1:
            tag = value.decode("utf-8")
        elif number == 2:
            scalar = struct.unpack("<f", value)[0]
        elif number == 8:
            scalar = _tensor(value)
    return tag, scalar


def _tensor(buffer: bytes) -> float | None:
    """The element of a TensorProto that has exactly one, None for any other."""
    kind, content, shape = 0, b"", b""
    listed: list[float] = []
    for number, value in _fields(buffer):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == 2 and isinstance(value, bytes):
            shape = value
        elif number == 4 and isinstance(value, bytes):
            content = value
        elif number in VALUE_FIELDS and isinstance(value, bytes):
            code = VALUE_FIELDS[number]
            listed += [item for (item,) in struct.iter_unpack(code, value)]
        elif number in (7, 10) and isinstance(value, int):
            listed.append(float(value))
    if kind not in ELEMENTS:
        return None
    # A shape of dimensions of size 1 is a scalar as well.
    for number, dimension in _fields(shape):
        if number == 2 and isinstance(dimension, bytes):
            sizes = [size for field, size in _fields(dimension) if field == 1]
            if sizes != [1]:
                return None
    code, size = ELEMENTS[kind]
    if len(content) == size:
        return float(struct.unpack(code, content)[0])
    return listed[0] if len(listed) == 1 and not content else None


def _fields(buffer: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field number and value of a protocol buffer: an integer, or bytes of a fixed or given length."""
    position, end = 0, len(buffer)
    while position < end:
        key, position = _varint(buffer, position)
        wire = key & 7
        if wire == 0:
            number, position = _varint(buffer, position)
            yield key >> 3, number
            continue
        if wire == 2:
            size, position = _varint(buffer, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise IndexError(f"wire type {wire}")
        if position + size > end:
            raise IndexError("field beyond the end")
        yield key >> 3, buffer[position : position + size]
        position += size


def _varint(buffer: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = buffer[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return (number - (1 << 64) if number >= 1 << 63 else number), position
        shift += 7
