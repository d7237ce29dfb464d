"""The commands of a page for what is stored beside evaluations."""

from pathlib import Path

from tests.training.comparison.test_reference_section import write_distance
from tests.training.comparison.test_scenario_section import write_scenario
from tests.training.comparison.test_tamper_section import write_test
from tests.training.run_folders import make_run
from training.comparison.load import load_comparison
from training.comparison.measuring_commands import NOT_STORED
from training.comparison.reproduce import reproduction_section


def test_references_scenarios_and_attacks_have_commands(tmp_path: Path) -> None:
    mle, awr = (make_run(tmp_path / name, name) for name in ("mle", "awr"))
    plain = reproduction_section(load_comparison([mle.path, awr.path]))
    assert plain.note == ""
    write_distance(awr, mle, 0.5)
    write_scenario(awr, [0.1, 0.9], control="none", seed=3)
    write_test(awr, [0.1, 0.2, 0.3, 0.4])
    write_scenario(mle, [0.1, 0.9], run="an earlier state")
    section = reproduction_section(load_comparison([mle.path, awr.path]))
    reference, scenario, tamper = section.commands[4:-1]
    assert section.note == NOT_STORED
    assert (section.commands[:4], section.commands[-1:]) == (plain.commands[:4], plain.commands[-1:])
    assert reference.startswith(f"phf evaluate {awr.path} --reference {mle.path} --set reference_samples=300")
    assert scenario.startswith(f"phf evaluate {awr.path} --scenario prompted=rtp.jsonl --set control=none")
    assert scenario.endswith(" --set seed=3")
    assert tamper == f"phf attack tamper {awr.path} --set steps=4 --set trials=1"
