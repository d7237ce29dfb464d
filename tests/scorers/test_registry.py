import json
import subprocess
import sys

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from scorers import registry
from scorers.errors import UserError
from scorers.registry import ScorerSpec, build, documents_of, kinds, parse_scorer, resolve, runs_on_gpu

PLUGIN = """
import numpy as np
from scorers.contract import SemanticOptions

class Options(SemanticOptions):
    word: str = "the"
    times: int = 1

class WordScorer:
    Options = Options
    main_option = "word"
    runs_on_gpu = False
    documents = "python"

    def __init__(self, name, options, execution):
        self.name, self.fingerprint, self.options = name, f"word-{options.word}", options

    def applies(self, document):
        return True

    def score(self, documents):
        count = lambda sentence: float(sentence.count(self.options.word) * self.options.times)
        return [np.asarray([count(s) for s in d.sentences()], dtype=np.float32) for d in documents]
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Another package that provides a scorer, as pip installs it."""

    def install(name="word", target="word_scorer:WordScorer", package="word-scorer"):
        (tmp_path / "word_scorer.py").write_text(PLUGIN)
        info = tmp_path / f"{package.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[phf.scorers]\n{name} = {target}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        registry._plugins.cache_clear()

    yield install
    registry._plugins.cache_clear()
    sys.modules.pop("word_scorer", None)


@pytest.mark.parametrize(
    ("text", "column", "spec"),
    [
        ("pii", "pii", {"kind": "scrubadub"}),
        ("toxicity", "toxicity", {"kind": "detoxify"}),
        ("pep8", "pep8", {"kind": "pycodestyle"}),
        ("pylint", "pylint", {"kind": "pylint"}),
        ("linear", "linear", {"kind": "linear"}),
        ("toxicity=linear", "toxicity", {"kind": "linear"}),
        ("style=pylint", "style", {"kind": "pylint"}),
        ("toxicity=detoxify:unbiased", "toxicity", {"kind": "detoxify", "model": "unbiased"}),
        ("t2=detoxify:/m/a=b.ckpt,config=/m/c", "t2", {"kind": "detoxify", "model": "/m/a=b.ckpt", "config": "/m/c"}),
        ("pep8=pycodestyle,max_line_length=100", "pep8", {"kind": "pycodestyle", "max_line_length": "100"}),
    ],
)
def test_the_form_on_the_command_line(text, column, spec):
    assert parse_scorer(text) == (column, ScorerSpec(**spec))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("style", "The column 'style' has no default kind of scorer"),
        ("toxicity=", "names no kind after the '='"),
        ("toxicity=lienar", "no scorer of kind 'lienar'; the kinds are detoxify, linear"),
        ("toxicity=linear:big", "has no main option"),
        ("detoxify:unbiased", "name the column first"),
        ("Toxicity=linear", "'Toxicity' cannot name a column"),
        ("9=linear", "cannot name a column"),
        ("x_aligned=linear", "reserved for the columns of tags"),
        ("pep8=pycodestyle,max_line_length", "not of the form OPTION=VALUE"),
        ("", "cannot name a column"),
    ],
)
def test_another_form_is_refused_with_a_helpful_message(text, message):
    with pytest.raises(UserError, match=message):
        parse_scorer(text)


def test_resolving_fills_in_every_default_and_checks_the_values():
    _, spec = parse_scorer("pep8=pycodestyle,max_line_length=100")
    assert resolve("pep8", spec).options == {"max_line_length": 100, "ignore": None}
    assert resolve("pii", ScorerSpec(kind="scrubadub")).options == {
        "documents": "any", "reference_date": "2026-01-01", "entities": "full", "spacy_model": "en_core_web_sm"
    }  # fmt: skip
    with pytest.raises(UserError, match="max_line_lenght: no such setting; did you mean 'max_line_length'"):
        resolve("pep8", ScorerSpec(kind="pycodestyle", max_line_lenght=3))
    with pytest.raises(UserError, match=r"scorer 'pep8'.*\n.*max_line_length: .*given: 'wide'"):
        resolve("pep8", ScorerSpec(kind="pycodestyle", max_line_length="wide"))


@pytest.mark.parametrize("kind", registry.KINDS)
def test_a_resolved_spec_survives_yaml_and_json(kind):
    spec = resolve("column", ScorerSpec(kind=kind))
    assert ScorerSpec(**json.loads(json.dumps(spec.model_dump(mode="json")))) == spec
    assert resolve("column", ScorerSpec(**yaml.safe_load(yaml.safe_dump(spec.model_dump(mode="json"))))) == spec


def test_a_date_in_yaml_is_a_date():
    values = yaml.safe_load("{kind: scrubadub, reference_date: 2020-05-01}")
    assert resolve("pii", ScorerSpec(**values)).options["reference_date"] == "2020-05-01"


def test_the_short_form_is_valid_in_a_configuration_too():
    class Config(BaseModel):
        scorers: dict[str, ScorerSpec]

    config = Config.model_validate({"scorers": {"toxicity": "detoxify:original", "pii": {"kind": "scrubadub"}}})
    assert config.scorers["toxicity"] == ScorerSpec(kind="detoxify", model="original")
    with pytest.raises(ValidationError, match="no scorer of kind 'nope'"):
        Config.model_validate({"scorers": {"toxicity": "nope"}})


def test_only_networks_run_on_a_gpu():
    assert [kind for kind in registry.KINDS if runs_on_gpu(ScorerSpec(kind=kind))] == [
        "detoxify",
        "classifier",
        "token-classifier",
    ]


def test_an_installed_package_adds_a_kind(plugin):
    from scorers.sentences import document

    plugin()
    assert kinds()[-1] == "word"
    column, spec = parse_scorer("count=word:fox,times=2")
    scorer = build(column, spec)
    assert scorer.score([document("A fox. No dog. fox fox")])[0].tolist() == [2, 0, 4]
    assert parse_scorer("word") == ("word", ScorerSpec(kind="word"))


def test_a_package_cannot_replace_a_kind(plugin):
    plugin(name="linear")
    with pytest.raises(UserError, match="Two packages provide a scorer of kind 'linear': package word-scorer"):
        kinds()


def test_a_broken_package_is_named(plugin):
    plugin(target="word_scorer:Gone")
    with pytest.raises(
        UserError, match="'word' \\(package word-scorer, entry point word_scorer:Gone\\) cannot be loaded"
    ):
        build("word", ScorerSpec(kind="word"))


def test_importing_the_scorers_imports_no_library_that_they_wrap():
    code = (
        "import sys, scorers.cli, scorers.registry as r\n"
        "[r.resolve('c', r.ScorerSpec(kind=k)) for k in r.KINDS]\n"
        "heavy = {'torch', 'transformers', 'ray', 'spacy', 'sklearn', 'pylint', 'scrubadub', 'pycodestyle'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_kind_of_documents_comes_from_the_class_or_the_options(plugin):
    plugin()
    assert documents_of(ScorerSpec(kind="word")) == "python"
    assert documents_of(ScorerSpec(kind="linear", documents="prose")) == "prose"
    assert documents_of(ScorerSpec(kind="linear", documents="any")) is None
    assert documents_of(ScorerSpec(kind="of-a-package-that-is-not-here")) is None
