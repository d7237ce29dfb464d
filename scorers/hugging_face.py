"""Load models and tokenizers of Hugging Face's transformers without running any code of theirs.

A model may come from anybody. Its JSON can ask for its own Python (`auto_map`), for compiled kernels of another
repository, for a base model elsewhere with a module to import (an adapter), or for a quantiser; its weights can be a
pickle. Every foreign model is loaded through this module, which refuses all of that.
"""

import os
import pickle
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging import LogRecord, getLogger
from pathlib import Path
from typing import Any

from scorers.errors import UserError
from scorers.paths import escape_path
from scorers.printing import message
from scorers.stored import parse_json, read_stored

# If the package `kernels` is installed, transformers otherwise downloads compiled code for some architectures. The
# variable is read when transformers is imported.
os.environ.setdefault("USE_HUB_KERNELS", "0")


def load_config(name: str, **overrides: Any) -> Any:
    """Load a model's configuration.

    Args:
        name: folder, or name on the hub.
        overrides: fields that replace its own.

    Raises:
        UserError: it asks for code or for a quantiser, or its folder holds a device.
        OSError: it is missing or cannot be read.
        ValueError: it is not a valid configuration.
    """
    refuse_devices(name)
    try:
        return _load_config(name, overrides)
    except (UserError, OSError, ValueError):
        raise
    except Exception as error:  # noqa: BLE001 - a field of the wrong type may raise anything
        raise _no_value(error) from None


def _load_config(name: str, overrides: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    with _no_code(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **overrides)
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(
            f"The model {name!r} is quantised (quantization_config in its config.json). Use one that is not quantised."
        )
    for each in _with_parts(config):
        if "/" in f"{each._attn_implementation}{each._experts_implementation}":
            raise UserError(
                f"The model {name!r} asks for compiled code of another repository (attn_implementation in its "
                "config.json), which phf does not run. Remove that field."
            )
        # This machine chooses how attention and experts are computed.
        each._attn_implementation = each._experts_implementation = None
    return config


def load_model(auto: Any, name: str, *, config: Any = None, **options: Any) -> Any:
    """Load a model with its weights.

    Args:
        auto: one of transformers' auto classes.
        name: folder, or name on the hub.
        config: from `load_config`; None for the folder's own.
        options: passed to `from_pretrained`.

    Raises:
        UserError: it asks for code or for weights elsewhere, its weights are damaged or a pickle of something else, or
            its folder holds a device.
        Exception: whatever transformers raises if it cannot load the model.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers.utils.logging import disable_progress_bar

    # It counts weights, in less than a second, between the lines of ours.
    disable_progress_bar()  # type: ignore[no-untyped-call]
    refuse_devices(name)
    config = load_config(name) if config is None else config
    _check_files(name, config)
    try:
        with _no_code(name):
            return auto.from_pretrained(name, config=config, trust_remote_code=False, **options)
    except (pickle.UnpicklingError, EOFError):
        pass
    except (IndexError, ArithmeticError, AssertionError, StrictDataclassError) as error:
        raise _no_value(error) from None
    except RuntimeError as error:
        if not any(reader in str(error) for reader in ("PytorchStreamReader", "inline_container")):
            raise
    raise UserError(
        f"Cannot load the weights of model {name!r}: {_pickled(name)} is damaged, or a pickle that holds more than "
        "weights; it is not loaded. Save the model as safetensors."
    ) from None


def load_tokenizer(name: str, **options: Any) -> Any:
    """Load a tokenizer.

    Args:
        name: folder, or name on the hub.
        options: passed to `from_pretrained`.

    Raises:
        UserError: it asks for code, or its folder holds a device.
        Exception: whatever transformers raises if it cannot load the tokenizer.
    """
    from transformers import AutoTokenizer

    refuse_devices(name)
    with _no_code(name):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)


def refuse_devices(name: str) -> None:
    """Refuse a folder that holds a pipe, a socket or a device, which reading may never end.

    Links are followed: the hub's cache consists of them. A name on the hub is not checked.

    Raises:
        UserError: names the first one found.
    """
    folder = Path(name)
    for path in (folder, *folder.glob("*"), *folder.glob("*/*")):
        with suppress(OSError):  # not there, or a link to nothing
            if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):
                raise UserError(
                    f"{escape_path(str(path))} is neither a file nor a folder, so reading it may never end. Remove it "
                    "from the model or tokenizer, or use another."
                )


def _no_value(error: Exception) -> ValueError:
    return ValueError(escape_path(f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]))


def _with_parts(config: Any) -> Iterator[Any]:
    yield config
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if part is not None:
            yield from _with_parts(part)


def _printable(record: LogRecord) -> bool:
    record.msg, record.args = message(record.getMessage()), ()
    return True


@contextmanager
def _no_code(name: str) -> Iterator[None]:
    from transformers import dynamic_module_utils

    # A tokenizer or model of several parts does not pass `trust_remote_code` on to them: transformers would then ask on
    # the terminal and wait this many seconds.
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    # Warnings of transformers quote text from the folder.
    for handler in getLogger("transformers").handlers:
        handler.addFilter(_printable)
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UserError(
            f"{name!r} cannot be loaded without running its own Python (auto_map in its JSON), and phf runs no code of "
            "a model or tokenizer. Use an architecture that transformers itself has."
        ) from None


def _check_files(name: str, config: Any) -> None:
    from transformers.utils.peft_utils import find_adapter_config_file

    if getattr(config, "transformers_weights", None) is not None:
        # The field may name an index in a subfolder, which names weights anywhere; and a scorer hashes the usual files.
        raise UserError(
            f"The model {name!r} names the file of its weights itself (transformers_weights in its config.json), which "
            "phf does not follow. Rename the file to model.safetensors, and remove that field."
        )
    if find_adapter_config_file(name) is not None:
        raise UserError(
            f"The model {name!r} has an adapter (adapter_config.json), which can name weights and code elsewhere. "
            "Merge the adapter into its base model, and use that."
        )
    for index in Path(name).glob("*.index.json") if Path(name).is_dir() else ():
        try:
            files = set(parse_json(read_stored(index))["weight_map"].values())
            outside = [each for each in files if Path(each).name != each]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{index} is damaged: it has no weight_map. Restore it.") from None
        if outside:
            raise UserError(f"{index} names weights outside its folder ({outside[0]!r}); they are not loaded.")


def _pickled(name: str) -> str:
    return next((each.name for each in sorted(Path(name).glob("pytorch_model*.bin"))), "a file of them")
