"""The worked examples of scorers/README.md, run from the page itself, in order, in one folder."""

import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from scorers.registry import KINDS, scorer_type
from tests.scorers.helpers import tiny_checkpoint, tiny_folder

PAGE = Path(__file__).parents[2] / "scorers" / "README.md"
_BLOCK = re.compile(r"^```(\w+)((?: \w+=\S+)*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    language: str
    attributes: dict[str, str]
    code: str
    heading: str


def blocks() -> list[Block]:
    text = PAGE.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text, text.index("## Worked examples")):
        heading = re.findall(r"^###? (.*)$", text[: match.start()], re.MULTILINE)[-1]
        attributes = dict(each.split("=") for each in match[2].split())
        found.append(Block(match[1], attributes, match[3], heading))
    return found


EXAMPLES = [each for each in blocks() if "file" not in each.attributes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of the page, its package installed as pip would, and small models in place of real ones."""
    place = tmp_path_factory.mktemp("examples")
    for each in blocks():
        if "file" in each.attributes:
            (place / each.attributes["file"]).write_text(each.code, encoding="utf-8")
    project = tomllib.loads((place / "pyproject.toml").read_text())["project"]
    info = place / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = "".join(f"{name} = {value}\n" for name, value in project["entry-points"]["phf.scorers"].items())
    (info / "entry_points.txt").write_text(f"[phf.scorers]\n{points}")
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


def run(folder: Path, *command: str) -> str:
    path = os.pathsep.join([str(folder), *(each for each in sys.path if each)])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# What the page's commands print, among other things; as many as there are examples.
PRINTED = [
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
def test_the_examples_run_as_they_stand(folder):
    for example, (heading, _, printed) in zip(EXAMPLES, PRINTED, strict=True):
        if example.attributes.get("needs", "column") not in KINDS:
            continue
        if example.language == "python":
            shown = run(folder, sys.executable, "-c", example.code)
        else:
            # The fixture has installed the package; pip would want a network.
            lines = [line for line in example.code.splitlines() if not line.startswith("pip install")]
            phf = f'phf() {{ {sys.executable} -m phf "$@"; }}'
            shown = run(folder, "bash", "-euc", "\n".join([phf, *lines]))
        assert printed in shown, heading


def test_the_scorer_of_the_page_obeys_the_contract(folder):
    run(folder, sys.executable, "-c", "from test_exclaim_scorer import *; test_it_obeys_the_contract()")


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_has_every_kind_with_its_options(kind):
    (row,) = re.findall(rf"^\| `{kind}`(?: \(`\w+`\))? \|.*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)[:1]
    assert [option for option in scorer_type(kind).Options.model_fields if f"`{option}`" not in row] == []
