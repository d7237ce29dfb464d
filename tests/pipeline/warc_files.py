"""Write WARC files for tests, byte by byte."""

import base64
import gzip
import hashlib
from collections.abc import Sequence


def record(kind: str, number: int, block: bytes, *, digest: bool = False, **headers: str) -> bytes:
    """A record; keyword arguments are further headers, with `_` for `-`."""
    lines = {
        "WARC-Type": kind,
        "WARC-Record-ID": f"<urn:uuid:{number:08}>",
        "WARC-Date": "2024-05-01T00:00:00Z",
        "WARC-Target-URI": f"https://example.org/ü/{number}",
        "Content-Type": "text/plain",
        "Content-Length": str(len(block)),
    } | {name.replace("_", "-"): value for name, value in headers.items()}
    if digest:
        lines["WARC-Block-Digest"] = "sha1:" + base64.b32encode(hashlib.sha1(block).digest()).decode()
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return b"WARC/1.0\r\n" + head.encode() + b"\r\n" + block + b"\r\n\r\n"


def wet(texts: Sequence[str], *, digest: bool = True) -> list[bytes]:
    """The records of a WET file: one about the file, then one per text."""
    about = record("warcinfo", 99_999_999, b"Software-Info: tests\r\n", Content_Type="application/warc-fields")
    return [about, *(record("conversion", n, text.encode(), digest=digest) for n, text in enumerate(texts))]


def members(records: Sequence[bytes]) -> bytes:
    """Compress each record as a gzip member, as Common Crawl does."""
    return b"".join(gzip.compress(each, mtime=0) for each in records)
