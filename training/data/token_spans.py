"""Where in its sentences a scorer found what it scored, token by token: kept beside a token store.

A labelled dataset has a score a sentence. Some scorers can say more: which characters they counted. They are asked
again, by what the manifest says of them and proved the same by their fingerprint, for the documents in which they found
anything; it takes as long as labelling these on the cores of this machine did, and is done once for a store and a
scorer.

That a reward says more the finer it is: Fine-Grained RLHF (arXiv 2306.01693).

A scorer asked where it found what it scored: in this process, or on all cores where there is much to ask.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from pipeline.dataset import LabelledDataset
from pipeline.dataset.manifest import ScorerEntry
from scorers.contract import Document, DocumentKind, Execution, ScoringError
from scorers.errors import IncompleteError, UserError
from scorers.registry import ScorerSpec, build
from scorers.spans import Finding, ShowsFindings
from training.data.arrays import ArrayWriter
from training.data.cache import build_once, digest
from training.data.store import FINDINGS, FINDINGS_COUNTS, FOUND_TOKENS, TokenStore
from training.data.texts import Texts, read_texts
from training.data.tokenizers import Tokenizer
from training.scoring import rebuild_scorer

# A process pays where it has some seconds of work: it takes as long to import its libraries.
_SENTENCES_A_PROCESS = 1000

Findings = list[list[list[Finding]] | ScoringError]


class Asking:
    """Documents to their findings; a context manager, whose processes end with it.

    Args:
        column: the score column.
        entry: what the manifest says of its scorer.
        scorer: built from that, and proved the same by its fingerprint.
        sentences: about how many there are to ask about.
    """

    def __init__(self, column: str, entry: ScorerEntry, scorer: ShowsFindings, sentences: int) -> None:
        self.processes = max(1, min(len(os.sched_getaffinity(0)), sentences // _SENTENCES_A_PROCESS))
        self._spec = (column, entry.model_dump_json())
        self._scorer = scorer
        self._parallel = Parallel(n_jobs=self.processes)

    def __enter__(self) -> "Asking":
        self._parallel.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._parallel.__exit__(*error)

    def findings(self, groups: Sequence[list[Document]]) -> list[Findings]:
        """What was found in each group of documents: a document's findings by sentence, or why there are none.

        Raises:
            IncompleteError: a process was killed.
        """
        if self.processes == 1:
            return [list(self._scorer.findings(documents)) for documents in groups]
        try:
            return list(self._parallel(delayed(_ask)(*self._spec, documents) for documents in groups))
        except BrokenProcessPool as error:
            raise IncompleteError(
                f"A process that asked the scorer {self._spec[0]!r} where it found what it scored was killed, perhaps "
                f"for its memory: {self.processes} of them run at once, one for each core that this process may use. "
                "Run the same command again, on fewer cores (taskset) or with more memory."
            ) from error


def _ask(column: str, entry: str, documents: list[Document]) -> Findings:
    return list(_scorer(column, entry).findings(documents))


# One scorer lasts a process; none are sent, as some hold models.
@lru_cache(maxsize=1)
def _scorer(column: str, entry: str) -> Any:
    known = ScorerEntry.model_validate_json(entry)
    return build(column, ScorerSpec(kind=known.kind, **known.options), Execution())


_VERSION = 1
# Batches of rows a process that are asked about together.
_AT_ONCE = 4

Progress = Callable[[int, int], None]
_Answer = list[list[Finding]] | ScoringError
_Located = tuple[int, str, bool, list[Finding]]


def ensure_findings(
    store: TokenStore,
    dataset: LabelledDataset,
    tokenizer: Tokenizer,
    column: str,
    kind: DocumentKind,
    progress: Progress | None = None,
) -> str:
    """The findings of a column's scorer in the tokens of a store, looked for where they are missing.

    A sentence with a score in which nothing is found any more (a document that now takes too long, say) is taken as
    found from end to end, and counted as `unlocated`.

    Args:
        store: of the dataset and the tokenizer.
        dataset: has the column.
        tokenizer: of the store.
        column: whose scorer is asked.
        kind: what the documents are.
        progress: called with rows done, and rows in all.

    Returns:
        Their name in the store, for `StreamOptions.findings`.

    Raises:
        UserError: the scorer cannot be built here, is another than the one that labelled, or cannot say where.
    """
    entry = dataset.manifest.scorers[column]
    name = f"{column}-{digest([_VERSION, column, entry.fingerprint])}"

    def build(folder: Path) -> None:
        scorer, _ = rebuild_scorer(column, entry)
        if not isinstance(scorer, ShowsFindings):
            raise UserError(
                f"data.token_scores: the scorer of {column!r} ({entry.kind}) cannot say where in a sentence it found "
                "what it scored. Of those that come with phf, scrubadub can. Set it to false."
            )
        to_ask = int(np.count_nonzero(store.scores(column) > 0))
        with Asking(column, entry, scorer, to_ask) as asking:
            _Search(store, dataset, tokenizer, column, kind, asking).run(folder, progress)

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
        asking: Asking,
    ) -> None:
        self._store, self._dataset, self._tokenizer = store, dataset, tokenizer
        self._column, self._kind, self._asking = column, kind, asking
        self._counts = {"sentences": 0, "unlocated": 0}

    def run(self, folder: Path, progress: Progress | None) -> None:
        """Write which tokens overlap a finding, and how many sentences have a score."""
        rows = sentences = 0
        with ArrayWriter(folder / FOUND_TOKENS, np.uint8) as tokens:
            every = read_texts(self._dataset, [self._column])
            while some := list(islice(every, _AT_ONCE * self._asking.processes)):
                chosen = [self._rows_to_ask(texts) for texts in some]
                documents = [self._documents(texts, each) for texts, each in zip(some, chosen, strict=True)]
                found = self._asking.findings(documents)
                for texts, numbers, asked, answers in zip(some, chosen, documents, found, strict=True):
                    located = self._located(texts, zip(numbers, asked, answers, strict=True))
                    tokens.append(self._flags(texts, located, sentences))
                    rows += len(texts)
                    sentences += int(texts.sentence_counts.sum())
                if progress is not None:
                    progress(rows, self._dataset.manifest.rows)
        (folder / FINDINGS_COUNTS).write_text(json.dumps(self._counts) + "\n", encoding="utf-8")

    def _rows_to_ask(self, texts: Texts) -> list[int]:
        """Those of the rows in which a sentence has a score."""
        bad = texts.scores(self._column)[0] > 0
        ends = np.cumsum(texts.sentence_counts).tolist()
        return [row for row, (begin, end) in enumerate(pairwise([0, *ends])) if bad[begin:end].any()]

    def _documents(self, texts: Texts, rows: list[int]) -> list[Document]:
        text, ends = texts.batch["text"], texts.batch["ends"]
        return [Document(text[row].as_py(), np.array(ends[row].as_py(), np.int32), self._kind) for row in rows]

    def _located(self, texts: Texts, answers: Iterable[tuple[int, Document, _Answer]]) -> Iterator[_Located]:
        """Of each sentence with a score its number among those of the rows, text, whether it is first, and findings."""
        bad = texts.scores(self._column)[0] > 0
        begins = [0, *np.cumsum(texts.sentence_counts).tolist()]
        for row, document, found in answers:
            for number, text in enumerate(document.sentences()):
                sentence = begins[row] + number
                if bad[sentence]:
                    findings = [] if isinstance(found, ScoringError) else found[number]
                    self._counts["sentences"] += 1
                    self._counts["unlocated"] += not findings
                    yield sentence, text, number == 0, findings

    def _flags(self, texts: Texts, located: Iterator[_Located], first: int) -> NDArray[np.uint8]:
        """uint8 [tokens of these rows]: 1 where a token overlaps a finding; `first` is their first sentence."""
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
                raise UserError(f"The token store {self._store.path} was made by another tokenizer. Delete the folder.")
            for index, (start, end) in enumerate(places):
                part[index] = any(start < each.end and each.start < end for each in findings)
        return flags
