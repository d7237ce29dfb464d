"""The examples of scorers/README.md, extracted and run in order in one folder."""

import gzip
import re
import sys
from pathlib import Path

import pytest

from scorers.registry import KINDS, scorer_type
from tests.pages import ROOT, blocks, run
from tests.scorers.helpers import tiny_checkpoint, tiny_folder

PAGE = ROOT / "scorers" / "README.md"
EXAMPLES = [each for each in blocks(PAGE) if not {"file", "needs"} & each.attributes.keys()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files of the page, and small models in place of real ones."""
    place = tmp_path_factory.mktemp("examples")
    for each in blocks(PAGE):
        if "file" in each.attributes:
            (place / each.attributes["file"]).write_text(each.code, encoding="utf-8")
    with gzip.open(place / "corpus.jsonl.gz", "wt") as file:
        file.write((place / "corpus.jsonl").read_text() * 50)
    config = tiny_folder("bert", place / "weights" / "config")
    tiny_checkpoint("bert", config, place / "weights" / "model.ckpt")
    _save_classifier(config, place / "models" / "toxic")
    return place


def _save_classifier(config: Path, target: Path) -> None:
    import torch
    import transformers

    labels = {"id2label": {0: "fine", 1: "toxic"}, "label2id": {"fine": 0, "toxic": 1}}
    torch.manual_seed(3)
    model = transformers.BertForSequenceClassification(transformers.BertConfig.from_pretrained(config, **labels))
    model.save_pretrained(target)
    transformers.BertTokenizer.from_pretrained(config).save_pretrained(target)


# For each example, text that it must print.
PRINTED = [
    ("Checking and measuring", "sh", "toxicity"),
    ("A scorer of your own", "sh", "exclaim"),
    ("A column of the corpus", "sh", "✗"),
    ("A Hugging Face classifier", "sh", "toxicity"),
    ("Detoxify with local weights", "sh", "weights/model.ckpt"),
    ("Reading scores back", "python", "0.167 Stop! "),
    ("Reading scores back", "python", "['a', 'c']"),
]


def test_every_example_is_run():
    assert [(each.heading, each.language) for each in EXAMPLES] == [each[:2] for each in PRINTED]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_examples_run_as_they_stand(folder):
    for example, (heading, _, printed) in zip(EXAMPLES, PRINTED, strict=True):
        assert printed in run(example.code, folder, language=example.language), heading
    # The examples have installed the package.
    contract = "from test_exclaim_scorer import *; test_it_obeys_the_contract()"
    run(f'{sys.executable} -c "{contract}"', folder)


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_has_every_kind_with_its_options(kind):
    (row,) = re.findall(rf"^\| `{kind}`(?: \(`\w+`\))? \|.*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)[:1]
    assert [option for option in scorer_type(kind).Options.model_fields if f"`{option}`" not in row] == []
