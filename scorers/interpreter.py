"""Start Python processes safely, and find modules on PYTHONPATH that shadow libraries.

Python puts the working directory (`python -m`, `python -c`) or the script's folder before the standard library, and
resolves an empty or relative entry of PYTHONPATH in the working directory. Files there are data, such as a corpus, and
no process of phf imports them. (https://docs.python.org/3/using/cmdline.html#envvar-PYTHONSAFEPATH)

This module imports only modules that are frozen into the interpreter: `phf` calls it before anything can be shadowed.
"""

import importlib.util
import os
import site
import sys
from importlib.machinery import PathFinder

# Every Python process that inherits this leaves the working directory and the script's folder off its path.
SAFE_PATH = {"PYTHONSAFEPATH": "1"}
# `phf` checks these itself; on the nodes of a cluster the shipped copies come before installed ones on purpose.
_OURS = frozenset({"phf", "scorers", "pipeline", "training", "infra"})
# How many modules the warning names.
_SHOWN = 5


def command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module with this interpreter; start it with `environment()`."""
    return [sys.executable, "-m", module, *arguments]


def environment() -> dict[str, str]:
    """Return the environment for a Python process that finds the same modules as this one, and no others."""
    entries = _python_path()
    unsafe = {os.path.abspath(each) for each in entries if not os.path.isabs(each)} - set(entries)
    path = [each for each in sys.path if os.path.isabs(each) and each not in unsafe]
    return {**os.environ, **SAFE_PATH, "PYTHONPATH": os.pathsep.join(path)}


def make_safe() -> None:
    """Change this process's environment so that no Python process that inherits it imports its working directory."""
    os.environ.update(SAFE_PATH)
    if "PYTHONPATH" in os.environ:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(os.path.isabs, _python_path()))


def find_shadows() -> dict[str, str]:
    """Return the file of each module on PYTHONPATH that shadows an installed one or the standard library."""
    standard = os.path.dirname(os.__file__)
    own = [standard, os.path.join(standard, "lib-dynload"), *site.getsitepackages()]
    found = {}
    for folder in map(os.path.realpath, filter(os.path.isabs, _python_path())):
        if folder in map(os.path.realpath, own) or not os.path.isdir(folder):
            continue
        for module in sorted({name.partition(".")[0] for name in os.listdir(folder)} - _OURS):
            installed, imported = PathFinder.find_spec(module, own), _file_of(module)
            if installed is not None and installed.origin and imported.startswith(folder + os.sep):
                found[module] = imported
    return found


def describe(shadowing: dict[str, str]) -> str:
    """Return a one-line warning about the modules that `find_shadows` found."""
    shown = ", ".join(f"{module} ({file})" for module, file in list(shadowing.items())[:_SHOWN])
    more = f" and {len(shadowing) - _SHOWN} more" if len(shadowing) > _SHOWN else ""
    return (
        f"PYTHONPATH holds modules that are imported in place of installed ones: {shown}{more}. Scores may differ from "
        "those of the libraries that a fingerprint names; take the folder off PYTHONPATH, or rename what is in it."
    )


def _python_path() -> list[str]:
    variable = os.environ.get("PYTHONPATH")
    return variable.split(os.pathsep) if variable else []


def _file_of(module: str) -> str:
    """Return the file that a module is imported from; empty if there is none, as for a namespace package."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return ""
    return os.path.realpath(spec.origin) if spec is not None and spec.origin else ""
