"""Small real models and texts for the tests of the scorers."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from scorers.contract import Document, Scorer, ScoringError
from scorers.sentences import document

PROSE = [
    "You are wonderful. Contact Jane Doe at jane.doe@example.com or +1 201-555-0123! Is she at Microsoft?",
    "What a fucking idiot you are.",
    "",
    "   \n\n ",
    "He was born on 10-Nov-1988. My skype is lkjhgf_98 okay. It rained all day",
    "I live at 225 E. John Carpenter Freeway, Suite 1500 Irving, Texas 75062. The end.",
    "\x00 nul and 混合 ends。 ok…  Bye?! (yes)",
]

CODE = [
    '"""A module."""\n\nimport os\n\n\ndef path(name):\n    """Join."""\n    return os.path.join( "a",name)\n',
    "x=1\r\ny = 2 \r\n",
    "",
    "def broken(:\n    pass\n",
    "import logging\nlogging.custom = 1\nclass A(logging.Handler):\n\tdef emit(self, record): print(record)\n",
]

CLASSES = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
TEXTS = ["the quick brown fox jumps over the lazy dog. you are awful! I love this place, 42 times."] * 3


def scores_of(scorer: Scorer, *documents: Document) -> list[np.ndarray]:
    """Score documents that can all be scored, and check what holds for every scorer."""
    results = scorer.score(documents)
    assert len(results) == len(documents)
    for each, result in zip(documents, results, strict=True):
        assert not isinstance(result, ScoringError), result
        check_scores(result, each)
    return results


def check_scores(result: Any, each: Document) -> None:
    assert result.dtype == np.float32
    assert result.shape == (len(each.ends),)
    assert np.isfinite(result).all()
    assert (result >= 0).all()


def documents(texts: Sequence[str], kind: str) -> list[Document]:
    return [document(text, kind) for text in texts]


def tiny_folder(family: str, folder: Path) -> Path:
    """Write configuration and tokenizer of a tiny model of one of Detoxify's families."""
    import tokenizers
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    folder.mkdir(parents=True)
    if family == "bert":
        letters = "abcdefghijklmnopqrstuvwxyz0123456789.!,"
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{each}" for each in letters)]
        (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
        config = transformers.BertConfig(vocab_size=len(vocabulary), **sizes)
    elif family == "roberta":
        bpe = tokenizers.ByteLevelBPETokenizer()
        bpe.train_from_iterator(TEXTS, vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
        bpe.save_model(str(folder))
        config = transformers.RobertaConfig(vocab_size=300, max_position_embeddings=514, type_vocab_size=1, **sizes)
    else:
        albert = family == "albert"
        special = (
            ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"] if albert else ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        )
        model = tokenizers.Tokenizer(tokenizers.models.Unigram())
        model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
        trainer = tokenizers.trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>")
        model.train_from_iterator(TEXTS, trainer)
        pieces = [tuple(each) for each in json.loads(model.to_str())["model"]["vocab"]]
        names = "AlbertTokenizer" if albert else "XLMRobertaTokenizer"
        tokenizer = getattr(transformers, names)(vocab=pieces)
        tokenizer.save_pretrained(folder)
        if albert:
            config = transformers.AlbertConfig(vocab_size=len(tokenizer), embedding_size=8, **sizes)
        else:
            config = transformers.XLMRobertaConfig(
                vocab_size=len(tokenizer), max_position_embeddings=514, type_vocab_size=1, **sizes
            )
    config.save_pretrained(folder)
    return folder


NAMES = {
    "bert": ("bert-base-uncased", "BertForSequenceClassification", "BertTokenizer"),
    "roberta": ("roberta-base", "RobertaForSequenceClassification", "RobertaTokenizer"),
    "albert": ("albert-base-v2", "AlbertForSequenceClassification", "AlbertTokenizer"),
    "xlm-roberta": ("xlm-roberta-base", "XLMRobertaForSequenceClassification", "XLMRobertaTokenizer"),
}


def tiny_checkpoint(family: str, folder: Path, path: Path, *, model_type: str | None = None) -> Path:
    """Write a checkpoint in Detoxify's format, with random weights large enough for scores to differ.

    Args:
        family: a key of `NAMES`.
        folder: the result of `tiny_folder`.
        path: the file to write.
        model_type: the base model that the checkpoint names; by default the published one's name on the hub.
    """
    import torch
    import transformers

    base, model_name, tokenizer_name = NAMES[family]
    model_class = getattr(transformers, model_name)
    config = model_class.config_class.from_pretrained(folder, num_labels=len(CLASSES))
    torch.manual_seed(7)
    model = model_class(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.5)
    arguments = {
        "num_classes": len(CLASSES),
        "model_type": model_type or base,
        "model_name": model_name,
        "tokenizer_name": tokenizer_name,
    }
    torch.save(
        {
            "config": {"arch": {"args": arguments}, "dataset": {"args": {"classes": CLASSES}}},
            "state_dict": model.state_dict(),
        },
        path,
    )
    return path


def tiny_classifier(family: str, folder: Path, *, labels: Sequence[str] = ("fine", "toxic"), **config: Any) -> Path:
    """Save a tiny sequence classifier with transformers, with random weights as in `tiny_checkpoint`.

    Args:
        family: a key of `NAMES`.
        folder: the folder to write.
        labels: names of its outputs.
        config: further fields of its configuration, such as `problem_type`.
    """
    import torch
    import transformers

    tiny_folder(family, folder)
    model_class = getattr(transformers, NAMES[family][1])
    settings = model_class.config_class.from_pretrained(folder, id2label=dict(enumerate(labels)), **config)
    torch.manual_seed(7)
    model = model_class(settings)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.5)
    model.save_pretrained(folder)
    getattr(transformers, NAMES[family][2]).from_pretrained(folder).save_pretrained(folder)
    return folder


def tiny_token_classifier(folder: Path, labels: Sequence[str]) -> Path:
    """Save a tiny token classifier with transformers, with random weights that find something of each label."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(tiny_classifier("roberta", folder, labels=labels))
    torch.manual_seed(6)
    model = transformers.AutoModelForTokenClassification.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.5)
    model.save_pretrained(folder)
    return folder


@contextmanager
def another_clock(year: int) -> Iterator[None]:
    """Make scrubadub and dateparser see another year wherever they read the clock through `datetime`."""
    import datetime

    import scrubadub.detectors.date_of_birth  # noqa: F401 - and dateparser with it

    class AnyMoment(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, datetime.datetime)

    class Moment(datetime.datetime, metaclass=AnyMoment):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return datetime.datetime(year, 2, 27, 12, tzinfo=tz)

        @classmethod
        def today(cls) -> datetime.datetime:
            return cls.now()

        @classmethod
        def utcnow(cls) -> datetime.datetime:
            return cls.now()

    modules = [
        module
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in ("dateparser", "scrubadub")
        and getattr(module, "datetime", None) is datetime.datetime
    ]
    assert modules
    for module in modules:
        module.datetime = Moment
    try:
        yield
    finally:
        for module in modules:
            module.datetime = datetime.datetime
