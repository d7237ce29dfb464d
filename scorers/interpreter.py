"""How phf starts a Python process, and what lies on the import path in place of a library.

Python puts the working directory (`python -m`, `python -c`) or the folder of a script before the standard library, and
takes an empty or relative entry of PYTHONPATH for a place in the working directory. What lies there is data, such as a
corpus: no process of phf imports it. (https://docs.python.org/3/using/cmdline.html#envvar-PYTHONSAFEPATH)

Only modules that are frozen into the interpreter are imported here: `phf` looks before anything can be another's.
"""

import importlib.util
import os
import site
import sys
from importlib.machinery import PathFinder

# Each Python process that inherits it, whoever starts it, leaves out the working directory and the script's folder.
SAFE_PATH = {"PYTHONSAFEPATH": "1"}
# The command refuses other ones of these by itself; where a cluster was sent them, they stand before installed ones.
_OURS = frozenset({"phf", "scorers", "pipeline", "training", "infra"})
# Modules that a message names.
_SHOWN = 5


def command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module with this interpreter; started with the variables of `environment`."""
    return [sys.executable, "-m", module, *arguments]


def environment() -> dict[str, str]:
    """The variables of this process for a Python process that it starts: one that finds the same modules, no others."""
    entries = _python_path()
    unsafe = {os.path.abspath(each) for each in entries if not os.path.isabs(each)} - set(entries)
    path = [each for each in sys.path if os.path.isabs(each) and each not in unsafe]
    return {**os.environ, **SAFE_PATH, "PYTHONPATH": os.pathsep.join(path)}


def make_safe() -> None:
    """Change the variables of this process so that no Python process that gets them imports its working directory."""
    os.environ.update(SAFE_PATH)
    if "PYTHONPATH" in os.environ:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(os.path.isabs, _python_path()))


def shadows() -> dict[str, str]:
    """The modules on PYTHONPATH that are imported in place of installed ones or the standard library's: their files."""
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
    """A line about modules and their files, as `shadows` finds them."""
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
    """The file that is, or was, imported for a module; empty where there is none, as for a folder of no package."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return ""
    return os.path.realpath(spec.origin) if spec is not None and spec.origin else ""
