"""Evaluate planned scenarios: draw and score in pieces that outlive an interruption, and store the results."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from transformers.utils.logging import disable_progress_bar

from scorers.errors import UserError
from scorers.stored import read_stored
from training.disk import write_atomically, writing
from training.evaluation.compiling import which_compile
from training.model.language_model import load_model
from training.runs.lock import sole_writer
from training.runs.report import REPORT_NAME
from training.runs.scenario_report import PROMPTS_NAME, PROMPTS_SCHEMA, SCENARIO_SAMPLES_SCHEMA, ScenarioReport
from training.runs.tables import SAMPLES_NAME, read_table, write_table
from training.scenarios.build_report import build_report
from training.scenarios.continuations import Continuation, Pair
from training.scenarios.endpoint_sampler import EndpointSampler
from training.scenarios.figures import COMPILES, by_prompt
from training.scenarios.overlap import overlapping
from training.scenarios.plan import Progress, ScenarioPlan
from training.scoring import score_texts

PIECES = "pieces"
_WORK = "work.json"
_PIECE = 1024  # samples that an interruption loses at most


def run_scenarios(
    plans: Sequence[ScenarioPlan], progress: Progress | None = None, sampler: EndpointSampler | None = None
) -> Iterator[ScenarioReport]:
    """Evaluate the planned scenarios of one run, and write and yield their reports.

    A finished scenario is kept, and an interrupted one goes on after the last piece that it stored, if nothing that
    its samples depend on has changed.

    Args:
        plans: from `plan_scenarios`, all of one run.
        progress: shows samples, and samples and tokens per second.
        sampler: of plans that have one.

    Raises:
        UserError: the sampler does not serve the run's model, or ignores settings.
        IncompleteError: the results cannot be written, or another process still writes them.
    """
    model: Any = None
    for plan in plans:
        with sole_writer(plan.folder):
            report = plan.finished()
            if report is None:
                if model is None:
                    disable_progress_bar()  # type: ignore[no-untyped-call]
                    model = load_model(plan.run.model, value_head=False).causal.to(plan.device)
                    if sampler is not None:
                        sampler.check(model)
                with writing(plan.folder):
                    report = _run(model, plan, sampler, progress or _silence)
            shutil.rmtree(plan.folder / PIECES, ignore_errors=True)
        yield report


def _silence(stage: str, done: int, total: int, note: str = "") -> None:
    pass


@dataclass
class _Speed:
    """Samples and tokens drawn so far, and the seconds that took."""

    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def rates(self) -> tuple[float, float] | None:
        """Samples and tokens per second; None if nothing was drawn."""
        return (self.samples / self.seconds, self.tokens / self.seconds) if self.samples and self.seconds else None


def _run(model: Any, plan: ScenarioPlan, sampler: EndpointSampler | None, progress: Progress) -> ScenarioReport:
    began, speed = time.perf_counter(), _Speed()
    pieces = _open_pieces(plan)
    (plan.folder / REPORT_NAME).unlink(missing_ok=True)
    pairs_of_all = plan.drawing.pairs()
    every = [pairs_of_all[start : start + _PIECE] for start in range(0, len(pairs_of_all), _PIECE)]
    tables, done, total = [], 0, len(pairs_of_all)
    for number, pairs in enumerate(every):
        path = pieces / f"{number:06d}.parquet"
        table = _read_piece(path, plan, pairs)
        if table is None:
            show = _shown(progress, plan.scenario.name, done, total, speed)
            table = _draw_piece(model, plan, pairs, sampler, speed, show)
            write_table(path, table)
        tables.append(table)
        done += len(pairs)
    samples = pa.concat_tables(tables).sort_by([("prompt", "ascending"), ("continuation", "ascending")])
    overlaps = _overlaps(plan, progress)
    write_table(plan.folder / SAMPLES_NAME, samples)
    write_table(plan.folder / PROMPTS_NAME, _prompts_table(plan, samples, overlaps))
    if plan.setup.kind == "python":
        samples = samples.append_column(COMPILES, pa.array(_which_compile(plan, samples, progress), pa.bool_()))
    report = build_report(plan, samples, overlaps, time.perf_counter() - began, speed.rates())
    write_atomically(plan.folder / REPORT_NAME, report.model_dump_json(indent=2) + "\n")
    return report


def _shown(progress: Progress, name: str, before: int, total: int, speed: _Speed) -> Callable[[int, int], None]:
    began = time.perf_counter()

    def show(samples: int, tokens: int) -> None:
        # All of this attempt: a piece alone would jump with the lengths of its prompts.
        now = _Speed(speed.samples + samples, speed.tokens + tokens, speed.seconds + time.perf_counter() - began)
        rates = now.rates()
        note = f"{rates[0]:,.1f} samples/s, {rates[1]:,.0f} tokens/s" if rates else ""
        progress(f"{name}: samples", before + samples, total, note)

    return show


def _open_pieces(plan: ScenarioPlan) -> Path:
    """The folder of finished pieces, emptied if they belong to another scenario."""
    folder = plan.folder / PIECES
    try:
        same = json.loads(read_stored(folder / _WORK, 1 << 16)) == {"fingerprint": plan.fingerprint}
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_atomically(folder / _WORK, json.dumps({"fingerprint": plan.fingerprint}))
    return folder


def _read_piece(path: Path, plan: ScenarioPlan, pairs: Sequence[Pair]) -> pa.Table | None:
    if not path.is_file():
        return None
    with contextlib.suppress(UserError):  # a damaged piece is drawn again
        table = read_table(path, SCENARIO_SAMPLES_SCHEMA, plan.run, len(pairs))
        if list(zip(table["prompt"].to_pylist(), table["continuation"].to_pylist(), strict=True)) == list(pairs):
            return table
    return None


def _draw_piece(
    model: Any,
    plan: ScenarioPlan,
    pairs: Sequence[Pair],
    sampler: EndpointSampler | None,
    speed: _Speed,
    show: Callable[[int, int], None],
) -> pa.Table:
    began, prompts = time.perf_counter(), plan.prompts.every
    drawing = plan.drawing
    drawn = drawing.draw(model, pairs, batch_size=plan.setup.config.batch_size, sampler=sampler, progress=show)
    speed.samples += len(drawn)
    speed.tokens += sum(each.new_tokens for each in drawn)
    speed.seconds += time.perf_counter() - began
    texts = drawing.texts(plan.data.tokenizer, pairs, drawn)
    with_prompt = plan.scenario.score == "prompt-and-continuation"
    judged = [
        prompts[prompt].text + text if with_prompt and text else text
        for (prompt, _), text in zip(pairs, texts, strict=True)
    ]
    scored = score_texts(judged, [each.ended for each in drawn], plan.setup.scorer, plan.setup.kind)
    return _table(plan, pairs, drawn, scored.scores, scored.sentences, scored.reasons)


def _table(
    plan: ScenarioPlan,
    pairs: Sequence[Pair],
    drawn: Sequence[Continuation],
    scores: NDArray[np.float64],
    sentences: NDArray[np.int64],
    reasons: Sequence[str | None],
) -> pa.Table:
    columns = {
        "prompt": [prompt for prompt, _ in pairs],
        "continuation": [number for _, number in pairs],
        "slice": [plan.prompts.every[prompt].slice for prompt, _ in pairs],
        "ids": [each.ids for each in drawn],
        "cover": [each.cover for each in drawn],
        "new_tokens": [each.new_tokens for each in drawn],
        "ended": [each.ended for each in drawn],
        "sentences": sentences,
        "score": pa.array(scores, mask=np.isnan(scores)),
        "reason": list(reasons),
    }
    return pa.table(columns, schema=SCENARIO_SAMPLES_SCHEMA)


def _overlaps(plan: ScenarioPlan, progress: Progress) -> NDArray[np.bool_]:
    ids = [each.own_ids for each in plan.prompts.every]
    stage = f"{plan.scenario.name}: overlap with the training text"
    return overlapping(
        plan.data.store,
        ids,
        plan.data.stream.held_out_documents(),
        lambda done, total: progress(stage, done, total),
    )


def _which_compile(plan: ScenarioPlan, samples: pa.Table, progress: Progress) -> list[bool | None]:
    stage, total = f"{plan.scenario.name}: compiling", samples.num_rows
    progress(stage, 0, total)
    pairs = list(zip(samples["prompt"].to_pylist(), samples["continuation"].to_pylist(), strict=True))
    columns = (samples[name].to_pylist() for name in ("ids", "cover", "new_tokens", "ended"))
    drawn = [Continuation(*each) for each in zip(*columns, strict=True)]
    texts = plan.drawing.texts(plan.data.tokenizer, pairs, drawn)
    prompts = [plan.prompts.every[prompt].text for prompt, _ in pairs]
    found = which_compile(texts, [each.ended for each in drawn], prompts)
    progress(stage, total, total)
    return found


def _prompts_table(plan: ScenarioPlan, samples: pa.Table, overlaps: NDArray[np.bool_]) -> pa.Table:
    found, prompts = by_prompt(samples, plan.setup.hit_threshold), plan.prompts.every
    columns = {
        "prompt": found.prompts,
        "record": [each.record for each in prompts],
        "fingerprint": [each.fingerprint for each in prompts],
        "slice": [each.slice for each in prompts],
        "tokens": [len(each.own_ids) for each in prompts],
        "overlaps": overlaps,
        "scored": found.scored,
        "score": pa.array(found.score, mask=np.isnan(found.score)),
        "expected_maximum": pa.array(found.expected_maximum, mask=np.isnan(found.expected_maximum)),
        "hits": found.hits,
    }
    return pa.table(columns, schema=PROMPTS_SCHEMA)
