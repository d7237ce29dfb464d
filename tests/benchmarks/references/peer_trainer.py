"""Train on random tokens with transformers' `Trainer` on one thread, and print the CPU seconds of each step.

peer_trainer.py SETTING, a JSON object: `config` of a GPT-2, `context`, `micro` (blocks at once), `accumulation`, and
`steps`; two more go before them.
"""

import itertools
import json
import sys
import tempfile
import time
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

WARM_UP = 2


class Clock(TrainerCallback):  # type: ignore[misc]
    """Notes the process's CPU time at the end of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """See the class."""
        self.times.append(time.process_time())


def main(setting: dict[str, Any]) -> None:
    """Train, and print a JSON list of seconds."""
    torch.set_num_threads(1)
    config = GPT2Config(**setting["config"])
    steps = WARM_UP + setting["steps"]
    blocks = setting["micro"] * setting["accumulation"]
    tokens = torch.randint(config.vocab_size, (blocks * steps, setting["context"]))
    data = [{"input_ids": row, "labels": row} for row in tokens]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=setting["micro"],
            gradient_accumulation_steps=setting["accumulation"],
            max_grad_norm=1.0,
            learning_rate=5e-4,
            weight_decay=0.1,
            optim="adamw_torch_fused",
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        Trainer(GPT2LMHeadModel(config), arguments, train_dataset=data, callbacks=[clock]).train()
    times = clock.times[WARM_UP - 1 :]
    print(json.dumps([after - before for before, after in itertools.pairwise(times)]))  # noqa: T201


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
