"""Texts with their classes, from a file, divided into those to learn from and those to test on."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.dataset.derived import digest
from scorers.amounts import format_count
from scorers.errors import UserError
from scorers.records import Record, read_records
from training.measuring_config import ClassificationConfig

_MOST_TEXTS = 1_000_000
_MOST_CLASSES = 1000


@dataclass(frozen=True)
class LabelledText:
    """A text and the number of its class."""

    text: str
    label: int


@dataclass(frozen=True)
class LabelledTexts:
    """Texts of a file.

    Attributes:
        name: of the file, without its suffix.
        classes: names of the classes, sorted.
        train, test: the texts of each side; every class of the test is among the others.
        fingerprint: of all of it.
    """

    name: str
    classes: tuple[str, ...]
    train: tuple[LabelledText, ...]
    test: tuple[LabelledText, ...]
    fingerprint: str

    @property
    def majority(self) -> float:
        """Share of the test texts that have the most frequent class of the others."""
        counts = Counter(each.label for each in self.train)
        guess = min(counts, key=lambda label: (-counts[label], label))
        return sum(each.label == guess for each in self.test) / len(self.test)


def read_labelled_texts(path: str, test_path: str | None, config: ClassificationConfig) -> LabelledTexts:
    """Read texts and divide them.

    Args:
        path: JSON Lines, CSV or Parquet.
        test_path: a file of the same kind with the texts to test on; None takes a share of those of `path`, by the
            hash of each text.
        config: names of the fields, and the share.

    Raises:
        UserError: a file cannot be read, a record is wrong, there are fewer than two classes, or a class of the test
            is not among the other texts; names the file and the record.
    """
    read = _read(path, config)
    if test_path is not None:
        train, test = read, _read(test_path, config)
        both = {text for text, _ in train} & {text for text, _ in test}
        if both:
            raise UserError(
                f"Labels {test_path}: {format_count(len(both), 'text')} of it also stand in {path}. A test on known "
                "texts shows nothing: remove them from one of the files."
            )
    else:
        sides: tuple[list[tuple[str, str]], list[tuple[str, str]]] = ([], [])
        for text, label in read:
            sides[_is_for_test(text, config)].append((text, label))
        train, test = sides
    classes = sorted({label for _, label in train})
    if len(classes) < 2 or not test:
        raise UserError(
            f"Labels {path}: {format_count(len(train), 'text')} to learn from, of {_classes(classes)}, and "
            f"{format_count(len(test), 'text')} to test on. Give texts of at least two classes for both."
        )
    if len(classes) > _MOST_CLASSES:
        raise UserError(f"Labels {path}: {len(classes):,} classes; at most {_MOST_CLASSES:,} can be learnt.")
    unknown = {label for _, label in test} - set(classes)
    if unknown:
        raise UserError(
            f"Labels {test_path or path}: {_classes(unknown)} of the texts to test on "
            f"{'is' if len(unknown) == 1 else 'are'} not among those to learn from. Give more texts of each class"
            + (" there." if test_path else ", or another seed or test_share.")
        )
    numbers = {label: number for number, label in enumerate(classes)}
    return LabelledTexts(
        Path(path).stem,
        tuple(classes),
        train=tuple(LabelledText(text, numbers[label]) for text, label in train),
        test=tuple(LabelledText(text, numbers[label]) for text, label in test),
        fingerprint=digest([train, test]),
    )


def _read(path: str, config: ClassificationConfig) -> list[tuple[str, str]]:
    fields = (config.text_field, config.label_field)
    return [_pair(record, fields) for record in read_records(path, "Labels", fields, texts=fields, most=_MOST_TEXTS)]


def _pair(record: Record, fields: Sequence[str]) -> tuple[str, str]:
    text, label = (record.values.get(field) for field in fields)
    if not isinstance(text, str) or not text.strip():
        raise UserError(
            f"{record.where}: no text in the field {fields[0]!r}. Add one, or name another field with --text-field."
        )
    return text, _label(label, record.where, fields[1])


def _label(value: Any, where: str, field: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, str) and value.strip()):
        return str(value).strip()
    raise UserError(
        f"{where}: the field {field!r} is not a class. Give a text or a whole number, or name another field with "
        "--label-field."
    )


def _is_for_test(text: str, config: ClassificationConfig) -> bool:
    hashed = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, salt=b"%d" % (config.seed % 10**9))
    return int.from_bytes(hashed.digest()) < config.test_share * 2**64


def _classes(labels: Sequence[str] | set[str]) -> str:
    return f"{len(labels)} class" if len(labels) == 1 else f"{len(labels):,} classes"
