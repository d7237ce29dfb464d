import pytest

from pipeline.dataset.manifest import ScorerEntry
from training.config import TrainConfig
from training.objectives import build
from training.presets import PRESETS, is_papers_scorer, preset, preset_threshold

# The paper's table: (task, objective): learning rate, batch, threshold, dropped tags, alpha, beta.
PAPER = {
    ("toxicity", "mle"): (5e-4, 64, None, None, None, None),
    ("toxicity", "filtering"): (5e-4, 64, 7.8e-4, None, None, None),
    ("toxicity", "conditional"): (5e-4, 64, 5.6e-4, 0.01, None, None),
    ("toxicity", "unlikelihood"): (5e-4, 64, 7.8e-4, None, 1, None),
    ("toxicity", "rwr"): (5e-4, 1024, None, None, None, 10),
    ("toxicity", "awr"): (1e-3, 1024, None, None, 0.5, 10),
    ("pii", "mle"): (5e-4, 64, None, None, None, None),
    ("pii", "filtering"): (5e-4, 64, 2.86e-4, None, None, None),
    ("pii", "conditional"): (5e-4, 64, 0, 0.01, None, None),
    ("pii", "unlikelihood"): (5e-4, 64, 0, None, 1, None),
    ("pii", "rwr"): (5e-4, 64, None, None, None, 10),
    ("pii", "awr"): (5e-4, 64, None, None, 0.5, 0.1),
    ("pep8", "mle"): (8e-4, 64, None, None, None, None),
    ("pep8", "filtering"): (8e-4, 64, 2.361e-3, None, None, None),
    ("pep8", "conditional"): (8e-4, 64, 0, 0.1, None, None),
    ("pep8", "unlikelihood"): (8e-4, 64, 0, None, 0.01, None),
    ("pep8", "rwr"): (1e-3, 64, None, None, None, 10),
    ("pep8", "awr"): (1e-3, 256, None, None, 0.05, 1),
}


@pytest.mark.parametrize(("task", "objective"), PAPER)
def test_the_numbers_are_the_papers(task, objective):
    numbers = PRESETS[task][objective]
    assert (
        numbers.learning_rate,
        numbers.batch_size,
        numbers.threshold,
        numbers.drop_tags,
        numbers.alpha,
        numbers.beta,
    ) == PAPER[task, objective]
    assert len(PAPER) == sum(map(len, PRESETS.values()))


@pytest.mark.parametrize(("task", "objective"), [*PAPER, ("pii", "unlikelihood_soft"), ("my_own", "awr")])
def test_a_preset_makes_a_valid_configuration_and_objective(task, objective):
    values = preset(task, objective)
    values["objective"]["name"] = objective
    config = TrainConfig.model_validate({"output": "o", "task": task, "data": {"dataset": "d"}, **values})
    assert config.training.num_tokens == 3_300_000_000
    assert (config.training.weight_decay, config.training.warmup_ratio, config.training.seed) == (0.1, 0.01, 42)
    options = config.objective
    built = build(objective, threshold=0.0, alpha=options.alpha, beta=options.beta, w_max=options.w_max)
    assert built.name == objective
    assert (options.drop_tags is not None) == built.tags


def test_objectives_without_a_threshold_use_that_of_conditional_for_reports():
    assert preset_threshold("toxicity", "mle") == 5.6e-4
    assert preset_threshold("toxicity", "unlikelihood_soft") == 5.6e-4
    assert preset_threshold("pii", "unlikelihood") == 0.0
    assert preset_threshold("my_own", "conditional") is None


def test_presets_apply_only_to_the_papers_scorers():
    def entry(kind, **options):
        return ScorerEntry(kind=kind, options=options, fingerprint="f")

    assert is_papers_scorer("toxicity", entry("detoxify", model="unbiased"))
    assert not is_papers_scorer("toxicity", entry("detoxify", model="multilingual"))
    assert not is_papers_scorer("toxicity", entry("linear"))
    assert is_papers_scorer("pii", entry("scrubadub"))
    assert not is_papers_scorer("pii", entry("scrubadub", entities="none"))
    assert is_papers_scorer("pep8", entry("pycodestyle"))
    assert not is_papers_scorer("pep8", entry("pylint"))
    assert not is_papers_scorer("my_own", entry("pylint"))
