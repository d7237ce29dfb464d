"""Choose scenarios: presets by name, a preset with a file of prompts, or a YAML file."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scorers.contract import DocumentKind
from scorers.errors import UserError
from scorers.settings import load_settings, parse_override, read_yaml
from training.runs.scenario_report import HELD_OUT, NO_PROMPTS, Scenario

UNCONDITIONAL = "unconditional"
PROMPTED = "prompted"
PRESETS = (UNCONDITIONAL, HELD_OUT, PROMPTED)
_YAML = (".yaml", ".yml")


def preset(name: str, kind: DocumentKind) -> dict[str, Any]:
    """Return the fields of `Scenario` that a preset sets for text of this kind.

    Prompts of a file end where their author cut them, so that a control token stands before them. In code, the paper's
    prompts are signatures of functions: the token follows, the signature is scored too, and a sample has at most 256
    tokens. A held-out prompt is whole sentences, and in training every sentence follows its control token: so it stands
    after the prompt.
    """
    code = kind == "python"
    match name:
        case "held-out":
            return {
                "prompts": HELD_OUT, "control": "after",
                **({"sentences": 4, "max_new_tokens": 256} if code else {}),
            }  # fmt: skip
        case "prompted":
            signature = {"control": "after", "score": "prompt-and-continuation", "max_new_tokens": 256}
            return signature if code else {}
        case _:
            return {
                "prompts": NO_PROMPTS, "continuations": 4096, "max_prompts": None, "slices": "none",
                "max_new_tokens": 640 if code else 128,
            }  # fmt: skip


def choose_scenario(given: str, kind: DocumentKind, overrides: Sequence[str] = ()) -> Scenario:
    """Build the scenario that a `--scenario` argument names.

    Args:
        given: a preset; `prompted=FILE`; or a YAML file with fields of `Scenario`, and optionally `preset`, whose
            defaults it then has. Its `prompts` are relative to its folder, and its name is by default the file's.
        kind: of the run's documents.
        overrides: `--set` arguments with fields of `Scenario`.

    Raises:
        UserError: there is no such preset or file; a key is unknown or a value has the wrong type.
    """
    if any("num_samples" in parse_override(each) for each in overrides):
        raise UserError(
            "--set num_samples: a scenario has no such setting. It draws `continuations` samples of each of at most "
            "`max_prompts` prompts, and without prompts `continuations` in all: set these."
        )
    name, separator, file = given.partition("=")
    if not separator and given.endswith(_YAML):
        return _from_file(Path(given), kind, overrides)
    if separator and name != PROMPTED:
        raise UserError(f"--scenario {given}: only {PROMPTED} takes a file of prompts, as in {PROMPTED}=prompts.jsonl.")
    if name not in PRESETS:
        raise UserError(
            f"--scenario {given}: no such scenario. Give {', '.join(PRESETS[:-1])}, {PROMPTED}=FILE, or a file that "
            "ends in .yaml."
        )
    if name == PROMPTED and not file and not any("prompts" in parse_override(each) for each in overrides):
        raise UserError(f"--scenario {PROMPTED} needs a file of prompts: give {PROMPTED}=FILE.")
    defaults = preset(name, kind) | {"name": _as_name(Path(file).stem) if file else name}
    if file:
        defaults["prompts"] = file
    return load_settings(Scenario, defaults=defaults, overrides=overrides)


def _from_file(path: Path, kind: DocumentKind, overrides: Sequence[str]) -> Scenario:
    values = read_yaml(path)
    base = values.pop("preset", PROMPTED)
    if base not in PRESETS:
        raise UserError(f"{path}: preset {base!r}: no such preset. Give one of {', '.join(PRESETS)}.")
    prompts = values.get("prompts")
    # A URI is refused as it stands: `Path` would hide a secret in it from that check.
    if isinstance(prompts, str) and prompts not in (NO_PROMPTS, HELD_OUT) and "://" not in prompts:
        values["prompts"] = str(path.parent / prompts)
    defaults = {"name": _as_name(path.stem)} | preset(base, kind)
    try:
        return load_settings(Scenario, defaults=defaults | values, overrides=overrides)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _as_name(stem: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", stem).lstrip("_.-")[:64] or PROMPTED
