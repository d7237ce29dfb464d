"""The scorer `detoxify` against Detoxify's own `predict` on batches of 512 sentences in corpus order.

RoBERTa's base width with random weights, float32, one batch of the reference, CPU time of one thread each. The repeated
rounds use two layers; PHF_BENCH_FULL=1 adds the true twelve, once, since the reference then takes minutes.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorers.classifiers.batches import CPU_SLACK, CPU_TOKENS, GPU_LENGTHS, Shapes, plan
from scorers.contract import Document, Execution, ScoringError
from scorers.registry import ScorerSpec, build
from scorers.sentences import document
from tests.benchmarks.measure import Comparison
from tests.benchmarks.references import toxicity as reference
from tests.benchmarks.text import prose

FULL_VARIABLE = "PHF_BENCH_FULL"
_THREADS = 1


def run() -> Iterator[Comparison]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(_THREADS)
    texts = prose()
    sentences = first_sentences(texts, reference.BATCH)
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield _compared(2, Path(folder) / "2", texts, sentences, rounds=3)
            if os.environ.get(FULL_VARIABLE):
                yield _compared(12, Path(folder) / "12", texts, sentences, rounds=1)
    finally:
        torch.set_num_threads(before)


def first_sentences(texts: list[str], count: int) -> list[str]:
    """The first `count` sentences of a corpus, in its order."""
    found: list[str] = []
    for text in texts:
        found += document(text).sentences()
        if len(found) >= count:
            break
    return found[:count]


def _compared(layers: int, folder: Path, texts: list[str], sentences: list[str], rounds: int) -> Comparison:
    checkpoint = reference.make_checkpoint(folder, texts, layers=layers)
    model = reference.load(checkpoint)
    spec = ScorerSpec(kind="detoxify", model=str(checkpoint), config=str(folder), long="truncate")
    scorer = build("toxicity", spec, Execution(threads=_THREADS))
    given = Document("".join(sentences), np.cumsum([len(each) for each in sentences]).astype(np.int32))
    last: dict[str, NDArray[np.float32]] = {}

    def ours() -> None:
        (found,) = scorer.score([given])
        assert not isinstance(found, ScoringError), found
        last["ours"] = found

    def theirs() -> None:
        last["theirs"] = reference.scores(model, sentences)

    name = f"toxicity, {layers} layers, batch {reference.BATCH}"
    ours()
    rates = [[len(sentences) / _cpu_seconds(work) for work in (ours, theirs)] for _ in range(rounds)]
    result = Comparison(name, "sentences/s", *zip(*rates, strict=True))
    return replace(result, agreement=_agreement(model, sentences, last, result))


def _agreement(model: Any, sentences: list[str], last: dict[str, NDArray[np.float32]], result: Comparison) -> str:
    tokens, padded = reference.padded_tokens(model, sentences)
    lengths = [len(ids) for ids in model.tokenizer(sorted(set(sentences)), truncation=True)["input_ids"]]
    computed, static = (
        sum(batch.tokens for batch in plan(lengths, shapes)) / sum(lengths)
        for shapes in (Shapes(CPU_TOKENS, CPU_SLACK), Shapes(16_384, lengths=GPU_LENGTHS))
    )
    difference = float(np.abs(last["ours"] - last["theirs"]).max())
    rates = [rate * tokens / len(sentences) for rate in (result.ours, result.reference)]
    return (
        f"max difference {difference:.1e}, scores {last['theirs'].min():.2g} to {last['theirs'].max():.2g}; "
        f"{rates[0]:,.0f} and {rates[1]:,.0f} tokens/s; positions a token {computed:.2f} and {padded / tokens:.2f} "
        f"({static:.2f} in a GPU's shapes)"
    )


def _cpu_seconds(work: Callable[[], object]) -> float:
    # CPU time of one thread, which other work on the machine affects least.
    start = time.process_time()
    work()
    return time.process_time() - start
