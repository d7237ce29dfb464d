"""Of several candidates for a text keep the best-scored one that is close enough to the original.

This is the choice of refinements in imitation learning from language feedback (arXiv 2303.16755), offline.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pipeline.config import LabelConfig, given_fields, language_fields
from pipeline.corpus.compression import TRUNCATED, UNREADABLE
from pipeline.corpus.fields import check_fields, settle_sentences
from pipeline.corpus.inputs import find_inputs
from pipeline.corpus.readers import read_sources
from pipeline.corpus.records import Quarantined, Record
from pipeline.dataset.manifest import LeftOut
from pipeline.labelling.chrf import chrf
from pipeline.labelling.resolve import resolve_config
from pipeline.labelling.workers.label_records import Scored, label_records
from pipeline.quarantine_limit import QuarantineLimit
from pipeline.storage.new_files import COMPRESSIONS, refuse_existing, staged, suffix_of, write_lines
from pipeline.storage.open import open_storage
from scorers.contract import Scorer
from scorers.errors import UserError
from scorers.registry import build

NO_GROUP, NOT_A_GROUP = "no-group", "group-not-a-name"
NO_ORIGINAL, OTHER_ORIGINAL = "no-original", "other-original"
NOT_APPLICABLE, EMPTY, LONE_SURROGATE = "not-applicable", "empty", "lone-surrogate"
_BATCH_RECORDS, _BATCH_CHARACTERS = 256, 1 << 22
_MOST_LISTED = 20

Name = str | int | float
Means = dict[str, float]


@dataclass(frozen=True)
class Rule:
    """What is chosen, and where the candidates say what they belong to.

    Attributes:
        group: field with the name of a candidate's group.
        original: field with the text that was rewritten; None if there is none to compare with.
        min_similarity: least chrF against the original, in [0, 1].
        keep_original: whether a group without an acceptable candidate keeps its original.
    """

    group: str
    original: str | None = None
    min_similarity: float = 0.5
    keep_original: bool = False


@dataclass(slots=True)
class _Choice:
    text: str
    scores: Means
    similarity: float | None = None

    def precedes(self, other: "_Choice | None") -> bool:
        if other is None:
            return True
        return self._key() < other._key()

    def _key(self) -> tuple[float, float]:
        return sum(self.scores.values()), -(self.similarity or 0.0)


@dataclass(slots=True)
class _Group:
    name: Name
    original: _Choice | None = None
    unscored: bool = False  # its original cannot be scored
    candidates: int = 0
    best: _Choice | None = None


@dataclass
class Selected:
    """What was read and chosen.

    Attributes:
        records: candidates that were read, with those in quarantine.
        too_far: candidates that were scored and are not similar enough.
        reasons: how many entries are in quarantine, by reason; an original that cannot be scored counts once.
        quarantined: the first of them.
        left_out: files among the inputs that are not read.
    """

    keep_original: bool
    records: int = 0
    too_far: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    quarantined: list[Quarantined] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    groups: dict[Name, _Group] = field(default_factory=dict)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One record for each group that has a text, in the order in which the groups appear."""
        for each in self.groups.values():
            chosen = each.best or (each.original if self.keep_original and not each.unscored else None)
            if chosen is None:
                continue
            row: dict[str, Any] = {
                "group": each.name,
                "text": chosen.text,
                "chosen": "original" if chosen is each.original else "candidate",
                "candidates": each.candidates,
                "scores": chosen.scores,
            }
            if each.original is not None:
                row |= {"original_scores": each.original.scores, "similarity": chosen.similarity}
            yield row

    def to_dict(self) -> dict[str, Any]:
        """Figures as plain JSON values, without any text."""
        chosen = [each for each in self.groups.values() if each.best is not None]
        written = sum(1 for _ in self.rows())
        means: dict[str, dict[str, float]] = {"chosen": _mean([each.best.scores for each in chosen if each.best])}
        if any(each.original for each in chosen):
            means["original"] = _mean([each.original.scores for each in chosen if each.original])
        return {
            "records": self.records,
            "groups": len(self.groups),
            "chosen": len(chosen),
            "kept_original": written - len(chosen),
            "left_out_groups": len(self.groups) - written,
            "too_far": self.too_far,
            "quarantined": dict(sorted(self.reasons.items())),
            "mean_scores": means,
            "left_out": [each.model_dump() for each in self.left_out],
        }

    def exceeds(self, limit: QuarantineLimit) -> bool:
        """Whether more is in quarantine than the limit allows; a share excuses no input that was not read whole."""
        cut = self.reasons[TRUNCATED] + self.reasons[UNREADABLE]
        return limit.exceeded(self.reasons.total(), self.records, lost=cut)

    def quarantine(self, entry: Quarantined) -> None:
        """Count a candidate, or an original, that cannot be scored or compared, or the unread rest of an input."""
        self.reasons[entry.reason] += 1
        if len(self.quarantined) < _MOST_LISTED:
            self.quarantined.append(entry)


