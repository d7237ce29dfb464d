"""The claims of SECURITY.md: the tests that it names exist, and those that no other module tests hold."""

import ast
import importlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from phf import app
from tests.pages import ROOT
from tests.pipeline import here

PARTS = ("scorers", "pipeline", "training", "infra")
SOURCES = sorted([ROOT / "phf.py", *(path for part in PARTS for path in (ROOT / part).rglob("*.py"))])
# Names that would run code of whoever wrote the data.
EVALUATES = {"eval", "exec", "__import__"}
UNPICKLES = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "cPickle.load", "dill.load", "dill.loads", "marshal.load"),
    *("marshal.loads", "shelve.open", "joblib.load", "cloudpickle.load", "cloudpickle.loads", "pandas.read_pickle"),
    *("pd.read_pickle", "jsonpickle.decode"),
}
UNSAFE_YAML = {"unsafe_load", "unsafe_load_all", "full_load", "full_load_all", "Loader", "FullLoader", "UnsafeLoader"}
CREDENTIALS = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY"),
    *("MLFLOW_TRACKING_PASSWORD", "AZURE_STORAGE_ACCOUNT_KEY", "RAY_AUTH_TOKEN"),
)


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file, with its dotted name as it is written."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def evaluating(path: Path) -> list[str]:
    found = []
    for name, call in calls(path):
        options = {each.arg: ast.unparse(each.value) for each in call.keywords}
        unsafe = name in EVALUATES | UNPICKLES
        unsafe |= name == "torch.load" and options.get("weights_only") != "True"
        unsafe |= name in ("np.load", "numpy.load") and options.get("allow_pickle", "False") != "False"
        unsafe |= options.get("trust_remote_code", "False") == "True" or options.get("shell", "False") == "True"
        if unsafe:
            found.append(f"{path.name}:{call.lineno}: {ast.unparse(call)}")
    return found


def test_every_named_test_exists() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/.]+)(?:::(\w+))?`", page)
    assert len(named) > 20
    for file, function in named:
        assert (ROOT / file).exists(), file
        if function:
            source = (ROOT / file).read_text(encoding="utf-8")
            assert re.search(rf"^def {function}\(", source, re.MULTILINE), f"{file} has no {function}"


def test_every_claim_names_a_test() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    claims = page.partition("| claim | test |\n|---|---|\n")[2].partition("\n\n")[0].splitlines()
    assert len(claims) > 10
    assert not [claim for claim in claims if not re.search(r"\| `tests/.*` \|$", claim)]


def test_no_code_evaluates_or_unpickles(tmp_path: Path) -> None:
    assert [line for path in SOURCES for line in evaluating(path)] == []
    for number, code in enumerate(
        [
            "eval('1')",
            "import pickle\npickle.loads(b'')",
            "torch.load('x')",
            "torch.load('x', weights_only=False)",
            "np.load('x', allow_pickle=True)",
            "AutoModel.from_pretrained('x', trust_remote_code=True)",
        ]
    ):
        (tmp_path / f"{number}.py").write_text(code)
        assert evaluating(tmp_path / f"{number}.py"), code


def test_yaml_is_loaded_safely() -> None:
    used = 0
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            each.attr
            for each in ast.walk(tree)
            if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id == "yaml"
        }
        assert not names & UNSAFE_YAML, path
        for name, call in calls(path):
            if name in ("yaml.load", "yaml.load_all"):
                used += 1
                module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
                loader = ast.unparse(call.args[1] if len(call.args) > 1 else call.keywords[0].value)
                kind = getattr(module, loader, None) or getattr(yaml, loader.removeprefix("yaml."))
                assert issubclass(kind, yaml.SafeLoader), f"{path}:{call.lineno}"
    assert used


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a corpus was labelled, with credentials in the environment and a umask of 022."""
    folder = tmp_path_factory.mktemp("labelled")
    (folder / "corpus").mkdir()
    for number in range(3):
        (folder / "corpus" / f"{number}.py").write_text(f"import os\nx = {number}\n")
    before = os.umask(0o022)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in CREDENTIALS:
            patch.setenv(name, secret(name))
        try:
            here.run(*LABEL, "--log", "run.jsonl")
            here.run("retag", "out", "--threshold", "pep8=0.5")
            printed = [
                CliRunner().invoke(app, words).output
                for words in (
                    ["config", "label", "--yaml"],
                    ["config", "train", "--yaml"],
                    ["status", "out"],
                    ["verify", "out"],
                    ["inspect", "out"],
                    [
                        "label",
                        "corpus",
                        "--scorer",
                        "pep8=pycodestyle",
                        "--output",
                        "s3://bucket/x",
                        "--unit-size",
                        "0",
                    ],
                )
            ]
            for place in (("local",), ("ray",), ("slurm",), ("kubernetes", "--image", "phf:1", "--volume", "data")):
                submission = [*LABEL[:-1], "/shared/other" if len(place) > 1 else "other"]
                done = CliRunner().invoke(app, ["submit", *submission, "--dry-run", "--on", *place])
                assert done.exit_code == 0, done.output
                printed.append(done.output)
        finally:
            os.umask(before)
    (folder / "printed.txt").write_text("\n".join(printed))
    return folder


LABEL = ("label", "corpus", "--scorer", "pep8=pycodestyle", "--output", "out")


def secret(name: str) -> str:
    return f"CANARY{name.replace('_', '')}"


def test_credentials_are_written_and_printed_nowhere(labelled: Path) -> None:
    files = [path for path in labelled.rglob("*") if path.is_file()]
    assert {"printed.txt", "run.jsonl", "manifest.json", "config.json"} <= {path.name for path in files}
    printed = (labelled / "printed.txt").read_text()
    assert (printed.count("--output other"), printed.count("--output /shared/other")) == (3, 1)
    for path in files:
        assert b"CANARY" not in path.read_bytes(), path


def test_nobody_else_may_write_what_phf_writes(labelled: Path) -> None:
    for path in [labelled / "run.jsonl", *(labelled / "out").rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert not mode & 0o022, f"{path}: {mode:o}"
        assert path.is_dir() or not mode & 0o111, f"{path}: {mode:o}"


def test_a_umask_of_077_keeps_an_output_private(labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(labelled)
    before = os.umask(0o077)
    try:
        here.run(*LABEL[:-1], "private")
    finally:
        os.umask(before)
    for path in [labelled / "private", *(labelled / "private").rglob("*")]:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
