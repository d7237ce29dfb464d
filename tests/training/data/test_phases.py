"""A run's phases: their steps, documents, streams and objectives."""

import hashlib

import numpy as np
import pytest
import torch

from scorers.errors import UserError
from tests.training.data.test_mixture import Numbers, ids
from tests.training.data.test_tagged_stream import long_documents, options_of
from tests.training.stores import make_store
from training.config import ObjectiveConfig
from training.data.batches import BatchSource
from training.data.index import _key
from training.data.phases import Phase, PhasedSource, phase_at, plan_phases
from training.data.tagged_stream import Stream
from training.objectives import MLE, build


@pytest.mark.parametrize(
    ("settings", "steps", "expected"),
    [
        ({}, 12, [("preferences", 0, 12, None)]),
        ({"starts_at": 0.25}, 12, [("plain", 0, 3, (0.0, 0.25)), ("preferences", 3, 12, (0.25, 1.0))]),
        ({"cooldown": 0.1}, 30, [("preferences", 0, 27, (0.0, 0.9)), ("cooldown", 27, 30, (0.9, 1.0))]),
        (
            {"starts_at": 0.5, "cooldown": 0.001},
            10,
            [("plain", 0, 5, (0.0, 0.5)), ("preferences", 5, 9, (0.5, 0.999)), ("cooldown", 9, 10, (0.999, 1.0))],
        ),
    ],
)
def test_phases_get_steps_and_documents_by_their_shares(settings, steps, expected):
    phases = plan_phases(ObjectiveConfig(name="conditional", **settings), steps)
    assert [(phase.name, phase.first, phase.end, phase.part) for phase in phases] == expected


@pytest.mark.parametrize(
    ("settings", "steps", "message"),
    [
        ({"name": "mle", "starts_at": 0.5}, 10, r"mle has no preferences.*Remove objective\.starts_at"),
        ({"name": "rwr", "cooldown": 0.1}, 10, r"rwr has no tags to leave out.*Remove objective\.cooldown"),
        ({"name": "conditional", "starts_at": 0.5, "cooldown": 0.4}, 2, "A run of 2 steps is too short"),
        ({"name": "conditional", "starts_at": 0.5}, 1, "A run of 1 step is too short"),
    ],
)
def test_invalid_phases_are_refused(settings, steps, message):
    with pytest.raises(UserError, match=message):
        plan_phases(ObjectiveConfig(**settings), steps)


def test_each_phase_starts_at_the_beginning_of_its_own_order():
    phases = (Phase("plain", 0, 3), Phase("preferences", 3, 10), Phase("cooldown", 10, 12))
    sources = tuple(BatchSource(Numbers(number, 9 + number), 4, 1) for number in range(3))
    source = PhasedSource(phases, sources, 4)
    assert [phase_at(phases, step) for step in range(14)] == [0] * 3 + [1] * 7 + [2] * 4
    for step in range(12):
        number = phase_at(phases, step)
        expected = sources[number].batch(step - phases[number].first)
        assert ids(source.batch(step)) == ids(expected)
        assert [*ids(source.rank_batch(step, 0, 2)), *ids(source.rank_batch(step, 1, 2))] == ids(expected)
    assert source.origin(4) == {"phase": "preferences", **sources[1].origin(1)}


@pytest.fixture
def store(tmp_path):
    documents = [*long_documents(), *(([([1, 2, 3], 0.1 * (number % 7))], False) for number in range(400))]
    hashes = [
        int.from_bytes(hashlib.blake2b(str(number).encode(), digest_size=8).digest(), "little")
        for number in range(len(documents))
    ]
    return make_store(tmp_path / "store", documents, hashes=hashes)


def test_every_document_is_in_exactly_one_phase(store):
    def documents(**given):
        return Stream(store, "x", options_of(held_out=0.2, **given)).documents.tolist()

    low, middle, high = (documents(part=part) for part in ((0.0, 0.25), (0.25, 0.9), (0.9, 1.0)))
    assert sorted([*low, *middle, *high]) == documents()
    assert len(low) / len(documents()) == pytest.approx(0.25, abs=0.07)
    assert len(high) / len(documents()) == pytest.approx(0.1, abs=0.05)
    # Filtering happens within a phase; held-out documents are held out of all.
    whole = Stream(store, "x", options_of(held_out=0.2))
    filtered = Stream(store, "x", options_of(held_out=0.2, part=(0.25, 0.9), filter_threshold=0.3))
    assert set(filtered.documents.tolist()) < set(middle)
    assert filtered.held_out_documents().tolist() == whole.held_out_documents().tolist()
    left_out = filtered.statistics["documents_left_out"]
    assert left_out["filtered"] == len(middle) - len(filtered.documents)
    assert left_out["other_phases"] == len(low) + len(high)
    assert sum(left_out.values()) + len(filtered.documents) == store.num_documents
    assert "other_phases" not in whole.statistics["documents_left_out"]


def test_a_single_phase_uses_layouts_cached_before_phases_existed():
    options = options_of(context_length=16, held_out=0.3, filter_threshold=0.5)
    assert _key("x", options) == "83bdd86fccc04127ac77346c31c2167c"
    others = {_key("x", options_of(held_out=0.3, part=part)) for part in (None, (0.0, 0.5), (0.5, 1.0))}
    assert len(others) == 3


@pytest.mark.parametrize("w_max", [0.5, 1000.0])
def test_before_the_preferences_awr_has_equal_weights_and_trains_its_value_head(w_max):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 11, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 11, (2, 5), generator=generator)
    scores = torch.rand(2, 5, generator=generator, dtype=torch.float64)
    values = -torch.rand(2, 5, generator=generator, dtype=torch.float64)
    objective = build("awr", alpha=0.3, beta=0.1, w_max=w_max)
    found, full = (each.loss(logits, labels, scores, values) for each in (objective.plain(), objective))
    ce = MLE().loss(logits, labels, scores).loss
    error = (-scores[:, 1:] - values[:, :-1]).square().mean()
    assert found.loss == pytest.approx(float(0.3 * ce + 0.7 * error))
    assert found.metrics.keys() == full.metrics.keys()
    assert (found.metrics["weight"], found.metrics["max_weight"], found.metrics["clipped_share"]) == (1, 1, 0)


@pytest.mark.parametrize("name", ["filtering", "conditional", "unlikelihood", "unlikelihood_soft", "rwr"])
def test_before_the_preferences_other_objectives_are_maximum_likelihood(name):
    options = {"unlikelihood": {"alpha": 1.0}, "unlikelihood_soft": {"alpha": 1.0}, "rwr": {"beta": 1.0}}
    assert build(name, threshold=0.5, **options.get(name, {})).plain() == MLE()


def test_parts_do_not_depend_on_tags_or_order(store):
    plain = Stream(store, "x", options_of(part=(0.0, 0.5)))
    tagged = Stream(store, "x", options_of(part=(0.0, 0.5), tag_bounds=(0.3,)))
    assert np.array_equal(plain.documents, tagged.documents)
    assert plain.statistics["tokens_control"] == 0 < tagged.statistics["tokens_control"]
