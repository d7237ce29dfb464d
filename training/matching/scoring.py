"""Score samples in the columns of the constraints."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scorers.contract import DocumentKind, Scorer, ScoringError
from scorers.sentences import document
from training.data.tokenizers import Tokenizer
from training.matching.constraints import Constraint, Floats, SampleScores, feature_matrix
from training.matching.drawing import Drawn
from training.scoring import judged_text


@dataclass(frozen=True)
class Judges:
    """The scorers of the constraints' columns.

    Attributes:
        constraints: the constraints.
        scorers: by column.
        tokenizer: of the run.
        kind: of the training documents.
    """

    constraints: tuple[Constraint, ...]
    scorers: Mapping[str, Scorer]
    tokenizer: Tokenizer
    kind: DocumentKind

    def features(self, drawn: Drawn) -> Floats:
        """Return the features of samples, float64 [n, k]; only what follows the context is scored."""
        texts = [
            self.tokenizer.decode_continuation(context.text_ids, ids)
            if context.text_ids
            else self.tokenizer.decode(ids)
            for context, ids in zip(drawn.contexts, drawn.ids, strict=True)
        ]
        judged = [judged_text(text, self.kind, ended=ended) for text, ended in zip(texts, drawn.ended, strict=True)]
        scores = {name: score_sentences(judged, scorer, self.kind) for name, scorer in self.scorers.items()}
        return feature_matrix(self.constraints, scores)


def score_sentences(texts: Sequence[str], scorer: Scorer, kind: DocumentKind) -> SampleScores:
    """Split texts as the corpus was split, and return their scores by sentence: the worst and the mean.

    Args:
        texts: what is judged of each sample; an empty one has no sentence, and scores 0.
        scorer: of the column.
        kind: of the training documents.
    """
    documents = [document(text, kind) for text in texts]
    wanted = [index for index, each in enumerate(documents) if len(each.ends) and scorer.applies(each)]
    found = dict(zip(wanted, scorer.score([documents[index] for index in wanted]), strict=True))

    def of(index: int, value: Callable[[Floats], float]) -> float:
        result = found.get(index)
        if result is None:
            return np.nan if len(documents[index].ends) else 0.0
        if isinstance(result, ScoringError) or len(result) != len(documents[index].ends):
            return np.nan
        scores = np.asarray(result, dtype=np.float64)
        return value(scores) if np.isfinite(scores).all() else np.nan

    worst, mean = ([of(index, value) for index in range(len(texts))] for value in (np.max, np.mean))
    return SampleScores(np.array(worst), np.array(mean))
