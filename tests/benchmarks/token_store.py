"""Build a token store, against the tokenizer library's own batch call on the same sentences."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.measure import Comparison, compare


def run() -> Iterator[Comparison]:
    import shutil

    from infra.demo.corpus import sample_code
    from pipeline.dataset import open_dataset
    from tests.datasets import make_dataset
    from training.data.build_store import ensure_store
    from training.data.tokenizers import ensure_tokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sample_code(folder / "code", 3_000_000, seed=1)
        texts = [path.read_text(encoding="utf-8") for path in sorted((folder / "code").rglob("*.py"))]
        path = make_dataset(folder / "dataset", [(text, "python") for text in texts], {"pep8": lambda sentence: 0.0})
        dataset = open_dataset(str(path))
        tokenizer = ensure_tokenizer(dataset, 8192)
        sentences = [line for text in texts for line in text.splitlines(keepends=True)]
        backend = tokenizer.fast.backend_tokenizer
        tokens = sum(len(each) for each in backend.encode_batch(sentences, add_special_tokens=False))

        def ours() -> None:
            shutil.rmtree(folder / "store", ignore_errors=True)
            ensure_store(dataset, tokenizer, folder / "store")

        def bare() -> None:
            backend.encode_batch(sentences, add_special_tokens=False)

        yield compare("token store, against encode_batch", "tokens/s", tokens, ours, bare)
