"""Limit what pylint sees to the document and the standard library of this Python, the same for every document.

pylint follows imports. By default its messages about a file depend on the installed packages, on files in the working
directory, and on what it has read before. Here

- imports resolve to the standard library alone, in its own folder, without the parts that distributions leave out;
- no module changes another's tree: astroid would record `module.attribute = value` in the cached tree of `module`;
- the inference caches are cleared after each document, because inference gives up after a number of steps, and what it
  still finds depends on what is cached.

The trees of the standard library stay cached: building them is most of pylint's time. A tree depends on its source
alone, so dropping them too, when there are many, changes no message.
"""

import importlib
import math
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

NAME = "phf_document"

# Modules that are missing in Debian's packages, slim images, or builds without some library, or that are not meant to
# be imported. No two of the others import each other with `*`, so no tree depends on the order of reading.
# fmt: off
_OPTIONAL = frozenset((
    "_bz2", "_crypt", "_ctypes", "_curses", "_curses_panel", "_dbm", "_gdbm", "_hashlib", "_lzma", "_sqlite3", "_ssl",
    "_tkinter", "_uuid", "antigravity", "bz2", "crypt", "ctypes", "curses", "dbm", "distutils", "ensurepip",
    "idlelib", "lib2to3", "lzma", "nis", "ossaudiodev", "pydoc_data", "readline", "spwd", "sqlite3",
    "ssl", "test", "this", "tkinter", "turtle", "turtledemo", "uuid", "venv",
))
# fmt: on

_MOST_MODULES = 400

_interrupted = False  # whether a document was not checked to its end, by any scorer of this process


def _folders() -> list[str]:
    paths = sysconfig.get_paths()
    found = [paths["stdlib"], paths["platstdlib"]]
    return list(dict.fromkeys([*found, *(str(Path(each) / "lib-dynload") for each in found)]))


def is_visible(module: str) -> bool:
    """Return whether documents may import a module, by its dotted name."""
    top = module.partition(".")[0]
    return top in sys.stdlib_module_names and top not in _OPTIONAL


@contextmanager
def isolated() -> Iterator[None]:
    """Limit astroid to the document and the standard library inside the block."""
    from astroid import bases, builder, manager, objects
    from astroid.exceptions import AstroidImportError, InferenceError
    from astroid.modutils import file_info_from_modpath

    folders = _folders()
    instances = {bases.Instance, objects.ExceptionInstance}
    assign = builder.AstroidBuilder.delayed_assattr

    def find(_manager: Any, module: str, _context: str | None) -> Any:
        if not is_visible(module):
            raise AstroidImportError("Not visible: {modname}", modname=module)
        try:
            # Built-in modules have no folder.
            built_in = module in sys.builtin_module_names
            return file_info_from_modpath(module.split("."), path=None if built_in else folders)
        except ImportError as error:
            raise AstroidImportError("Not found: {modname}", modname=module) from error

    def belongs(inferred: Any, root: Any) -> bool:
        if isinstance(inferred, bases.Proxy) and type(inferred) not in instances:
            # Constants and containers, in which astroid records nothing.
            return True
        return getattr(inferred, "root", lambda: root)() is root

    def assign_at_home(self: Any, node: Any) -> None:
        try:
            owners = list(node.expr.infer())
        except InferenceError:
            return
        if all(belongs(owner, node.root()) for owner in owners):
            assign(self, node)

    with (
        mock.patch.object(manager.AstroidManager, "file_from_module_name", find),
        mock.patch.object(builder.AstroidBuilder, "delayed_assattr", assign_at_home),
    ):
        yield


def first_open_wildcard(tree: Any) -> float:
    """Return the line of the first `from MODULE import *` that may define any name; infinity if there is none.

    pylint sees all names of a module that is visible here and assigns `__all__` at most once.

    Args:
        tree: the tree of a document; call this inside `isolated`.
    """
    from astroid.nodes import ImportFrom

    wildcards = (each for each in tree.nodes_of_class(ImportFrom) if each.names[0][0] == "*")
    return min((each.lineno for each in wildcards if not _is_seen_whole(each)), default=math.inf)


def _is_seen_whole(wildcard: Any) -> bool:
    from astroid.exceptions import AstroidError
    from astroid.nodes import AssignName, Name

    try:
        module = wildcard.do_import_module()
    except AstroidError:
        return False
    mentions = [each for each in module.nodes_of_class((AssignName, Name)) if each.name == "__all__"]
    return len(mentions) <= 1


@contextmanager
def one_document() -> Iterator[None]:
    """Check a document in the block, and drop it and what was inferred with it.

    The caches are those of the process: a check that did not reach its end may have left any state, also for other
    scorers, and everything is dropped before the next one.
    """
    global _interrupted
    if _interrupted:
        clear_caches(everything=True)
    _interrupted = True
    yield
    clear_caches()
    _interrupted = False


def clear_caches(*, everything: bool = False) -> None:
    """Drop the document and what was inferred with it; with `everything`, or too many trees, all trees as well."""
    from astroid import context
    from astroid.astroid_manager import MANAGER
    from astroid.interpreter.objectmodel import ObjectModel
    from astroid.nodes import ClassDef
    from astroid.nodes._base_nodes import LookupMixIn
    from pylint.checkers.clear_lru_cache import clear_lru_caches

    # `astroid.inference_tip` the attribute is a function; import the module of that name.
    inference_tip = importlib.import_module("astroid.inference_tip")
    MANAGER.astroid_cache.pop(NAME, None)
    context._invalidate_cache()
    inference_tip.clear_inference_tip_cache()
    inference_tip._CURRENTLY_INFERRING.clear()
    clear_lru_caches()
    for cached in (LookupMixIn.lookup, ObjectModel.attributes, ClassDef._metaclass_lookup_attribute):
        cached.cache_clear()
    if everything or len(MANAGER.astroid_cache) > _MOST_MODULES:
        MANAGER.clear_cache()
