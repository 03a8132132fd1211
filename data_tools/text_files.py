"""Read text that people and other programs write: its encoding is detected or given, and any line end is accepted."""

from __future__ import annotations

import codecs
import unicodedata
from pathlib import Path

from pipeline.data.shards.class_names import BYTE_ORDER_MARK
from pipeline.data.stand_ins import refuse_stand_in
from pipeline.errors import DataError

MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
ADVICE = "say which encoding it is with --encoding (cp1252 is what Windows writes in western Europe), or convert it to UTF-8"


def find_encoding(data: bytes) -> str | None:
    """Return the encoding that a byte-order mark means."""
    return next((encoding for mark, encoding in MARKS.items() if data.startswith(mark)), None)


def check_encoding(name: str) -> None:
    """Refuse an encoding that Python does not know.

    Raises:
        DataError: Python does not know it.
    """
    try:
        codecs.lookup(name)
        "".encode(name)
    except (LookupError, ValueError, UnicodeError) as error:
        raise DataError(f"--encoding {name}: no such text encoding; utf-8, cp1252, latin-1 and utf-16 are some") from error


def read_text(path: str, *, encoding: str | None) -> str:
    """Return a file's text, decoded by the encoding that is given, else by that of its byte-order mark, else as UTF-8.

    Raises:
        DataError: no such file, or bytes that are no text in this encoding.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    return decode_text(data, name=path, encoding=encoding)


def decode_text(data: bytes, *, name: str, encoding: str | None) -> str:
    """Return the text of a file's bytes, as `read_text` does.

    Args:
        name: of the file, for messages.

    Raises:
        DataError: bytes that are no text in this encoding.
    """
    if data:
        refuse_stand_in(data, name=name)
    found = find_encoding(data) or encoding or "utf-8"
    try:
        text = data.decode(found)
    except UnicodeError as error:
        line = data.count(b"\n", 0, getattr(error, "start", 0)) + 1
        raise DataError(f"{name} line {line}: bytes that are not {found}; {ADVICE}") from error
    if "\0" in text:
        raise DataError(f"{name}: zero bytes, as in UTF-16 without a byte-order mark; {ADVICE}")
    return text.lstrip(BYTE_ORDER_MARK)


def is_text(name: str) -> bool:
    """Return whether a name is text that can be written, and not bytes of an unknown encoding from a file system."""
    return not any("\udc80" <= letter <= "\udcff" for letter in name)


def printable(name: str) -> str:
    """Make a name safe for a terminal or a message."""
    return name if name.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def same_name(name: str) -> str:
    """Return the same text for names that look the same: systems write accents in two ways."""
    return unicodedata.normalize("NFC", name)
