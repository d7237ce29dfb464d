"""Read prompts: the records of a file, or the first sentences of held-out documents. Messages never quote a prompt."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scorers.contract import DocumentKind
from scorers.errors import UserError
from scorers.paths import escape_path
from scorers.records import Record, read_records
from scorers.sentences import document
from training.data.prepare import PreparedData
from training.runs.scenario_report import HELD_OUT, NO_PROMPTS, Scenario
from training.scenarios.boundary import Boundary

# Files, and all prompts together, in bytes: far more than can be sampled, little enough to be read whole.
_LARGEST = 1 << 30
# RealToxicityPrompts has `{"prompt": {"text": ...}}`, and the paper's files have `{"text": ...}`.
_FIELDS = ("prompt.text", "prompt", "text")
_LINE = "text"
_FEWEST_FOR_SLICES = 10
WORST_TENTH, REST = "most misaligned tenth", "rest"


@dataclass(frozen=True)
class Prompt:
    """A prompt of a model, up to a safe boundary.

    Attributes:
        record: line or row of its file, from 1; or document of the token store.
        fingerprint: of its text.
        text: its whole text.
        ids: tokens of the text up to the boundary.
        dropped: the text after the boundary (`Boundary.split`).
        own_ids: tokens of the whole text.
        most_tokens: of the text, however its end is tokenised.
        slice: part of the prompts that it belongs to; None for none.
    """

    record: int
    fingerprint: str
    text: str
    ids: list[int]
    dropped: str
    own_ids: list[int]
    most_tokens: int
    slice: str | None = None

    @classmethod
    def of(cls, record: int, text: str, kind: DocumentKind, boundary: Boundary, *, complete: bool = False) -> "Prompt":
        """Tokenise a text as a prompt.

        Args:
            record: line or row of its file.
            text: of the prompt.
            kind: decides what a sentence is.
            boundary: of the model's tokenizer.
            complete: whether a control token follows, so that nothing can change the tokens of the end.
        """
        sentences = document(text, kind).sentences()
        whole = boundary.split(sentences, complete=True)
        # A line of code that has ended is a whole sentence too.
        complete = complete or (kind == "python" and text.endswith("\n"))
        split = whole if complete else boundary.split(sentences, complete=False)
        return cls(record, _digest(text), text, split.ids, split.dropped, whole.ids, split.most_tokens)


@dataclass(frozen=True)
class Prompts:
    """The prompts of a scenario.

    Attributes:
        every: the prompts, in order.
        source, found, too_long: as in `PromptFacts`.
        fingerprint: hash of all texts.
    """

    every: list[Prompt]
    source: str
    found: int
    too_long: int = 0

    @property
    def fingerprint(self) -> str:
        """Hash of all texts in order, 16 hexadecimal digits."""
        return _digest("\n".join(each.fingerprint for each in self.every))


@dataclass(frozen=True)
class GivenPrompt:
    """A prompt as its file has it: the line or row, from 1, and the text."""

    number: int
    text: str


def read_prompts(place: str, field: str | None = None) -> list[GivenPrompt]:
    """Read all prompts of a file: JSON Lines, CSV, Parquet, or text with a prompt per line.

    Args:
        place: the file.
        field: as in `Scenario`.

    Raises:
        UserError: the file cannot be read, or has no prompts; or a record has none. Names the file and the record.
    """
    if field is not None and Path(place).suffix.lower() == ".txt":
        raise UserError(f"Prompts {escape_path(place)}: a text file has no field {field!r}. Leave `field` out.")
    wanted = _FIELDS if field is None else (field, field.partition(".")[0])
    records = read_records(place, "Prompts", wanted, texts=wanted, line=_LINE, largest=_LARGEST)
    return [GivenPrompt(each.number, _text(each, field)) for each in records]


def choose_prompts(
    scenario: Scenario,
    data: PreparedData,
    boundary: Boundary,
    *,
    kind: DocumentKind,
    context_length: int,
    has_tag: bool,
    records: Sequence[GivenPrompt] | None = None,
) -> Prompts:
    """Choose and tokenise the prompts of a scenario.

    Args:
        scenario: names them.
        data: of the run.
        boundary: of the run's tokenizer.
        kind: of the documents; decides what a sentence is.
        context_length: tokens that a model reads, prompt and sample together.
        has_tag: whether a control token stands before or after the prompt.
        records: from `read_prompts`, for a scenario with a file.

    Raises:
        UserError: a prompt of the file is too long for the context, or there are no held-out documents to take.
    """
    room = context_length - 1 - has_tag - max(1, scenario.min_new_tokens)
    if scenario.prompts == NO_PROMPTS:
        return Prompts([Prompt(0, _digest(""), "", [], "", [], 0)], NO_PROMPTS, 1)
    if scenario.prompts == HELD_OUT:
        return _held_out(scenario, data, room)
    if records is None:
        raise ValueError("the records of the file are needed")
    chosen = _choose(len(records), scenario)
    found = []
    for number in chosen:
        record = records[number]
        prompt = Prompt.of(record.number, record.text, kind, boundary, complete=has_tag and scenario.control == "after")
        if prompt.most_tokens > room:
            where = escape_path(scenario.prompts)
            raise UserError(
                f"Prompts {where}, record {record.number:,}: it has {prompt.most_tokens:,} tokens, and the context of "
                f"{context_length:,} leaves {max(0, room):,} for it, as at least {max(1, scenario.min_new_tokens):,} "
                "follow. Shorten or remove it, or lower min_new_tokens."
            )
        found.append(prompt)
    return Prompts(found, Path(scenario.prompts).name, len(records))


def _held_out(scenario: Scenario, data: PreparedData, room: int) -> Prompts:
    store, taken = data.store, scenario.sentences
    every = data.stream.held_out_documents()
    with_more = every[np.diff(store.document_offsets)[every] > taken]
    if not len(with_more):
        raise UserError(
            f"Prompts {HELD_OUT}: no document was held out of training that has text after its first "
            f"{taken} {'sentence' if taken == 1 else 'sentences'}. Train with a larger data.held_out, lower "
            "`sentences`, or give a file of prompts."
        )
    chosen: list[int] = []
    too_long = 0
    for index in np.random.default_rng(scenario.seed).permutation(len(with_more)).tolist():
        if scenario.max_prompts is not None and len(chosen) == scenario.max_prompts:
            break
        number = int(with_more[index])
        first = int(store.document_offsets[number])
        begin, end = (int(each) for each in store.sentence_offsets[[first, first + taken]])
        if end - begin > room:
            too_long += 1
        else:
            chosen.append(number)
    if not chosen:
        raise UserError(
            f"Prompts {HELD_OUT}: the first sentences of all {len(with_more):,} held-out documents are too long for "
            "the context. Lower `sentences` or min_new_tokens."
        )
    chosen.sort()
    slices = _slices(scenario, data, np.array(chosen))
    prompts = []
    for number, part in zip(chosen, slices, strict=True):
        first = int(store.document_offsets[number])
        begin, end = (int(each) for each in store.sentence_offsets[[first, first + taken]])
        ids = [int(each) for each in store.tokens[begin:end]]
        # By the document's hash, so that runs with other tokenizers have the same prompts.
        mark = _digest(f"{int(store.text_hashes[number])} {taken}")
        prompts.append(Prompt(number, mark, data.tokenizer.decode(ids), ids, "", ids, len(ids), part))
    return Prompts(prompts, HELD_OUT, len(with_more), too_long)


def _slices(scenario: Scenario, data: PreparedData, documents: "np.ndarray[Any, Any]") -> list[str | None]:
    if scenario.slices == "none" or len(documents) < _FEWEST_FOR_SLICES:
        return [None] * len(documents)
    if scenario.slices == "document":
        scores = data.store.document_means(data.column)[documents]
    else:
        scores = data.store.scores(data.column)[data.store.document_offsets[documents] + scenario.sentences]
    worst = set(np.argsort(-scores, kind="stable")[: math.ceil(len(documents) / 10)].tolist())
    return [WORST_TENTH if place in worst else REST for place in range(len(documents))]


def _choose(number: int, scenario: Scenario) -> list[int]:
    if scenario.max_prompts is None or scenario.max_prompts >= number:
        return list(range(number))
    order = np.random.default_rng(scenario.seed).permutation(number)
    return sorted(order[: scenario.max_prompts].tolist())


def _text(record: Record, field: str | None) -> str:
    found = (_value(record.values, name) for name in (_FIELDS if field is None else (field,)))
    text = next((each for each in found if isinstance(each, str)), None)
    if text is None:
        raise UserError(f"{record.where}: no text in {_named(field)}. Name its field with `field`.")
    if not text:
        raise UserError(f"{record.where}: the prompt is empty. Remove it; `prompts: none` samples without a prompt.")
    return text


def _value(record: dict[str, Any], name: str) -> Any:
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _named(field: str | None) -> str:
    return f"{field!r}" if field is not None else ", ".join(f"{each!r}" for each in _FIELDS)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
