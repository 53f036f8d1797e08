"""A record file while a sweep writes it: one segment per point, appended, each protected by a checksum.

A Parquet file cannot grow without being rewritten; a journal grows by what is new. Layout: `MAGIC`, then per segment
its length (8 bytes, little-endian), its SHA-256 (32), a CRC-32 of these 40 bytes (4), and the segment, a whole Parquet
file. A process that is killed leaves at most one incomplete segment, at the end, which is ignored.
"""

from __future__ import annotations

import hashlib
import struct
import zlib

from mnnvl_lab.errors import RecordError

MAGIC = b"mnnvl_lab journal 1\n"
_HEADER = struct.Struct("<Q32s")
_HEADER_BYTES = _HEADER.size + 4


def frame(segment: bytes) -> bytes:
    """A segment with its header."""
    header = _HEADER.pack(len(segment), hashlib.sha256(segment).digest())
    return header + zlib.crc32(header).to_bytes(4, "little") + segment


def segments(content: bytes) -> tuple[list[bytes], int]:
    """The complete segments of a journal, and where the last one ends.

    Raises:
        RecordError: a segment is damaged.
    """
    found, place = [], len(MAGIC)
    while place + _HEADER_BYTES <= len(content):
        header = content[place : place + _HEADER.size]
        begin = place + _HEADER_BYTES
        if zlib.crc32(header) != int.from_bytes(content[begin - 4 : begin], "little"):
            raise RecordError(f"damaged: the header of segment {len(found)} is not what was written; measure again")
        length, expected = _HEADER.unpack(header)
        segment = content[begin : begin + length]
        if len(segment) < length:
            break
        if hashlib.sha256(segment).digest() != expected:
            raise RecordError(f"damaged: segment {len(found)} is not what was written; measure again")
        found.append(segment)
        place = begin + length
    return found, place
