"""`python -m tests.architectures [KIND...]`: try architectures, and write the table in `training/README.md`.

Outcomes are stored in a file as they come, and architectures in it are not tried again: delete it to start over.
"""

import argparse
import json
import shutil
import tempfile
import time
import traceback
from pathlib import Path

import torch
import transformers

from tests.architectures.configs import KINDS
from tests.architectures.lifecycle import try_architecture
from tests.architectures.table import write_table
from tests.training.real_runs import make_code_dataset
from tests.training.stores import byte_tokenizer


def main() -> None:
    """Try the architectures, store the outcomes, and write the table once it is complete."""
    parser = argparse.ArgumentParser(prog="python -m tests.architectures", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="model types; by default all that were not yet tried")
    parser.add_argument("--outcomes", type=Path, default=Path("architectures.json"), help="file of the outcomes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    outcomes = json.loads(given.outcomes.read_text()) if given.outcomes.exists() else {}
    with tempfile.TemporaryDirectory(prefix="phf-architectures-") as made:
        place = Path(made)
        dataset, padded = make_code_dataset(place / "labelled"), place / "tokenizer"
        byte_tokenizer(padding="<pad>").save_pretrained(padded)
        for kind in given.kinds or [each for each in KINDS if each not in outcomes]:
            began = time.monotonic()
            try:
                outcomes[kind] = try_architecture(kind, dataset, padded, place / kind)
            except Exception as error:  # noqa: BLE001 - continue with the next
                traceback.print_exc()
                outcomes[kind] = f"DEFECT: {type(error).__name__}: {error}"
            shutil.rmtree(place / kind, ignore_errors=True)
            given.outcomes.write_text(json.dumps(outcomes, indent=1) + "\n")
            print(f"{kind}: {outcomes[kind]} ({time.monotonic() - began:.1f} s)", flush=True)  # noqa: T201
    if set(outcomes) >= set(KINDS):
        write_table(outcomes)


if __name__ == "__main__":
    main()
