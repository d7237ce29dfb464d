"""Check the beginning of each input before any work, and refuse files whose content contradicts their name."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from pipeline.config import LabelConfig
from pipeline.corpus.compression import LONGEST_HEAD, CutError, begins, window_of
from pipeline.corpus.guess import guess
from pipeline.corpus.inputs import Source, cannot_read
from pipeline.corpus.streams import CHUNK, SourceFile, open_content, read_lines
from pipeline.corpus.warc import read_documents
from scorers.errors import UserError
from scorers.paths import escape_path

_LINES = 100
_THREADS = 16
_NAMES = {"gzip": "gzip", "zstd": "zstd", "bz2": "bzip2", "xz": "xz"}
# Suffix by guessed format: of compressed files, of files that are never compressed, and of texts.
_COMPRESSED = {"gzip": ".gz", "zstd": ".zst", "bzip2": ".bz2", "xz": ".xz"}
_WHOLE = {"Parquet": ".parquet", "an Arrow file": ".arrow", "an Arrow stream": ".arrow"}
_TEXTS = {"JSON lines": ".jsonl", "WARC": ".warc"}


def check_beginnings(sources: Sequence[Source], config: LabelConfig) -> None:
    """Refuse inputs whose beginning does not match their format; several are read at a time.

    Empty files and later damage are not checked here.

    Raises:
        UserError: the first such input, with its apparent format and a remedy; or an input cannot be read.
    """
    if len(sources) < 2:
        for source in sources:
            _check(source, config)
        return
    with ThreadPoolExecutor(min(_THREADS, len(sources)), "look") as threads:
        for _ in threads.map(lambda source: _check(source, config), sources):
            pass


def _check(source: Source, config: LabelConfig) -> None:
    try:
        with SourceFile(source) as file:
            head = file.read(CHUNK)
        if not head:
            return
        if source.compression is not None:
            if not begins(source.compression, head[:LONGEST_HEAD]):
                name = _NAMES[source.compression]
                raise _mismatch(source, f"{escape_path(source.uri)} is not {name}, as its name says", head)
            _check_window(source, head, config)
        if source.format == "parquet" and not _may_begin(head, (b"PAR1", b"PARE")):
            raise _mismatch(source, f"{escape_path(source.uri)} is not a Parquet file", head)
        if source.format == "arrow" and not _may_be_arrow(head):
            raise _mismatch(source, f"{escape_path(source.uri)} is not an Arrow file", head)
        if source.format in {"jsonl", "warc"}:
            stream = open_content(source)
            try:
                content = head if source.compression is None else stream.read(CHUNK)
            finally:
                stream.close()
            if source.format == "jsonl":
                _check_lines(source, content, config)
            elif content.strip() and b"WARC/" not in content and not b"WARC/".startswith(content.strip()):
                raise _mismatch(source, f"{escape_path(source.uri)} holds no WARC record", content, decoded=True)
            else:
                _check_pages(source, config)
    except CutError:
        return
    except OSError as error:
        raise UserError(cannot_read(source.uri, error)) from None


def _check_lines(source: Source, head: bytes, config: LabelConfig) -> None:
    """Refuse a file if none of its first lines is a JSON object, unless it is a single damaged record."""
    lines = 0
    stream = open_content(source)
    try:
        for _, _, content in islice(read_lines(stream, limit=config.max_record_size), _LINES):
            if content is None:  # over the size limit
                if guess(head) == "JSON lines":
                    return
            elif _is_object(content):
                return
            lines += 1
    except CutError:
        pass  # the lines before it count
    finally:
        stream.close()
    seems = guess(head) if head.strip() else ""
    if not lines or (lines == 1 and seems == "JSON lines"):
        return
    which = f"None of the first {lines:,} lines of" if lines > 1 else "The one line of"
    what = f"{which} {escape_path(source.uri)} is {'a' if lines > 1 else 'no'} JSON object"
    raise _mismatch(source, what, head, decoded=True)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode()), dict)
    except (ValueError, RecursionError):
        return False


def _check_pages(source: Source, config: LabelConfig) -> None:
    stream = open_content(source)
    try:
        next(read_documents(source, stream, limit=config.max_record_size), None)
    finally:
        stream.close()


def _check_window(source: Source, head: bytes, config: LabelConfig) -> None:
    limit = config.execution.memory_limit
    window = window_of(head[:LONGEST_HEAD]) if source.compression == "zstd" else 0
    if limit is not None and window > limit:
        raise UserError(
            f"{escape_path(source.uri)} needs a window of {window >> 20:,} MiB to decompress, more than "
            f"execution.memory_limit ({limit >> 20:,} MiB). Raise the limit, or recompress the file: "
            "zstd -dc --long=31 FILE | zstd."
        )


def _may_begin(head: bytes, magic: tuple[bytes, ...]) -> bool:
    return any(head.startswith(each) or each.startswith(head) for each in magic)


def _may_be_arrow(head: bytes) -> bool:
    """Whether `head` may begin an Arrow file or stream; before Arrow 0.15 a stream began with its schema's length."""
    return _may_begin(head, (b"ARROW1", b"\xff\xff\xff\xff")) or 0 < int.from_bytes(head[:4], "little") < 1 << 20


def _mismatch(source: Source, what: str, head: bytes, *, decoded: bool = False) -> UserError:
    """The error for a file whose bytes, or (`decoded`) whose decompressed content, begin with `head`."""
    seems = guess(head)
    name = escape_path(source.uri)
    ending = name[name.rindex(".") :] if source.compression is not None else ""
    if seems in _COMPRESSED and decoded and ending:
        remedy = f"It is compressed twice: decompress it once ({seems} -dc)"
    elif seems in _COMPRESSED and source.format in {"parquet", "arrow"}:
        remedy = f"Decompress it ({seems} -dc)"
    elif seems in _COMPRESSED:
        remedy = f"Rename it to end with {_COMPRESSED[seems]}"
    elif seems in _WHOLE:
        remedy = f"{'Decompress it, and rename' if decoded and ending else 'Rename'} it to end with {_WHOLE[seems]}"
    elif ending and not decoded and seems in {"JSON lines", "plain text"}:
        remedy = f"Rename it without {ending}"
    elif seems in _TEXTS and _TEXTS[seems] != f".{source.format}":
        remedy = f"Rename it to end with {_TEXTS[seems]}{ending if decoded else ''}"
    elif seems.startswith("UTF-"):
        remedy = f"Convert it: iconv -f {seems} -t UTF-8"
    elif seems == "a JSON array":
        remedy = "Write one object a line: jq -c '.[]'"
    elif seems == "one JSON object over several lines":
        remedy = "Write one object a line: jq -c ."
    else:
        remedy = "Repair it"
    return UserError(f"{what}: it looks like {seems}. {remedy}, or leave the file out.")
