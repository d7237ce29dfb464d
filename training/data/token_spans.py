"""Locate a scorer's findings token by token, and cache them beside a token store.

A labelled dataset has one score per sentence. Some scorers also know which characters they counted. If the dataset
stores these as spans, they are read. Otherwise the scorer is rebuilt from the manifest, verified by its fingerprint,
and run again on the documents with a score above 0, on all cores if there are many. That takes as long as labelling
these documents did, once per store and scorer.

Fine-grained rewards carry more information: Fine-Grained RLHF (arXiv 2306.01693).
"""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset import LabelledDataset
from pipeline.dataset.derived import digest
from pipeline.dataset.schema import spans_column
from pipeline.dataset.spans import spans_of
from scorers.contract import Document, DocumentKind, ScoringError
from scorers.doctor.machine import usable_cores
from scorers.errors import UserError
from scorers.registry import kinds_that_locate
from scorers.spans import Finding, LocatesFindings, by_sentence, overlapping
from training.data.arrays import ArrayWriter
from training.data.cache import build_once
from training.data.store import FINDINGS, FINDINGS_COUNTS, FOUND_TOKENS, TokenStore
from training.data.texts import Texts, read_texts
from training.data.tokenizers import Tokenizer
from training.scorer_pool import ScorerPool
from training.scoring import rebuild_scorer

# A process must have some seconds of work, as importing its libraries takes that long.
_SENTENCES_A_PROCESS = 1000

_VERSION = 1
# Batches of rows per process in one round.
_AT_ONCE = 4

Progress = Callable[[int, int], None]
_Result = list[Finding] | ScoringError
# From rows with a sentence above 0, of several batches, to what was found in each: their indices and documents.
_Find = Callable[[list[Texts], list[list[int]], list[list[Document]]], list[list[_Result]]]
_Located = tuple[int, str, bool, list[Finding]]


