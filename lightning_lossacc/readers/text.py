"""The text of a file as people and programs write it: packed or not, in UTF-8, UTF-16 or with a stray byte."""

from __future__ import annotations

import codecs
import gzip
import zlib
from pathlib import Path

from lightning_lossacc.readers.tables import UnreadableError

PACKED = ".gz"
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Of an old one-byte encoding only names and units are not ASCII.
STRAY_BYTES = 0.02


def text_of(path: Path) -> str:
    """The text of a file.

    Raises:
        UnreadableError: if it cannot be opened or is no text.
    """
    try:
        data = path.read_bytes()
        if path.suffix.lower() == PACKED:
            data = gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnreadableError(f"the packed file is damaged: {error}") from None
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from None
    return decoded(data)


def decoded(data: bytes) -> str:
    """Text from bytes.

    Raises:
        UnreadableError: if they are none.
    """
    try:
        return data.decode("utf-16" if data.startswith(UTF_16) else "utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
        if 0 in data or sum(byte > 127 for byte in data) > max(STRAY_BYTES * len(data), 1):
            raise UnreadableError("the file is no text (UTF-8)") from None
        return text


def unpacked(path: Path) -> Path:
    """The path without the ending that says that it is packed."""
    return path.with_suffix("") if path.suffix.lower() == PACKED else path
