"""Marks in a README and in a figure that show whether they are still as they were written."""

import hashlib
import re
import struct
import zlib
from pathlib import Path

_LINE = re.compile(rb"<!-- written by eva_utils, sha256 ([0-9a-f]{64}) -->\n\Z")
_KEYWORD = b"eva_utils sha256\0"
_END = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))


def seal_text(text: str) -> bytes:
    """Return text as UTF-8 with its checksum in a comment below it."""
    body = text.encode()
    return body + f"<!-- written by eva_utils, sha256 {hashlib.sha256(body).hexdigest()} -->\n".encode()


def seal_png(content: bytes) -> bytes:
    """Return a PNG file with its checksum in a text chunk before its end."""
    body = content.removesuffix(_END)
    return body + _chunk(body) + _END


def _chunk(body: bytes) -> bytes:
    chunk = b"tEXt" + _KEYWORD + hashlib.sha256(body).hexdigest().encode()
    return struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))


def is_sealed(path: Path) -> bool:
    """Whether a file was written here and has not been changed; line ends may have been."""
    content = path.read_bytes()
    if path.suffix == ".png":
        size = len(_chunk(b"")) + len(_END)
        return content[-size:] == _chunk(content[:-size]) + _END
    content = content.replace(b"\r\n", b"\n")
    line = _LINE.search(content)
    return line is not None and hashlib.sha256(content[: line.start()]).hexdigest().encode() == line[1]
