"""The command line as a whole: fast help, and errors without tracebacks."""

import itertools
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from phf import app

HEAVY = ("ray", "torch", "transformers", "deepspeed", "spacy", "sklearn", "pyarrow", "matplotlib", "numpy", "pylint")


def all_commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [()]

    def walk(command: object, path: tuple[str, ...]) -> None:
        for name, child in getattr(command, "commands", {}).items():
            found.append((*path, name))
            walk(child, (*path, name))

    walk(typer.main.get_command(app), ())
    return found


@pytest.mark.parametrize("path", all_commands(), ids=" ".join)
def test_every_help_reads_well(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "100", "TERM": "dumb"})
    assert result.exit_code == 0
    assert "Usage:" in result.output
    assert "Placeholder" not in result.output
    # Every option must have a help text.
    for line in result.output.splitlines():
        assert not line.rstrip(" │").endswith(("<text>", "<path>", "<integer>", "<float>")), line


@pytest.mark.parametrize("width", [60, 80, 100, 120])
@pytest.mark.parametrize("path", all_commands(), ids=" ".join)
def test_paragraphs_of_the_help_fill_the_width(path: tuple[str, ...], width: int) -> None:
    result = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": str(width), "TERM": "dumb"})
    # Nothing is cut off in a terminal of at least 80 columns.
    assert width < 80 or "…" not in result.output
    prose = result.output.split("╭")[0].splitlines()
    for line, following in itertools.pairwise(each.strip() for each in prose):
        if line and following and not line.startswith("Usage:"):
            # The next word would not fit into the line.
            assert len(line) + 1 + len(following.split()[0]) > width - 2, line


def test_the_version_is_printed() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"phf {version('phf')}\n")


@pytest.mark.parametrize("heavy", HEAVY)
def test_help_imports_nothing_heavy(heavy: str) -> None:
    code = f"import sys, phf; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("module", ["scorers", "scorers.contract", "scorers.registry", "pipeline.dataset"])
def test_the_contracts_import_neither_ray_nor_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(bool({{'ray', 'torch', 'deepspeed'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "nowhere"],
        ["inspect", "nowhere"],
        ["status", "nowhere"],
        ["retag", "nowhere", "--threshold", "pii=0"],
        ["label", "nowhere", "--output", "out", "--scorer", "pep8"],
        ["preview", "nowhere", "--scorer", "pep8"],
        ["tokenize", "nowhere"],
        ["train", "nowhere", "--task", "pep8", "--objective", "mle", "--output", "out"],
        ["evaluate", "nowhere"],
        ["compare", "nowhere", "--output", "out"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_missing_path_is_named_with_status_2_before_anything_is_written(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "phf", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "changes", "message"),
    [
        ("é", {"LC_ALL": "C", "PYTHONUTF8": "0"}, r"The argument '\xe9' cannot be read"),
        ("\udcff", {"PYTHONUTF8": "1"}, r"The argument '\udcff' is not valid UTF-8"),
    ],
)
def test_names_that_no_dataset_can_hold_are_refused(argument: str, changes: dict[str, str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "phf", "inspect", argument],
        cwd=Path(__file__).parents[1],
        env={**os.environ, **changes},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert message in done.stderr


COMPLETED = {
    "train labelled --task ": {"toxicity", "pii", "pep8"},
    "train labelled --objective r": {"rwr"},
    "train labelled --model gpt2-": {"gpt2-medium", "gpt2-large", "gpt2-xl"},
    "train labelled --on ": {"here", "ray"},
    "submit train labelled --objective unlike": {"unlikelihood", "unlikelihood_soft"},
    "submit train labelled --on ": {"kubernetes", "local", "ray", "slurm"},
}


@pytest.mark.parametrize("typed", COMPLETED)
def test_a_shell_completes_values_without_heavy_imports(typed: str) -> None:
    words = f"phf {typed}"
    request = {"_PHF_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    # The command ends its own process: look before that at what was imported.
    code = (
        "import sys; sys.argv[0] = 'phf'; import phf\n"
        f"phf.end_process = lambda status: sys.exit(status or ' '.join(set({HEAVY!r}) & set(sys.modules)) or 0)\n"
        "phf.main()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=os.environ | request,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == COMPLETED[typed]
