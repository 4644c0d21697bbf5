"""A compressed file: header, payload, and what there is to know beside it. `genmodels.coding` makes them and reads them back.

Header, 62 bytes, little-endian: magic, format, examples, bytes of payload and of names, then five blake2b hashes of 8 bytes: of the model, of its
equality class, of the levels, of all that follows, and of the header itself. Names: deflated JSON.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FORMAT = 1
"""Raised when a file is laid out, or its numbers are made, otherwise than before."""

MAGIC = b"GMZ\x1a"
_FIELDS = struct.Struct("<4sHIQI8s8s8s8s")
HEADER = _FIELDS.size + 8
"""Bytes before the payload."""


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """What `compress` makes and `decompress` takes."""

    examples: int
    payload: bytes
    model: str
    """`digest` of the model, 16 hex digits."""
    checksum: str
    """blake2b of all levels and labels, 16 hex digits."""
    equality_class: str
    threads: int
    lengths: tuple[int, ...] | None = None
    """Valid steps of each sound."""
    names: Mapping[str, Any] = field(default_factory=dict)
    """Whatever the caller wants back beside the examples; plain JSON."""

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each part of the file."""
        return {"header": HEADER, "payload": len(self.payload), "names": len(self._notes())}

    def to_bytes(self) -> bytes:
        """The file: header, payload, and what there is to know beside it as deflated JSON."""
        notes, hexes = self._notes(), bytes.fromhex
        sizes = (FORMAT, self.examples, len(self.payload), len(notes))
        body = self.payload + notes
        head = _FIELDS.pack(MAGIC, *sizes, hexes(self.model), hashed(self.equality_class.encode()), hexes(self.checksum), hashed(body))
        return head + hashed(head) + body

    @classmethod
    def from_bytes(cls, data: bytes) -> "Compressed":
        """Raises ValueError for what is no such file, was cut short or was changed."""
        if not data.startswith(MAGIC):
            raise ValueError("no compressed file of genmodels: it begins otherwise")
        if len(data) < HEADER:
            raise ValueError(f"cut short: {len(data)} bytes, less than a header of {HEADER}; fetch it again")
        head, body = data[: _FIELDS.size], data[HEADER:]
        _, version, examples, payload, notes, model, computed, checksum, content = _FIELDS.unpack(head)
        if version != FORMAT:
            raise ValueError(f"compressed format {version}; this version reads format {FORMAT}")
        if hashed(head) != data[_FIELDS.size : HEADER]:
            raise ValueError("its header was changed since it was written; fetch it again")
        if len(body) < payload + notes:
            raise ValueError(f"cut short: {len(data):,} of {HEADER + payload + notes:,} bytes; fetch it again")
        if hashed(body) != content:
            raise ValueError("changed since it was written: its content does not match its header; fetch it again")
        said = json.loads(zlib.decompress(body[payload:]))
        if hashed(said["class"].encode()) != computed:
            raise ValueError("its header names another equality class than its names do; fetch it again")
        return cls(
            examples=examples,
            payload=body[:payload],
            model=model.hex(),
            checksum=checksum.hex(),
            equality_class=said["class"],
            threads=said["threads"],
            lengths=None if said["lengths"] is None else tuple(said["lengths"]),
            names=said["names"],
        )

    def _notes(self) -> bytes:
        said = {"class": self.equality_class, "threads": self.threads, "lengths": self.lengths, "names": self.names}
        return zlib.compress(json.dumps(said, separators=(",", ":"), sort_keys=True).encode(), 9)


def hashed(data: bytes) -> bytes:
    """blake2b, 8 bytes."""
    return hashlib.blake2b(data, digest_size=8).digest()
