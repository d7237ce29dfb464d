"""A working directory with modules that shadow real ones, and leave a witness file if anything imports them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# Modules of the standard library, of libraries, and of phf itself; every command imports each in some process.
STANDARD = ("json", "typing", "pickle", "sitecustomize")
LIBRARIES = ("numpy", "pyarrow", "ray", "torch", "spacy", "pycodestyle")
PACKAGES = ("phf", "pipeline", "scorers", "training", "infra")
# Configuration files that tools look for beside their input.
FILES = {
    ".pylintrc": "[MAIN]\ninit-hook='{code}'\ndisable=all\n",
    "ruff.toml": 'line-length = 300\n[lint]\nselect = ["F"]\n',
    "setup.cfg": "[pycodestyle]\nignore = E,W\nmax-line-length = 300\n",
    "tox.ini": "[pycodestyle]\nignore = E,W\n",
    "pyproject.toml": '[tool.pylint.main]\ndisable = "all"\n[tool.ruff]\nline-length = 300\n',
    "matplotlibrc": "figure.facecolor: red\n",
}


@contextmanager
def folder_of_traps(folder: Path, names: Sequence[str] = (*STANDARD, *LIBRARIES, *PACKAGES)) -> Iterator[Path]:
    """Make a working directory below `folder` with modules of these names; check afterwards that none was imported.

    Each module contains the path of the witness, because processes on a cluster do not get the test's environment.
    """
    place, witness = folder / "traps", folder / "traps.witness"
    place.mkdir(parents=True)
    code = f"import os; os.write(os.open({str(witness)!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND), b'%s ')"
    for name in names:
        (place / name).mkdir()
        (place / name / "__init__.py").write_text(code % name + "\nraise ImportError('not the real one')\n")
    for name, text in FILES.items():
        (place / name).write_text(text.format(code=(code % name).replace("'", '"')))
    yield place
    assert not witness.exists(), f"imported from the working directory: {witness.read_text()}"
