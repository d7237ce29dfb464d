"""Names and organisations: decoded in batches, and parsed only where that can change the result."""

import random
from types import SimpleNamespace

import pytest

from scorers.contract import Execution
from scorers.pii.decoding import BatchDecoder
from scorers.pii.entities import EntityRecognizer, _entities, find_model
from scorers.registry import ScorerSpec, build
from scorers.sentences import document

WORDS = """Angela Merkel Google Microsoft John Smith Jane Doe Inc. Ltd. The New York Times University of Oxford said
Thanks Hello I We met visited in Berlin yesterday . ! , -- Dr. Mr. and & At On Bank America Best regards ü 12 May 1999
%"""

# Sentences in which the parser starts a sentence inside what would otherwise be an entity.
CROSSED = [", Doe Inc. Hello", "America On Inc. We On", "said . Inc. Times"]


def sentences(count):
    numbers, words = random.Random(5), WORDS.split()
    spaces = [" ", " ", " ", "\n", "  ", "\t"]
    return [
        "".join(numbers.choice(words) + numbers.choice(spaces) for _ in range(numbers.randint(1, 25)))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def recognizers():
    return {parser: EntityRecognizer("en_core_web_sm", parser=parser) for parser in (True, False)}


@pytest.mark.parametrize("parser", [True, False])
def test_batches_find_what_the_pipeline_finds_a_sentence_at_a_time(recognizers, parser):
    recognizer = recognizers[parser]
    texts = [*sentences(400), *CROSSED, " ", "\n\n", "x", "\x00", "🙂🙂", "a\r\nb", "é" * 50]
    plain = recognizer._nlp
    assert plain.pipe_names == (["tok2vec", "parser", "ner"] if parser else ["tok2vec", "ner"])
    found = recognizer.findings(texts)
    assert sum(map(bool, found.values())) > 100
    for text in texts:
        assert found[text] == _entities(plain(text)), text


def test_the_parser_runs_only_on_texts_where_it_matters(recognizers):
    with_parser, without = (recognizers[parser].findings(CROSSED) for parser in (True, False))
    assert all(with_parser[each] != without[each] for each in CROSSED)


def test_findings_do_not_depend_on_the_order_or_on_repetition(recognizers):
    texts = sentences(60)
    once = recognizers[True].findings(texts)
    assert recognizers[True].findings([*reversed(texts), *texts]) == once


def test_without_a_decoder_the_pipeline_itself_reads(recognizers, monkeypatch):
    texts = [*sentences(30), *CROSSED]
    expected = recognizers[True].findings(texts)
    monkeypatch.setattr(recognizers[True], "_decoder", None)
    assert recognizers[True].findings(texts) == expected


def test_a_recogniser_that_is_built_differently_is_refused(recognizers):
    component = recognizers[True]._nlp.get_pipe("ner")

    with pytest.raises(ValueError, match="not built like those of spaCy"):
        BatchDecoder(SimpleNamespace(cfg={"beam_width": 4}, model=component.model))


def test_the_option_for_entities_is_part_of_the_fingerprint_and_none_needs_no_model(built):
    text = document("Angela Merkel, jo@example.com")
    scorers = {
        entities: build("pii", ScorerSpec(kind="scrubadub", entities=entities)) for entities in ("no-parser", "full")
    }
    scorers["none"] = build("pii", ScorerSpec(kind="scrubadub", entities="none", spacy_model="missing"))
    assert len({each.fingerprint for each in scorers.values()}) == 3
    assert scorers["full"].fingerprint == built("scrubadub").fingerprint
    types = {entities: {each.type for each in scorer.findings([text])[0][0]} for entities, scorer in scorers.items()}
    assert types["none"] == {"email"}
    assert "name" in types["full"]


def test_a_document_that_the_recogniser_fails_on_fails_alone(built):
    scorer = build("pii", ScorerSpec(kind="scrubadub"), Execution(deadline_s=30))
    read = scorer._entities.findings

    def fail(texts):
        texts = list(texts)
        if any("trap" in each for each in texts):
            raise RuntimeError
        return read(texts)

    scorer._entities.findings = fail
    first, second, third = scorer.score([document("Angela Merkel."), document("A trap."), document("jo@example.com")])
    assert first[0] > 0
    assert second.reason == "scorer-error"
    assert third[0] > 0


def test_the_model_is_found_by_its_name():
    assert find_model("en_core_web_sm").startswith("en_core_web_sm")
