"""`phf credit`: learn a network, divide the scores of a dataset among tokens, and measure what was learnt."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as save_tensors
from scipy.stats import spearmanr

from pipeline.dataset import LabelledDataset
from pipeline.dataset.derived import digest
from scorers.contract import Scorer
from scorers.errors import UserError
from scorers.fingerprint import library_versions
from training.credit.agreement import Sentence, chosen_sentences, measure_agreement
from training.credit.assign import Judged, judge, token_scores, write_token_scores
from training.credit.fit import Problem, fit
from training.credit.lists import learnable
from training.credit.network import TokenCredit
from training.credit.settings import CreditConfig
from training.credit.words import Words
from training.data.cache import build_once
from training.data.datasets import document_kind
from training.data.store import TokenStore
from training.data.stored_credit import (
    FACTS,
    TOKENS,
    WEIGHTS,
    Agreement,
    CreditFacts,
    credit_folder,
    read_credit,
)
from training.data.tokenizers import Tokenizer
from training.disk import refuse_link, write_atomically
from training.scoring import rebuild_scorer

_VERSION = 1
# Held-out sentences that figures are of, at most.
_MEASURED = 20_000
_LONGEST_COMPARED = 512  # tokens

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CreditRequest:
    """What to learn, and from what.

    Attributes:
        name: of the credit, for `data.token_scores=credit:NAME`.
        dataset: has the column.
        column: of scores.
        tokenizer: of the store.
        store: the dataset's tokens.
        config: how to learn.
        compare: how many held-out sentences to compare with what the scorer points at; 0 for none.
        device: torch device.
    """

    name: str
    dataset: LabelledDataset
    column: str
    tokenizer: Tokenizer
    store: TokenStore
    config: CreditConfig
    compare: int = 200
    device: str = "cpu"


def learn_credit(request: CreditRequest, progress: Progress) -> CreditFacts:
    """Learn a credit and store it beside the token store; one that is there already is returned.

    Args:
        request: what to learn.
        progress: called with a stage, the amount done, and the total.

    Raises:
        UserError: there is one of that name, made in another way; or the column's scores teach nothing.
    """
    store, folder = request.store, credit_folder(request.store, request.name)
    entry = request.dataset.manifest.scorers[request.column]
    settings = request.config.model_dump(mode="json")
    key = digest([_VERSION, store.meta.key, request.column, entry.fingerprint, settings])
    if folder.exists():
        return _existing(request, key)
    problem = _problem(request, key)
    refuse_link(folder.parent)
    state = folder.with_name(f".{folder.name}.state")
    refuse_link(state)

    def build(target: Path) -> None:
        state.mkdir(exist_ok=True)
        fitted = fit(problem, state, request.device, partial(progress, "learning"))
        network = fitted.network.to(torch.device(request.device))
        words = Words(request.tokenizer)
        flagged = write_token_scores(
            network, store, request.column, words, request.config, target / TOKENS, partial(progress, "tokens")
        )
        weights = save_tensors({name: each.cpu().contiguous() for name, each in network.state_dict().items()})
        (target / WEIGHTS).write_bytes(weights)
        measured = _Measured(request, problem, network, words)
        agreement, reason = measured.agreement(partial(progress, "comparing"))
        facts = CreditFacts(
            name=request.name,
            column=request.column,
            store=store.meta.key,
            scorer=entry.fingerprint,
            settings=settings,
            settings_key=key,
            fingerprint=digest([key, hashlib.sha256(weights).hexdigest()]),
            created_by=f"phf {library_versions('phf')['phf']}",
            scale=problem.scale,
            sentences_learnt=len(problem.chosen.learning),
            sentences_held_out=len(problem.chosen.held_out),
            steps=fitted.steps,
            best_step=fitted.best_step,
            loss=fitted.loss,
            rank_correlation=measured.rank_correlation(),
            top_token=measured.top_share(0.0),
            top_tenth=measured.top_share(0.1),
            flagged=flagged / max(1, store.num_tokens),
            agreement=agreement,
            not_measured=reason,
        )
        write_atomically(target / FACTS, facts.model_dump_json(indent=2) + "\n")

    build_once(folder, build)
    shutil.rmtree(state, ignore_errors=True)
    return read_credit(store, request.name)


def _existing(request: CreditRequest, key: str) -> CreditFacts:
    facts = read_credit(request.store, request.name)
    if facts.settings_key == key:
        return facts
    settings = request.config.model_dump(mode="json")
    differing = [
        f"{name} {facts.settings.get(name)!r}, now {value!r}"
        for name, value in settings.items()
        if facts.settings.get(name) != value
    ]
    if facts.column != request.column:
        differing.insert(0, f"column {facts.column!r}, now {request.column!r}")
    how = f" ({'; '.join(differing)})" if differing else ""
    raise UserError(
        f"There is a credit {request.name!r} already, made in another way{how}. Choose another --name, or delete "
        f"{credit_folder(request.store, request.name)}."
    )


def _problem(request: CreditRequest, key: str) -> Problem:
    store, column, config = request.store, request.column, request.config
    scores = store.scores(column)
    chosen = learnable(store, column, seed=config.seed, held_out=config.held_out, most=config.sentences)
    for name, part in (("to learn from", chosen.learning), ("held out", chosen.held_out)):
        own = scores[part]
        if not len(own) or not own.max() > 0 or own.min() == own.max():
            what = "has a score above 0, or all have the same" if len(own) else "has tokens and a score"
            raise UserError(
                f"Nothing can be learnt about {column!r}: of the {len(own):,} sentences {name} none {what}. Label more "
                "text, or raise held_out."
            )
    highest = float(scores[chosen.learning].max())
    return Problem(store, column, chosen, request.tokenizer.base_size, max(1.0, highest), config, key)


class _Measured:
    """Figures of a network on held-out sentences."""

    def __init__(self, request: CreditRequest, problem: Problem, network: TokenCredit, words: Words) -> None:
        self._request, self._words, self._network = request, words, network
        held_out = problem.chosen.held_out
        self._scores = problem.store.scores(problem.column)
        # Evenly over the held-out sentences, which stand in the order of the dataset.
        some = held_out[np.linspace(0, len(held_out) - 1, min(len(held_out), _MEASURED)).astype(np.int64)]
        self._sentences = some
        self._parts = [self._judge(part) for part in np.array_split(some, -(-len(some) // 1000))]

    def _judge(self, sentences: NDArray[np.int64]) -> Judged:
        return judge(self._network, self._request.store, sentences, self._request.config.aggregate)

    def rank_correlation(self) -> float | None:
        """Spearman's, between learnt and true scores."""
        true = self._scores[self._sentences]
        found = np.concatenate([part.log_odds for part in self._parts])
        if true.min() == true.max() or found.min() == found.max():
            return None
        return float(spearmanr(found, true).statistic)

    def top_share(self, share: float) -> float | None:
        """The mean share of the odds that the worst tokens of the worst tenth of the sentences have."""
        limit = np.quantile(self._scores[self._sentences], 0.9)
        found = []
        for part in self._parts:
            worst = (self._scores[part.sentences] >= limit) & (self._scores[part.sentences] > 0)
            ends = np.cumsum(part.lengths)
            for end, length in zip(ends[worst].tolist(), part.lengths[worst].tolist(), strict=True):
                own = np.sort(part.shares[end - length : end].astype(np.float64))
                found.append(own[length - max(1, int(share * length)) :].sum() / own.sum())
        return float(np.mean(found)) if found else None

    def agreement(self, progress: Callable[[int, int], None]) -> tuple[Agreement | None, str | None]:
        """The agreement with the scorer's own findings, or why there is none."""
        request = self._request
        if not request.compare:
            return None, "it was not asked for"
        kind = document_kind(request.dataset.manifest, request.column)
        scorer = self._scorer()
        if isinstance(scorer, str):
            return None, scorer
        offsets, some = request.store.sentence_offsets, self._sentences
        # Every word of a sentence is deleted once: the work grows with the square of its length.
        bad = some[(self._scores[some] > 0) & (offsets[some + 1] - offsets[some] <= _LONGEST_COMPARED)]
        # The worst sentences: in the others a scorer of probabilities points at nothing.
        worst = bad[np.argsort(-self._scores[bad], kind="stable")[: request.compare]]
        sentences = list(chosen_sentences(request.dataset, worst))
        scores = self._scores[[each.index for each in sentences]]
        return measure_agreement(sentences, scores, self._credited, scorer, request.tokenizer, kind, progress), None

    def _scorer(self) -> Scorer | str:
        entry = self._request.dataset.manifest.scorers[self._request.column]
        try:
            return rebuild_scorer(self._request.column, entry)[0]
        except UserError as error:
            return str(error)

    def _credited(self, sentence: Sentence) -> NDArray[np.bool_]:
        store, index = self._request.store, np.array([sentence.index])
        judged = self._judge(index)
        tokens = store.tokens[store.sentence_offsets[sentence.index] : store.sentence_offsets[sentence.index + 1]]
        return token_scores(judged, self._scores[index], tokens, self._words, self._request.config.cut) > 0
