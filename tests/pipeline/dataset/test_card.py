import pytest
import yaml

from pipeline.dataset import open_dataset
from pipeline.dataset.card import render_card, size_category
from pipeline.dataset.manifest import ScorerEntry, SourceEntry
from tests.datasets import make_dataset


@pytest.fixture
def manifest(tmp_path):
    folder = make_dataset(
        tmp_path / "made",
        ["One. Two!", "", ("x = 1\n", "python")],
        {"toxicity": lambda sentence: 0.5, "pep8": lambda sentence: 0.0},
        {"toxicity": "p90", "pep8": 0},
        applies={"pep8": "python"},
        scorers={"toxicity": ScorerEntry(kind="detoxify", options={"model": "unbiased"}, fingerprint="detoxify-1234")},
        quarantined=[(1, "not-json")],
    )
    return open_dataset(str(folder)).manifest


def front_matter(card):
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def test_the_front_matter_names_the_current_generation(manifest):
    matter = front_matter(render_card(manifest))
    assert matter["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/0001/*.parquet"}]}
    ]
    assert matter["size_categories"] == ["n<1K"]
    other = manifest.model_copy(update={"generation": 12})
    assert front_matter(render_card(other))["configs"][0]["data_files"][0]["path"] == "data/0012/*.parquet"


def test_the_card_describes_the_dataset(manifest):
    manifest = manifest.model_copy(update={"bytes_text": 10_000})
    card = render_card(manifest)
    for part in (
        '| `toxicity` | `detoxify` | `{"model": "unbiased"}` | `detoxify-1234` |',
        "| `toxicity_aligned` | `toxicity` <= 0.5 | p90 | 3 | 100.0% |",
        "| `pep8_aligned` | `pep8` <= 0 | 0 | 1 | 100.0% |",
        "| read | 4 |",
        "| labelled | 2 |",
        "| empty | 1 |",
        "| quarantined: `not-json` | 1 |",
        "load_dataset(",
        "phf train DIR",
        "`corpus.jsonl`",
    ):
        assert part in card
    assert "could not be read to the end" not in card
    assert render_card(manifest) == card


def test_counts_of_one_are_singular(tmp_path):
    one = make_dataset(tmp_path / "one", ["One."], {"toxicity": lambda sentence: 0.5}, {"toxicity": 0.5})
    assert "1 document, split losslessly into 1 sentence (4 bytes of text)" in render_card(
        open_dataset(str(one)).manifest
    )


def test_sources_that_end_early_are_mentioned(manifest):
    ledger = manifest.ledger.model_copy(update={"sources_cut": 2})
    assert "2 of the sources could not be read to the end" in render_card(
        manifest.model_copy(update={"ledger": ledger})
    )


def test_the_list_of_sources_is_bounded(manifest):
    sources = [SourceEntry(uri=f"part-{n}.jsonl", size=1, sha256="0" * 64, records=1) for n in range(1000)]
    card = render_card(manifest.model_copy(update={"sources": sources}))
    assert "part-19.jsonl" in card
    assert "part-20.jsonl" not in card
    assert "and 980 more" in card


def test_a_strange_name_cannot_break_the_card(manifest):
    strange = "a|b`c\n---\n# d{{ 7 * 7 }}.jsonl"
    sources = [SourceEntry(uri=strange, size=1, sha256="0" * 64, records=1)]
    card = render_card(manifest.model_copy(update={"sources": sources}))
    assert r"| `a\|b'c --- # d{{ 7 * 7 }}.jsonl` | 1 | 1 |" in card


@pytest.mark.parametrize(
    ("rows", "category"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (9_999, "1K<n<10K"),
        (10_000, "10K<n<100K"),
        (5 * 10**11, "100B<n<1T"),
        (10**13, "n>1T"),
    ],
)
def test_size_categories_of_the_hub(rows, category):
    assert size_category(rows) == category
