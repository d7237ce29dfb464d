"""The best checkpoints by a metric are kept, even over a resume; settings that could never choose one are refused."""

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from scorers.errors import IncompleteError, StoppedError, UserError
from tests.training.jobs import StopAfter, job_config, metrics, run_job
from training.runs import checkpoints
from training.runs.best import FIGURES_NAME, best_steps, check_best, read, record

VALUES = st.dictionaries(st.integers(1, 40), st.floats(0, 1) | st.none(), max_size=12)


@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=VALUES, keep=st.integers(1, 3), best=st.integers(0, 3), mode=st.sampled_from(["min", "max"]))
def test_the_newest_and_the_best_stay(tmp_path_factory, values, keep, best, mode):
    folder = tmp_path_factory.mktemp("best")
    for step, value in values.items():
        (folder / f"step-{step:08d}").mkdir()
        record(folder, step, {"other": 1.0} if value is None else {"bits_per_byte": value})
    checkpoints.rotate(folder, keep, 0, best_steps(folder, "bits_per_byte", mode)[:best])
    there = checkpoints.steps(folder)
    known = {step: value for step, value in values.items() if value is not None}
    assert set(sorted(values)[-keep:]) <= set(there)
    stay = sorted(known.values(), reverse=mode == "max")[:best]
    assert sorted((known[step] for step in there if step in known), reverse=mode == "max")[:best] == stay
    assert len(there) <= keep + best


def test_figures_are_added_to_a_step_and_what_is_no_number_is_not(tmp_path):
    record(tmp_path, 10, {"loss": 2.0})
    record(tmp_path, 10, {"misalignment": 0.5, "bits_per_byte": float("nan")})
    record(tmp_path, 20, {"misalignment": float("inf")})
    assert read(tmp_path) == {10: {"loss": 2.0, "misalignment": 0.5}, 20: {}}
    (tmp_path / FIGURES_NAME).write_text("{")
    assert read(tmp_path) == {}


def test_where_figures_cannot_be_written_that_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(IncompleteError, match=r"figures\.json cannot be written"):
        record(tmp_path / "file", 1, {"loss": 1.0})


def test_over_a_resumption_the_best_stay(tmp_path, code_dataset, monkeypatch):
    changes = {
        "training__save_every": 2,
        "training__keep_checkpoints": 1,
        "training__keep_best": 2,
        "training__best_metric": "loss",
        # The loss falls: the first would go if they were not the best.
        "training__best_mode": "max",
        "training__save_async": "true",
    }
    with pytest.raises(StoppedError):
        run_job(code_dataset, tmp_path / "run", callbacks=[StopAfter(6)], **changes)
    folder = tmp_path / "run/checkpoints"
    assert checkpoints.steps(folder) == [2, 4, 7]
    _, printed = run_job(code_dataset, tmp_path / "run", **changes)
    assert checkpoints.steps(folder) == [2, 4, 12]
    losses = {line["step"]: line["loss"] for line in metrics(tmp_path / "run")}
    assert read(folder)[4] == {"loss": pytest.approx((losses[3] + losses[4]) / 2)}
    assert f"By loss, the best checkpoint is that of step 2 ({read(folder)[2]['loss']:.4g})" in printed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training__keep_best": 1}, "keep_best=1 needs training.best_metric"),
        (
            {"training__best_metric": "beauty"},
            "best_metric=beauty is not known. It is one of validation_loss, misalignment, .*loss",
        ),
        ({"training__best_metric": "misalignment"}, "set training.evaluate_every to a multiple of .*1000"),
        (
            {"training__best_metric": "misalignment", "training__evaluate_every": 15, "training__save_every": 10},
            "evaluate_every=15 is not a multiple of training.save_every=10",
        ),
        ({"training__best_metric": "loss", "training__save_every": 0}, "save_every is 0"),
        ({"training__best_metric": "loss", "training__log_every": 0}, "log_every is 0"),
        (
            {"training__best_metric": "bits_per_byte", "training__evaluate_every": 1000, "data__held_out": 0},
            "set data.held_out",
        ),
        (
            {
                "training__best_metric": "expected_maximum",
                "training__evaluate_every": 1000,
                "evaluation__num_samples": 8,
            },
            r"num_samples \(now 8\)",
        ),
    ],
)
def test_what_could_never_choose_one_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as refused:
        check_best(job_config(tmp_path / "dataset", tmp_path / "run", **changes))
    assert refused.value.exit_code == 2
