"""The file that Weights & Biases writes of an offline run: what it holds, and how to end a torn one.

After 7 bytes of header come blocks of 32 KiB, as in LevelDB's log. A record lies there in one piece or in
several, each behind its CRC-32, length and kind; it is a protobuf ``Record``. A writer that is killed leaves
the blocks it had flushed: half a record at the end, and no record that says the run has ended. Readers then
wait for more (``wandb beta sync --live``) or never call the file uploaded.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distllm.observe.names import SAMPLES, STEP_AXIS

_HEADER_BYTES = 7
_BLOCK_BYTES = 1 << 15
_PIECE = struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def highest_shown(path: Path) -> dict[str, int]:
    """Return the highest step that the file shows of each kind of record: ``step``, ``eval``, ``sample``."""
    highest: dict[str, int] = {}
    for _, record in _read(path):
        if record.WhichOneof("record_type") != "history":
            continue
        values = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        kind = _kind_of(values)
        if kind and STEP_AXIS in values:
            highest[kind] = max(highest.get(kind, -1), int(values[STEP_AXIS]))
    return highest


def end_file(path: Path, exit_code: int) -> bool:
    """Write that the run has ended behind the last whole record, unless the file says so already.

    Args:
        path: of a file whose writer is dead.
        exit_code: what the dashboard is told; anything but 0 is a failed run there.

    Returns:
        Whether the file holds a run. One whose writer was killed before its first flush does not, and is left
        as it is: no client reads it.
    """
    from wandb.proto import wandb_internal_pb2 as schema

    stop, number, holds_run = _HEADER_BYTES, 0, False
    for behind, record in _read(path):
        stop, number = behind, max(number, record.num)
        holds_run |= record.HasField("run")
        if record.HasField("exit"):
            return True
    if not holds_run:
        return False
    ending = schema.Record(num=number + 1, exit=schema.RunExitRecord(exit_code=exit_code))
    with path.open("r+b") as stream:
        stream.truncate(stop)
        stream.seek(stop)
        stream.write(_in_pieces(ending.SerializeToString(), stop))
    return True


def _kind_of(names: dict[str, str]) -> str | None:
    """Return what kind of record a row of the history is, by what it holds."""
    if any(name.startswith(SAMPLES) for name in names):
        return "sample"
    if any(name.startswith("eval/") for name in names):
        return "eval"
    return "step" if any(name.startswith("train/") for name in names) else None


def _read(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the offset behind each whole record, and the record, up to the first that is damaged."""
    from wandb.proto import wandb_internal_pb2 as schema

    content = path.read_bytes()
    position, data = _HEADER_BYTES, b""
    while True:
        left = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left < _PIECE.size:
            position += left
        start = position + _PIECE.size
        if start > len(content):
            return
        checksum, length, kind = _PIECE.unpack_from(content, position)
        piece = content[start : start + length]
        if len(piece) < length or _checksum(kind, piece) != checksum:
            return
        position = start + length
        data = piece if kind in (_WHOLE, _FIRST) else data + piece
        if kind in (_WHOLE, _LAST):
            yield position, schema.Record.FromString(data)


def _in_pieces(data: bytes, position: int) -> bytes:
    """Lay out a record from an offset on, without crossing a border of blocks inside a piece."""
    written, first = b"", True
    while data or first:
        left = _BLOCK_BYTES - (position + len(written)) % _BLOCK_BYTES
        if left < _PIECE.size:
            written += bytes(left)
            continue
        piece, data = data[: left - _PIECE.size], data[left - _PIECE.size :]
        kind = (_MIDDLE if data else _LAST) if not first else (_FIRST if data else _WHOLE)
        written += _PIECE.pack(_checksum(kind, piece), len(piece), kind) + piece
        first = False
    return written


def _checksum(kind: int, piece: bytes) -> int:
    return zlib.crc32(piece, zlib.crc32(bytes([kind])))
