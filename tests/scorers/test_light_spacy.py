"""Splitting and finding entities load no torch, which others can import later."""

import subprocess
import sys


def test_neither_sentences_nor_entities_load_torch_which_can_be_imported_later():
    code = (
        "import sys\n"
        "from scorers.registry import ScorerSpec, build\n"
        "from scorers.sentences import document\n"
        "text = 'Mary Miller went to London. She wrote to Angela Merkel.'\n"
        "scores = build('pii', ScorerSpec(kind='scrubadub')).score([document(text)])\n"
        "print((scores[0] > 0).tolist(), 'torch' in sys.modules)\n"
        "import torch\n"
        "print(torch.ones(2).sum().item())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[True, True] False", "2.0"]
