"""Decode the fields of a record into a `Record`, or into the reason for its quarantine."""

import json
import math
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from pipeline.config import LabelConfig, given_fields, language_fields, read_fields
from pipeline.corpus.inputs import Source
from pipeline.corpus.records import Quarantined, Record
from pipeline.corpus.suffixes import document_name
from pipeline.corpus.warc import WarcEntry

NOT_JSON = "not-json"
NOT_AN_OBJECT = "not-an-object"
NO_TEXT = "no-text"
TEXT_NOT_A_STRING = "text-not-a-string"
INVALID_UTF8 = "invalid-utf8"
LONE_SURROGATE = "lone-surrogate"
TOO_LARGE = "too-large"
BROKEN_RECORD = "broken-record"
NOT_TEXT = "not-text"
SCORES_MISMATCH = "scores-mismatch"

# Python's own limit depends on how deep the caller's stack is; ours must not.
_MAX_DEPTH = 200
_NO_META = frozenset({"warc-type", "warc-record-id", "content-length"})
_JSON_TYPES = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    str: "a string",
}


class Decoder:
    r"""Decodes the records of one source.

    JSON is parsed as Python parses it: for a duplicate key the last value wins. `NaN`, `Infinity` and numbers beyond a
    double, which are not valid JSON but which Python's own writer emits, become null in `meta`. A lone surrogate in
    `meta` stays an escape (`\ud800`), which is lossless; in the text or the id it cannot be stored.

    A text field that holds a list of strings is a text split into sentences: the text is the strings joined. Empty
    strings are dropped, together with their values in the fields that scorers use.
    """

    def __init__(self, source: Source, config: LabelConfig) -> None:
        self._source = source
        self.text_field = config.text_field
        self._id_field = config.id_field
        self._meta_fields = None if config.meta_fields is None else frozenset(config.meta_fields)
        self._takes_sentences = config.sentences != "split"
        self.given_fields = given_fields(config)
        self.language_fields = language_fields(config)
        self.given_names = read_fields(config)
        self._no_meta = {self.text_field, self._id_field, *self.given_fields.values()} - {
            *self.language_fields.values()
        }
        self._keep_text = config.quarantine_text
        self.limit = config.max_record_size

    def from_json(self, position: int, line: bytes | None) -> Record | Quarantined:
        """Decode a line of JSON; None stands for a line over the size limit."""
        if line is None:
            return self.too_large(position)
        try:
            fields = json.loads(line.decode(), parse_constant=_no_number)
        except UnicodeDecodeError as error:
            return self.quarantined(position, INVALID_UTF8, f"at byte {error.start} of the record", line)
        except json.JSONDecodeError as error:
            return self.quarantined(position, NOT_JSON, f"{error.msg} at character {error.pos}", line)
        except ValueError:
            return self.quarantined(position, NOT_JSON, "an integer of too many digits", line)
        except RecursionError:
            return self.quarantined(position, NOT_JSON, _too_deep(), line)
        if not isinstance(fields, dict):
            return self.quarantined(position, NOT_AN_OBJECT, f"it is {_type_name(fields)}", line)
        if line.count(b"[") + line.count(b"{") > _MAX_DEPTH and _depth(fields) > _MAX_DEPTH:
            return self.quarantined(position, NOT_JSON, _too_deep(), line)
        return self.from_fields(position, fields, line)

    def from_fields(self, position: int, fields: Mapping[str, Any], raw: bytes | None = None) -> Record | Quarantined:
        """Decode fields that are JSON values; `raw` is the content that quarantine may keep."""
        text = fields.get(self.text_field)
        if text is None:
            what = "is null" if self.text_field in fields else "is missing"
            return self.quarantined(position, NO_TEXT, f"the field {self.text_field!r} {what}", raw)
        ends = None
        given = {name: fields[name] for name in self.given_names if name in fields} if self.given_names else None
        if isinstance(text, list) and self._takes_sentences:
            if (odd := next((at for at, each in enumerate(text) if not isinstance(each, str)), None)) is not None:
                what = f"value {odd} of the field {self.text_field!r} is {_type_name(text[odd])}"
                return self.quarantined(position, TEXT_NOT_A_STRING, what, raw)
            for name, values in (given or {}).items():
                if isinstance(values, list) and len(values) != len(text):
                    what = f"the field {name!r} has {len(values)} values for {len(text)} sentences"
                    return self.quarantined(position, SCORES_MISMATCH, what, raw)
            given = given and {name: _drop_empty(text, values) for name, values in given.items()}
            ends = tuple(accumulate(len(each) for each in text if each))
            text = "".join(text)
        if not isinstance(text, str):
            what = f"the field {self.text_field!r} is {_type_name(text)}"
            if isinstance(text, list):
                what += "; set `sentences: given` if it holds sentences"
            return self.quarantined(position, TEXT_NOT_A_STRING, what, raw)
        doc_id = fields.get(self._id_field)
        if doc_id is None or doc_id == "":
            doc_id = f"{self._source.uri}#{position}"
        elif not isinstance(doc_id, str):
            doc_id = _dumps(doc_id)
        for field, value in ((self.text_field, text), (self._id_field, doc_id)):
            if (at := _lone_surrogate(value)) is not None:
                what = f"at character {at} of the field {field!r}"
                return self.quarantined(position, LONE_SURROGATE, what, raw)
        if self._meta_fields is None:
            kept = {key: fields[key] for key in fields if key not in self._no_meta}
        else:
            kept = {key: fields[key] for key in fields if key in self._meta_fields}
        return Record(self._source.uri, position, doc_id, text, _dumps(kept), self._source.kind, "", ends, given)

    def from_file(self, content: bytes) -> Record | Quarantined:
        """Decode a file that is one document in UTF-8; the text is the whole file, with its byte order mark.

        A Python file that declares another encoding (PEP 263) is quarantined unless it is also valid UTF-8.
        """
        if len(content) > self.limit:
            return self.too_large(0)
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            return self.quarantined(0, INVALID_UTF8, f"at byte {error.start} of the file", content)
        uri = self._source.uri
        return Record(uri, 0, f"{uri}#0", text, "{}", self._source.kind, document_name(uri))

    def from_warc(self, position: int, entry: WarcEntry) -> Record | Quarantined:
        """Decode a record of a WET file: its block is the text, its WARC-Record-ID the id, its other headers `meta`.

        The block digest is checked only if the file is not compressed; compressed formats have their own checksums.
        """
        if entry.headers is None:
            return self.quarantined(position, BROKEN_RECORD, entry.problem)
        content = entry.content
        if content is None:
            return self.too_large(position)
        if self._source.compression is None and not entry.intact:
            return self.quarantined(position, BROKEN_RECORD, "its block does not match its WARC-Block-Digest", content)
        headers = {name.lower(): (name, value) for name, value in entry.headers.items()}
        content_type = headers.get("content-type", ("", "text/plain"))[1]
        if entry.kind != "conversion" or not content_type.lower().startswith("text/"):
            return self.quarantined(
                position, NOT_TEXT, "it is not a WARC record of type conversion that holds text", content
            )
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            return self.quarantined(position, INVALID_UTF8, f"at byte {error.start} of the block", content)
        doc_id = headers.get("warc-record-id", ("", ""))[1] or f"{self._source.uri}#{position}"
        if (at := _lone_surrogate(doc_id)) is not None:
            return self.quarantined(position, INVALID_UTF8, f"at character {at} of the WARC-Record-ID", content)
        meta = {name: value for key, (name, value) in headers.items() if key not in _NO_META}
        given = {name: meta[name] for name in self.given_names if name in meta} if self.given_names else None
        if self._meta_fields is not None:
            meta = {name: value for name, value in meta.items() if name in self._meta_fields}
        return Record(self._source.uri, position, doc_id, text, _dumps(meta), self._source.kind, "", given=given)

    def too_large(self, position: int) -> Quarantined:
        """Quarantine a record over the size limit, without decoding it."""
        return self.quarantined(position, TOO_LARGE, f"more than max_record_size = {self.limit} bytes")

    def quarantined(self, position: int, reason: str, detail: str, raw: bytes | None = None) -> Quarantined:
        """Quarantine a record: a reference to it, with its content only if `quarantine_text` is set."""
        text = raw.decode(errors="backslashreplace") if self._keep_text and raw is not None else None
        return Quarantined(self._source.uri, position, reason, detail, text)


def _drop_empty(sentences: list[str], values: Any) -> Any:
    """The values of the sentences that are not empty; anything but a list is returned unchanged."""
    if not isinstance(values, list) or all(sentences):
        return values
    return [value for sentence, value in zip(sentences, values, strict=True) if sentence]


def _no_number(_: str) -> None:
    return None


def _dumps(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if _lone_surrogate(text) is not None:
        text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return value


def _lone_surrogate(text: str) -> int | None:
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        nested = [each for each in level if isinstance(each, dict | list)]
        level = [child for each in nested for child in (each.values() if isinstance(each, dict) else each)]
    return depth


def _too_deep() -> str:
    return f"nested more than {_MAX_DEPTH} levels deep"


def _type_name(value: Any) -> str:
    return "null" if value is None else _JSON_TYPES[type(value)]