def select(config: LabelConfig, rule: Rule, output: str) -> Selected:
    """Choose a candidate of each group, and write the choices as JSON lines in the order of the groups.

    A candidate's score is the mean over its sentences, summed over the columns; the lowest is chosen, of equal ones the
    most similar, then the first. Texts are scored in this process. The texts of the originals and of the best
    candidates so far are held in memory.

    Args:
        config: inputs and scorers; its output is not used.
        rule: what is chosen.
        output: a file .jsonl, .jsonl.gz or .jsonl.zst, local or on an object store, which must not exist. It appears
            complete or not at all.

    Raises:
        UserError: invalid inputs, fields, settings or scorers, as in `phf label`, or an output that cannot be written.
        OSError: a disk or network failed.
    """
    last = output.rstrip("/").rpartition("/")[2]
    suffix = suffix_of(last, COMPRESSIONS)
    if not suffix:
        raise UserError(f"{output}: give the output a suffix of {', '.join(COMPRESSIONS)}.")
    storage = open_storage(output.rstrip("/").removesuffix(last) or ".")
    storage.check()
    refuse_existing(storage, last, output)
    selected = _choose(config, rule)
    with staged(storage) as stage:
        write_lines(stage(last), selected.rows(), COMPRESSIONS[suffix])
        refuse_existing(storage, last, output)
    return selected


def _choose(config: LabelConfig, rule: Rule) -> Selected:
    fields = {"--group": rule.group, **({} if rule.original is None else {"--original": rule.original})}
    for column in language_fields(config):
        raise UserError(f"scorers.{column}.languages: phf select scores every candidate; leave the languages out.")
    config = resolve_config(config.model_copy(update={"meta_fields": list(dict.fromkeys(fields.values()))}))
    found = find_inputs(config.inputs, config.kind)
    config = settle_sentences(found.sources, config)
    check_fields(found.sources, config, fields)
    scorers = {column: build(column, spec, config.execution.of(column)) for column, spec in config.scorers.items()}
    chooser = _Chooser(config, rule, scorers)
    for batch in _batches(read_sources(found.sources, config)):
        chooser.take(batch)
    chooser.selected.left_out = found.left_out
    return chooser.selected


