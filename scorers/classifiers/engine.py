"""The engines that run a classifier: torch on a CPU or a GPU, or ONNX Runtime in 8-bit integers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from scorers.classifiers import onnx_int8
from scorers.classifiers.encoding import Ids
from scorers.classifiers.network import Network
from scorers.contract import Execution
from scorers.fingerprint import library_versions

Engine = Literal["torch", "onnx-int8"]


class SequenceScorer(Protocol):
    """A classifier that scores sequences; `precision` is the dtype it computes in. See `Network`."""

    precision: str

    def scores(self, sequences: Sequence[Ids], check: Callable[[], None] = ...) -> NDArray[np.float32]:
        """Return the score of each sequence, float32 [n_sequences]."""
        ...


def check_engine(engine: Engine) -> None:
    """Raise `UserError` if a package that the engine needs is not installed."""
    if engine == "onnx-int8":
        onnx_int8.require_packages()


def libraries(engine: Engine, *more: str) -> dict[str, str]:
    """Return the versions of the libraries that scores depend on, without build tags such as "+cpu"."""
    names = ["transformers", "tokenizers", "torch", *more, *(onnx_int8.LIBRARIES if engine == "onnx-int8" else ())]
    return {name: version.partition("+")[0] for name, version in library_versions(*names).items()}


def build_engine(
    engine: Engine, model: Any, score: Callable[[Any], Any], execution: Execution, content: Mapping[str, str]
) -> SequenceScorer:
    """Prepare a classifier to score; see `Network` and `OnnxInt8` for the arguments and errors."""
    if engine == "onnx-int8":
        return onnx_int8.OnnxInt8(model, score, execution, content)
    return Network(model, score, execution)
