"""Decode spaCy's entity recogniser for all texts of a batch at once.

spaCy reads a text word by word: at each word a small network scores every move (begin an entity, continue it, end it,
an entity of one word, none), and the best permitted move is taken. Its compiled loop handles one text at a time and
takes Python's lock for every word, which costs more than the network. Here all texts take each step together, with the
same weights and additions in the same order; only the matrix products have other shapes, as in any other batch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Entity = tuple[int, int, str]

# The network's inputs: the word, the first word of the open entity, and the previous word.
_FEATURES = 3

_NOTHING_OPEN = -1


class BatchDecoder:
    """Decodes with the weights of a trained `spacy.pipeline.EntityRecognizer`.

    Raises:
        ValueError: the component is not built like those of spaCy's English pipelines.
    """

    def __init__(self, component: Any) -> None:
        model = component.model
        if (
            component.cfg.get("beam_width") != 1
            or model.name != "parser_model"
            or not model.attrs.get("has_upper")
            or model.attrs.get("unseen_classes")
            or model.get_ref("lower").get_dim("nF") != _FEATURES
            or model.get_ref("lower").get_dim("nP") < 2
        ):
            raise ValueError("the recogniser is not built like those of spaCy's English pipelines")
        self._embed: Any = model.get_ref("tok2vec")
        self._lower: Any = model.get_ref("lower")
        upper = model.get_ref("upper")
        self._bias: NDArray[np.float32] = self._lower.get_param("b")
        self._weights: NDArray[np.float32] = upper.get_param("W").T.copy()
        self._scores_bias: NDArray[np.float32] = upper.get_param("b")
        names = [component.moves.get_class_name(index) for index in range(component.moves.n_moves)]
        moves = [name.partition("-") for name in names]
        self._labels = sorted({label for _, _, label in moves if label})
        # For each move its label, if any, and its action.
        self._label = np.array([self._labels.index(each) if each else _NOTHING_OPEN for _, _, each in moves])
        self._action = np.array([action for action, _, _ in moves])
        self._permitted = self._rules()

    def entities(self, documents: Sequence[Any]) -> list[list[Entity]]:
        """Return for each tokenised text its entities in order: first token, one past the last, label."""
        lengths = np.array([len(each) for each in documents])
        found: list[list[Entity]] = [[] for _ in documents]
        if not lengths.sum():
            return found
        # Row 0 of the features means "no such word".
        features = self._lower.predict(self._embed.predict(documents))
        spaces = np.concatenate([[token.is_space for token in each] for each in documents])
        order = np.argsort(-lengths, kind="stable")
        firsts = (np.cumsum(lengths) - lengths)[order]
        lengths = lengths[order]
        start = np.full(len(documents), _NOTHING_OPEN)
        label = np.full(len(documents), _NOTHING_OPEN)
        for step in range(lengths[0]):
            # Texts are sorted by length, longest first, so those that still have words come first.
            active = int(np.searchsorted(-lengths, -step))
            opened = start[:active] != _NOTHING_OPEN
            words = firsts[:active] + step
            rows = words + 1
            hidden = features[rows, 0]
            hidden += features[np.where(opened, firsts[:active] + start[:active] + 1, 0), 1]
            hidden += features[np.where(opened, rows - 1, 0), 2]
            hidden += self._bias
            scores = hidden.max(axis=-1) @ self._weights + self._scores_bias
            last = lengths[:active] == step + 1
            rule = np.where(opened, 3 + 2 * label[:active] + last, np.where(spaces[words], 2, last))
            move = np.where(self._permitted[rule], scores, -np.inf).argmax(axis=1)
            action = self._action[move]
            for index in np.flatnonzero((action == "L") | (action == "U")):
                first = int(start[index]) if opened[index] else step
                found[order[index]].append((first, step + 1, self._labels[self._label[move[index]]]))
            begins, goes_on = action == "B", action == "I"
            label[:active] = np.where(begins, self._label[move], np.where(goes_on, label[:active], _NOTHING_OPEN))
            start[:active] = np.where(begins, step, np.where(goes_on, start[:active], _NOTHING_OPEN))
        return found

    def _rules(self) -> NDArray[np.bool_]:
        """Return the permitted moves, [rule, move], as `is_valid` in spaCy's `ner.pyx` without preset entities.

        Rules 0 to 2 hold with no open entity: at a word, at the last word, at white space. Then for each label two hold
        while its entity is open: at a word, at the last word.
        """
        action, label = self._action, self._label
        named = label != _NOTHING_OPEN
        outside = action == "O"
        alone = (action == "U") & named
        rules = [((action == "B") & named) | alone | outside, alone | outside, outside]
        for index in range(len(self._labels)):
            ends = (action == "L") & (label == index)
            rules += [ends | ((action == "I") & (label == index)), ends]
        return np.array(rules)
