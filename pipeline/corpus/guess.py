"""Guess the format of a file from its first bytes, for error messages."""

import codecs

_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "a zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a rar archive"),
    (b"PAR1", "Parquet"),
    (b"ARROW1", "an Arrow file"),
    (b"FEA1", "Feather version 1"),
    (b"\xff\xff\xff\xff", "an Arrow stream"),
    (b"ORC", "ORC"),
    (b"Obj\x01", "Avro"),
    (b"%PDF", "PDF"),
    (b"\x89HDF", "HDF5"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"WARC/", "WARC"),
    (b"{\\rtf", "RTF"),
)
_TAR = slice(257, 262)
_TEXT_CONTROLS = frozenset(b"\t\n\r\f\b\x1b")


def guess(head: bytes) -> str:
    """The name of the format, worded to follow "it looks like", from the first few thousand bytes of a file."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[_TAR] == b"ustar":
        return "a tar archive"
    if not head.strip(b"\0"):
        return "nothing but zero bytes"
    if wide := _wide(head):
        return wide
    if not _is_text(head):
        return "binary data"
    text = head.removeprefix(b"\xef\xbb\xbf").strip()
    start = text[:200].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "HTML"
    if start.startswith(b"<?xml"):
        return "XML"
    if text.startswith(b"["):
        return "a JSON array"
    if text.startswith(b"{"):
        first, _, rest = text.partition(b"\n")
        several = rest.strip() and not rest.lstrip().startswith(b"{")
        return "one JSON object over several lines" if several and not first.endswith(b"}") else "JSON lines"
    return "plain text"


def _wide(head: bytes) -> str | None:
    """UTF-16 or UTF-32, if the bytes decode to text that begins with a byte order mark or is mostly ASCII."""
    for name in ("UTF-32", "UTF-16"):
        for order in ("le", "be"):
            try:
                text = codecs.getincrementaldecoder(f"{name}-{order}")().decode(head)
            except UnicodeDecodeError:
                continue
            marked = text.startswith("\ufeff")
            plain = 2 * sum(character < "\x80" for character in text) > len(text)
            if (marked or plain) and _is_text(text.encode()):
                return name if marked else f"{name}{order.upper()}"
    return None


def _is_text(head: bytes) -> bool:
    controls = sum(byte < 32 and byte not in _TEXT_CONTROLS for byte in head)
    return controls * 100 < max(1, len(head))