class _Chooser:
    def __init__(self, config: LabelConfig, rule: Rule, scorers: Mapping[str, Scorer]) -> None:
        self._config, self._rule, self._scorers = config, rule, scorers
        # A field of a candidate says nothing about its original.
        self._of_originals = {column: each for column, each in scorers.items() if column not in given_fields(config)}
        self.selected = Selected(rule.keep_original)

    def take(self, batch: Sequence[Record | Quarantined]) -> None:
        """Score candidates, and the originals of new groups, and keep what is best so far."""
        originals: list[tuple[Record, _Group]] = []
        candidates: list[tuple[Record, _Group]] = []
        for each in batch:
            self.selected.records += 1
            if isinstance(each, Quarantined):
                self.selected.quarantine(each)
                continue
            group = self._group_of(each)
            if group is None:
                continue
            if group.original is not None and group.candidates == 1:
                originals.append((replace(each, text=group.original.text, ends=None, given=None), group))
            candidates.append((each, group))
        for group, scored in self._scored(originals, self._of_originals):
            if group.original is not None:
                group.original.scores, group.unscored = scored.scores, False
        for group, found in self._scored([each for each in candidates if not each[1].unscored], self._scorers):
            if group.original is not None:
                found.similarity = chrf(found.text, group.original.text)
                if found.similarity < self._rule.min_similarity:
                    self.selected.too_far += 1
                    continue
            if found.precedes(group.best):
                group.best = found

    def _group_of(self, record: Record) -> _Group | None:
        fields = json.loads(record.meta)
        name = fields.get(self._rule.group)
        text = fields.get(self._rule.original) if self._rule.original is not None else None
        if isinstance(text, list) and all(isinstance(each, str) for each in text):
            text = "".join(text)
        if (problem := self._problem(name, text)) is not None:
            self._refuse(record, *problem)
            return None
        group = self.selected.groups.get(name)
        if group is None:
            original = None if text is None else _Choice(text, {}, 1.0)
            group = self.selected.groups[name] = _Group(name, original, unscored=original is not None)
        group.candidates += 1
        return group

    def _problem(self, name: Any, text: Any) -> tuple[str, str] | None:
        """Why a candidate cannot be compared with others: a reason and a detail; None if it can."""
        if name is None:
            return NO_GROUP, f"the field {self._rule.group!r} is missing or null"
        if isinstance(name, bool | list | dict):
            return NOT_A_GROUP, f"the field {self._rule.group!r} is neither text nor a number"
        if self._rule.original is not None and not isinstance(text, str):
            return NO_ORIGINAL, f"the field {self._rule.original!r} holds no text"
        if not _encodable(name) or not _encodable(text):
            return LONE_SURROGATE, "in the group or the original"
        known = self.selected.groups.get(name)
        if known is not None and known.original is not None and known.original.text != text:
            return OTHER_ORIGINAL, "its group has another original"
        return None

    def _scored(
        self, texts: Sequence[tuple[Record, _Group]], scorers: Mapping[str, Scorer]
    ) -> Iterator[tuple[_Group, _Choice]]:
        """Yield the texts that have a mean score in every column; the others go into quarantine."""
        groups = {(record.source, record.position): group for record, group in texts}
        labelled = label_records(
            (record for record, _ in texts),
            scorers,
            max_document_size=self._config.max_document_size,
            large_documents="quarantine",  # bounds the time and memory of a comparison
        )
        for entry in labelled.quarantined:
            self.selected.quarantine(entry)
        for each in labelled.scored:
            if not each.record.text.strip():  # nothing said, nothing wrong: it would win
                self._refuse(each.record, EMPTY, "an empty or blank text says nothing")
            elif missing := [column for column, scores in each.scores.items() if scores is None]:
                self._refuse(each.record, NOT_APPLICABLE, f"the scorer of {missing[0]!r} does not apply")
            else:
                yield groups[each.record.source, each.record.position], _Choice(each.record.text, _means(each))

    def _refuse(self, record: Record, reason: str, detail: str) -> None:
        self.selected.quarantine(Quarantined(record.source, record.position, reason, detail))


def _batches(items: Iterable[Record | Quarantined]) -> Iterator[list[Record | Quarantined]]:
    batch: list[Record | Quarantined] = []
    size = 0
    for each in items:
        batch.append(each)
        size += len(each.text) + len(each.meta) if isinstance(each, Record) else 0
        if len(batch) == _BATCH_RECORDS or size > _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    yield batch


def _means(scored: Scored) -> Means:
    return {
        column: float(np.mean(scores, dtype=np.float64))
        for column, scores in scored.scores.items()
        if scores is not None
    }


def _mean(scores: Sequence[Means]) -> Means:
    return {column: float(np.mean([each[column] for each in scores])) for column in (scores[0] if scores else ())}


def _encodable(value: Name | None) -> bool:
    if not isinstance(value, str):
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
