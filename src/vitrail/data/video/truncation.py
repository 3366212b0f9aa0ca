"""Video files that end before the bytes that they declare, as interrupted downloads and recordings do.

Decoders go on without the missing frames, and report nothing. MPEG streams declare no length: of these, files that end
within a packet are found, and those cut between two packets are not.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

# Bytes by which a sound file may be shorter than it declares: some writers count the header of a chunk in its length.
_SLACK = 16
# Bytes at the end of a GIF that may be padding after its trailer, and at the start of a WMV that may be its header.
_TRAILER, _HEADER = 1 << 12, 1 << 16
# Boxes of MP4 and MOV files; what follows another one may be no box at all.
_BOXES = frozenset("ftyp moov mdat moof mfra free skip wide styp sidx ssix emsg prft pdin meta uuid".split())
# Element of Matroska and WebM with the whole content; object of WMV with the length of the file, its offset there.
_SEGMENT, _PROPERTIES, _LENGTH = bytes.fromhex("18538067"), bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"), 40
# Packets of a transport stream: bytes of one, offset of its first byte; with a time before it (M2TS), or a checksum
# after it. So many in a row have that byte.
_PACKETS, _SYNC, _IN_A_ROW = ((188, 0), (192, 4), (204, 0)), 0x47, 5
# Begin of each packet of a program stream, of a pack, its end; bytes at the end of a file that hold some packs, each of
# which has a packet of 64 KB at most.
_PREFIX, _PACK, _END, _PACKS = b"\0\0\1", b"\0\0\1\xba", 0xB9, 1 << 18


def is_truncated(path: Path) -> bool:
    """Check whether a file lacks bytes at its end, by the lengths that it declares.

    MP4, MOV, AVI, Matroska, WebM, FLV, WMV and GIF files declare them, MPEG program and transport streams those of each
    packet, live WebM none.

    Args:
        path: A video file.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        start, size = file.read(16), os.fstat(file.fileno()).st_size
        for signature, offset, measure in _FORMS:
            if start[offset : offset + len(signature)] == signature:
                return measure(file) > size + _SLACK
        if start.startswith(b"GIF8"):
            return not _has_trailer(file, size)
        return _ends_in_pack(file, size) if start.startswith(_PACK) else _ends_in_packet(file, size)


def _boxes_end(file: BinaryIO) -> int:
    """Return the end of the last box of an MP4 or MOV file."""
    end = 0
    while len(head := _read_at(file, end, 16)) >= 8 and head[4:8].decode("latin-1") in _BOXES:
        length = int.from_bytes(head[8:16] if head[:4] == b"\0\0\0\1" else head[:4], "big")
        if length < 8:  # 0: to the end of the file
            break
        end += length
    return end


def _chunks_end(file: BinaryIO) -> int:
    """Return the end of the last RIFF chunk of an AVI file, which has several beyond 1 GB."""
    end = 0
    while (head := _read_at(file, end, 12))[:4] == b"RIFF" and head[8:11] == b"AVI":
        length = int.from_bytes(head[4:8], "little")
        end += 8 + length + length % 2
    return end


def _segment_end(file: BinaryIO) -> int:
    """Return the end of the segment of a Matroska or WebM file; 0 of a live one, which declares none."""
    length, at = _element_length(_read_at(file, 4, 8))
    start = 4 + at + length
    head = _read_at(file, start, 12)
    if head[:4] != _SEGMENT:
        return 0
    length, at = _element_length(head[4:])
    unknown = (1 << 7 * at) - 1
    return 0 if length == unknown else start + 4 + at + length


def _element_length(data: bytes) -> tuple[int, int]:
    """Return an EBML length, and the number of its bytes: as many as the first one has leading zeros, and one."""
    number = 9 - data[0].bit_length() if data else 0
    return int.from_bytes(data[:number], "big") & ((1 << 7 * number) - 1), number


def _tags_end(file: BinaryIO) -> int:
    """Return the end of the last tag of an FLV file."""
    end = int.from_bytes(_read_at(file, 5, 4), "big") + 4
    while len(head := _read_at(file, end, 4)) == 4 and head[0] in (8, 9, 18):
        end += 11 + int.from_bytes(head[1:], "big") + 4
    return end


def _declared_length(file: BinaryIO) -> int:
    """Return the length of a WMV file that its properties declare; 0 without any."""
    head = _read_at(file, 0, _HEADER)
    at = head.find(_PROPERTIES)
    return 0 if at < 0 else int.from_bytes(head[at + _LENGTH : at + _LENGTH + 8], "little")


def _read_at(file: BinaryIO, offset: int, number: int) -> bytes:
    file.seek(offset)
    return file.read(number)


def _has_trailer(file: BinaryIO, size: int) -> bool:
    return _read_at(file, max(0, size - _TRAILER), _TRAILER).rstrip(b"\0").endswith(b";")


def _ends_in_packet(file: BinaryIO, size: int) -> bool:
    """Check whether a transport stream ends within a packet; packets have one length."""
    head = _read_at(file, 0, _IN_A_ROW * max(length for length, _ in _PACKETS))
    for length, offset in _PACKETS:
        if set(head[offset : _IN_A_ROW * length : length]) == {_SYNC} and len(head) >= _IN_A_ROW * length:
            rest = _read_at(file, size - size % length, length)
            # Recorders may append other bytes.
            return len(rest) > offset and rest[offset] == _SYNC
    return False


def _ends_in_pack(file: BinaryIO, size: int) -> bool:
    """Check whether a program stream ends within a packet, which declare their lengths."""
    tail = _read_at(file, max(0, size - _PACKS), _PACKS)
    start = tail.find(_PACK)
    while start >= 0:
        at = start
        while tail[at : at + 3] == _PREFIX and len(tail) > at + 3:
            length = _pack_length(tail[at : at + 14])
            if length is None:
                return False
            at += length
        if at >= len(tail) or tail[at:] == _PREFIX:
            return at != len(tail)
        # Bytes of a picture may look like a pack; no packet follows them.
        start = tail.find(_PACK, start + 1)
    return False


def _pack_length(head: bytes) -> int | None:
    """Return the bytes of a packet of a program stream; None where it declares none, at the end of the stream."""
    kind = head[3]
    if kind == _END:
        return None
    if kind == _PACK[3]:
        # Of MPEG-1, or of MPEG-2 with bytes that fill up, whose number ends it.
        first = head[4] if len(head) > 4 else 0
        return 12 if first >> 4 == 2 else 14 + (head[13] & 7 if len(head) == 14 else 0)
    length = int.from_bytes(head[4:6], "big") if len(head) >= 6 else 1
    return 6 + length if length else None


# Signature of a form, its offset, and the function that measures the length that a file declares.
_FORMS: tuple[tuple[bytes, int, Callable[[BinaryIO], int]], ...] = (
    *((kind, 4, _boxes_end) for kind in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")),
    (b"RIFF", 0, _chunks_end),
    (b"\x1aE\xdf\xa3", 0, _segment_end),
    (b"FLV", 0, _tags_end),
    (bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"), 0, _declared_length),
)