def ensure_findings(
    store: TokenStore,
    dataset: LabelledDataset,
    tokenizer: Tokenizer,
    column: str,
    kind: DocumentKind,
    progress: Progress | None = None,
) -> str:
    """Locate the findings of a column's scorer in the tokens of a store, unless they are cached.

    If nothing is found in a sentence with a score above 0 (the scorer may time out, say), all its tokens are flagged,
    and it is counted as `unlocated`.

    Args:
        store: of the dataset and the tokenizer.
        dataset: has the column.
        tokenizer: of the store.
        column: the score column.
        kind: of the documents.
        progress: called with rows done and the total.

    Returns:
        Their name in the store, for `StreamOptions.findings`.

    Raises:
        UserError: the scorer cannot be built here, differs from the one that labelled, or cannot locate its findings.
    """
    entry = dataset.manifest.scorers[column]
    name = f"{column}-{digest([_VERSION, column, entry.fingerprint])}"

    def build(folder: Path) -> None:
        search = _Search(store, dataset, tokenizer, column, kind)
        if entry.spans:

            def read(some: list[Texts], rows: list[list[int]], _: list[list[Document]]) -> list[list[_Result]]:
                every = (spans_of(dataset, each.batch, column, chosen) for each, chosen in zip(some, rows, strict=True))
                return [[found or [] for found in each] for each in every]

            search.run(folder, read, 1, progress)
            return
        scorer, _ = rebuild_scorer(column, entry)
        if not isinstance(scorer, LocatesFindings):
            raise UserError(
                f"data.token_scores: the scorer of {column!r} ({entry.kind}) cannot locate its findings in a sentence. "
                f"Of these kinds it can: {', '.join(kinds_that_locate())}. Set data.token_scores to false."
            )
        sentences = int(np.count_nonzero(store.scores(column) > 0))
        processes = max(1, min(usable_cores(), sentences // _SENTENCES_A_PROCESS))
        with ScorerPool(column, entry, scorer, processes) as pool:

            def ask(_: list[Texts], __: list[list[int]], documents: list[list[Document]]) -> list[list[_Result]]:
                every = pool.call("locate", documents)
                return [
                    [found if isinstance(found, ScoringError) else found.findings for found in each] for each in every
                ]

            search.run(folder, ask, processes, progress)

    build_once(store.path / FINDINGS / name, build)
    return name


class _Search:
    def __init__(
        self,
        store: TokenStore,
        dataset: LabelledDataset,
        tokenizer: Tokenizer,
        column: str,
        kind: DocumentKind,
    ) -> None:
        self._store, self._dataset, self._tokenizer = store, dataset, tokenizer
        self._column, self._kind = column, kind
        self._counts = {"sentences": 0, "unlocated": 0}

    def run(self, folder: Path, find: _Find, processes: int, progress: Progress | None) -> None:
        """Write the flags of all tokens and the counts of sentences; `find` can use several processes."""
        rows = sentences = 0
        with ArrayWriter(folder / FOUND_TOKENS, np.uint8) as tokens:
            stored = [spans_column(self._column)] if self._column in self._dataset.manifest.spans else []
            every = read_texts(self._dataset, [self._column, *stored])
            while some := list(islice(every, _AT_ONCE * processes)):
                chosen = [self._rows_to_search(texts) for texts in some]
                documents = [self._documents(texts, each) for texts, each in zip(some, chosen, strict=True)]
                found = find(some, chosen, documents)
                for texts, numbers, searched, results in zip(some, chosen, documents, found, strict=True):
                    located = self._locate(texts, zip(numbers, searched, results, strict=True))
                    tokens.append(self._flags(texts, located, sentences))
                    rows += len(texts)
                    sentences += int(texts.sentence_counts.sum())
                if progress is not None:
                    progress(rows, self._dataset.manifest.rows)
        (folder / FINDINGS_COUNTS).write_text(json.dumps(self._counts) + "\n", encoding="utf-8")

    def _rows_to_search(self, texts: Texts) -> list[int]:
        """Return the rows in which a sentence has a score above 0."""
        bad = texts.scores(self._column)[0] > 0
        ends = np.cumsum(texts.sentence_counts).tolist()
        return [row for row, (begin, end) in enumerate(pairwise([0, *ends])) if bad[begin:end].any()]

    def _documents(self, texts: Texts, rows: list[int]) -> list[Document]:
        text, ends = texts.batch["text"], texts.batch["ends"]
        return [Document(text[row].as_py(), np.array(ends[row].as_py(), np.int32), self._kind) for row in rows]

    def _locate(self, texts: Texts, results: Iterable[tuple[int, Document, _Result]]) -> Iterator[_Located]:
        """Yield each sentence with a score above 0: its index, its text, whether it is first, and its findings."""
        bad = texts.scores(self._column)[0] > 0
        begins = [0, *np.cumsum(texts.sentence_counts).tolist()]
        for row, document, result in results:
            found = by_sentence([] if isinstance(result, ScoringError) else result, document.ends.tolist())
            for number, text in enumerate(document.sentences()):
                sentence = begins[row] + number
                if bad[sentence]:
                    self._counts["sentences"] += 1
                    self._counts["unlocated"] += not found[number]
                    yield sentence, text, number == 0, found[number]

    def _flags(self, texts: Texts, located: Iterator[_Located], first: int) -> NDArray[np.uint8]:
        """Return uint8 [tokens of these rows], 1 where a token overlaps a finding; `first` is their first sentence."""
        offsets = self._store.sentence_offsets[first : first + int(texts.sentence_counts.sum()) + 1]
        flags = np.zeros(int(offsets[-1] - offsets[0]) if len(offsets) else 0, dtype=np.uint8)
        every = list(located)
        found = [(text, first) for _, text, first, findings in every if findings]
        firsts = np.array([first for _, first in found], dtype=np.bool_)
        spans = iter(self._tokenizer.spans([text for text, _ in found], firsts))
        for sentence, _, _, findings in every:
            part = flags[offsets[sentence] - offsets[0] : offsets[sentence + 1] - offsets[0]]
            if not findings:
                part[:] = 1
                continue
            places = next(spans)
            if len(places) != len(part):
                raise UserError(
                    f"The token store {self._store.path} was made with another tokenizer. Delete the folder."
                )
            part[:] = overlapping(places, ((each.start, each.end) for each in findings))
        return flags
