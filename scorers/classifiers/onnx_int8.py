"""Run a sentence classifier in 8-bit integers with ONNX Runtime: about twice as fast on CPUs, with other scores.

Weights are quantised per channel when the model is exported; activations are quantised for each input by its range. In
a batch the range would be that of all its sentences, and a sentence's score would depend on the others. So each
sentence is computed alone, which costs little here, because the weights are a quarter as large.
"""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorers.classifiers.encoding import Ids
from scorers.classifiers.first_token import is_plain_encoder, keep_first_token_only
from scorers.contract import Execution
from scorers.errors import UserError
from scorers.fingerprint import library_versions
from scorers.requirements import require

# What an exported model depends on besides its weights; another version of one causes a new export.
LIBRARIES = ("onnx", "onnxruntime")

_REVISION = 1
_OPSET = 17
# Largest difference between the logits of the exported model, before it is quantised, and those of the model itself.
_TOLERANCE = 1e-2


class OnnxInt8:
    """Scores sequences of token ids as `Network` does.

    Args:
        model: the classifier of transformers, in float32. The export changes it in place.
        score: from logits [rows, labels], a tensor in float32, to scores [rows].
        execution: threads.
        content: sha256 by name of everything the model consists of; it names the exported model in the cache.

    Raises:
        UserError: the device is not the CPU, a package is missing, or the model cannot be exported.
    """

    def __init__(
        self, model: Any, score: Callable[[Any], Any], execution: Execution, content: Mapping[str, str]
    ) -> None:
        if execution.device != "cpu":
            raise UserError(f"engine=onnx-int8 is for CPUs, but the device is {execution.device}: use engine=torch.")
        require_packages()
        self._score = score
        self.precision = "int8"
        path = cache_folder() / f"{_key(content)}.onnx"
        if not path.is_file():
            _export(model, path)
        self._session = _session(path, execution.threads)

    def scores(self, sequences: Sequence[Ids], check: Callable[[], None] = lambda: None) -> NDArray[np.float32]:
        """Return the score of each sequence, float32 [n_sequences]; see `Network.scores`."""
        import torch

        found = np.zeros(len(sequences), dtype=np.float32)
        for index, each in enumerate(sequences):
            check()
            (logits,) = self._session.run(None, {"ids": each[None].astype(np.int64)})
            found[index] = float(self._score(torch.from_numpy(logits))[0])
        return found


def require_packages() -> None:
    """Raise `UserError` if ONNX Runtime is not installed."""
    require("onnx-int8", *LIBRARIES, install="'phf[onnx]'")


def cache_folder() -> Path:
    """Return the cache of exported models: `phf/onnx-int8` in XDG_CACHE_HOME, by default ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "phf" / "onnx-int8"


def _key(content: Mapping[str, str]) -> str:
    facts = [_REVISION, dict(content), library_versions(*LIBRARIES, "torch", "transformers")]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Spinning threads would take cores from the other workers.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _export(model: Any, path: Path) -> None:
    """Export, check and quantise a model; `path` appears atomically, even if another process exports it too."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        plain, quantised = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        try:
            with _quiet():
                _export_plain(model, plain)
                quantize_dynamic(
                    plain,
                    quantised,
                    op_types_to_quantize=["MatMul", "Gemm"],
                    per_channel=True,
                    weight_type=QuantType.QInt8,
                )
        except UserError:
            raise
        except Exception as error:  # the exporter may raise anything
            raise UserError(
                f"The model ({model.config.model_type}) cannot be exported to ONNX: {type(error).__name__}: {error}. "
                "Use engine=torch."
            ) from error
        quantised.replace(path)


def _export_plain(model: Any, path: Path) -> None:
    import torch

    if is_plain_encoder(model):
        keep_first_token_only(model)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            # The exporter keeps the module's mode, and a new module is in training mode, with dropout.
            self.eval()

        def forward(self, ids: Any) -> Any:
            return self.model(input_ids=ids).logits

    logits = Logits()
    with torch.inference_mode():
        torch.onnx.export(
            logits,
            (_example(model, 9),),
            str(path),
            input_names=["ids"],
            output_names=["logits"],
            dynamic_axes={"ids": {1: "length"}},
            opset_version=_OPSET,
            dynamo=False,
        )
        session = _session(path, 1)
        for length in (3, 40):
            ids = _example(model, length)
            off = float(np.abs(session.run(None, {"ids": ids.numpy()})[0] - logits(ids).numpy()).max())
            if not off < _TOLERANCE:
                raise UserError(
                    f"The model ({model.config.model_type}) gives other outputs once it is exported to ONNX "
                    f"(off by {off:.2g}): use engine=torch."
                )


def _example(model: Any, length: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(length)
    lowest = min(model.config.pad_token_id + 1, model.config.vocab_size - 1)
    return torch.randint(lowest, model.config.vocab_size, (1, length), generator=generator)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings about tracing, and the quantiser's messages on the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
