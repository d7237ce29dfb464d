"""Which tokens are parts of one word, so that a word is credited as a whole."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.tokenizers import Tokenizer


class Words:
    """Finds tokens that continue a word of ASCII letters and digits, by the names of a tokenizer's tokens.

    Words of other letters are not joined: byte-level tokenizers do not show where those end.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        names = [str(each) for each in tokenizer.fast.convert_ids_to_tokens(list(range(tokenizer.base_size)))]
        names = [name.removeprefix("##") for name in names]
        self._begins = np.array([bool(name) and _is_letter(name[0]) for name in names])
        self._ends = np.array([bool(name) and _is_letter(name[-1]) for name in names])

    def continues(self, tokens: NDArray[Any], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether each token continues the word of the token before it, in the same sentence.

        Args:
            tokens: ids [tokens] of sentences, concatenated.
            lengths: [sentences], tokens of each, at least 1.
        """
        found = np.zeros(len(tokens), dtype=np.bool_)
        found[1:] = self._begins[tokens[1:]] & self._ends[tokens[:-1]]
        found[np.cumsum(lengths)[:-1]] = False
        return found


def highest_of_words(values: NDArray[np.float32], continues: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Give all tokens of a word the highest of their values, [tokens]."""
    if not len(values):
        return values
    begins = np.flatnonzero(~continues)
    highest = np.maximum.reduceat(values, begins)
    return np.repeat(highest, np.diff(begins, append=len(values)))


def _is_letter(character: str) -> bool:
    return character.isascii() and character.isalnum()
