"""The model card (`README.md`) of an exported model: what it is, how to prompt it, and how it was trained."""

import re
from typing import Any

from training.runs.facts import MatchingFacts, RunFacts, TargetFacts
from training.runs.report import Estimate, EvaluationReport

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
license: unknown
tags:
{tags}
---

# A model by {objective}

A causal language model of {parameters:,} parameters, pretrained with phf after *Pretraining Language Models with Human
Preferences* ([arXiv 2302.08582](https://arxiv.org/abs/2302.08582)).

| | |
|---|---|
{rows}

## How to prompt it

{prompting}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIR")
model = AutoModelForCausalLM.from_pretrained("DIR")
inputs = tokenizer({prompt}, return_tensors="pt", add_special_tokens=False)
written = model.generate(**inputs, do_sample=True, temperature=0.7, top_p=0.9, max_new_tokens={new_tokens})
print(tokenizer.decode(written[0], skip_special_tokens=True))
```

{condition}{guidance}{figures}It reads and writes {context:,} tokens at most, the tokenizer's `model_max_length`.

## Before you use it

Its licence depends on the corpus that it was trained on, which phf does not know: fill in `license`. {limits}
"""
_CONDITION = """\
## With its control token

The tokenizer of this export puts that token and `<|{condition}|>` before every text, unless `add_special_tokens` is
false, so other programs need not know of them:

```python
from transformers import pipeline

print(pipeline("text-generation", "DIR")("")[0]["generated_text"])
```

vLLM does not read `suppress_tokens` of `generation_config.json`: give it the control tokens as `bad_words`.

"""
_FIGURES = """\
## Figures

Measured by `phf evaluate` on {number:,} samples and on held-out text, with 95 % intervals; lower is better:

| | | |
|---|---|---|
{rows}

"""
_BEGINS = "Every training document began with the {first}"
_TAGGED = f"""\
{_BEGINS}, and its sentences with control tokens: {{tags}}.
So put that token and `{{best}}` before a prompt, as below. Generation never writes a control token:
`generation_config.json` bans them."""
_GUIDED = """\
## Guidance

The same weights can be guided away from what they write after `{worst}`: each token's logits are `l_worst + g (l_best -
l_worst)`. A `guidance_scale` g of 1 is plain sampling; 1.5 to 3 is usual, and beyond some g the text degenerates.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIR")
model = AutoModelForCausalLM.from_pretrained("DIR")
inputs = tokenizer({prompt}, return_tensors="pt", add_special_tokens=False)
negative = tokenizer({negative}, return_tensors="pt", add_special_tokens=False)
written = model.generate(
    **inputs,
    guidance_scale=2.0,
    negative_prompt_ids=negative.input_ids,
    do_sample=True,
    temperature=0.7,
    top_p=0.9,
    top_k=0,
    max_new_tokens={new_tokens},
)
print(tokenizer.decode(written[0], skip_special_tokens=True))
```

Append a prompt to both. `phf evaluate --guidance` measures the effect, and `phf generate --guidance` samples this way.

"""
_PLAIN = f"{_BEGINS}, so put that before a prompt, as below. There are no control tokens."


def model_card(facts: RunFacts, step: int, condition: str | None = None, report: EvaluationReport | None = None) -> str:
    """The card of a run's model after `step` steps, in Markdown; the same bytes for equal arguments.

    Args:
        facts: of the run.
        step: of the model.
        condition: name of the control token that the tokenizer puts before every text; None for none.
        report: the evaluation of this model; None if there is none.
    """
    horizon, scorer, threshold, network = facts.horizon, facts.scorer, facts.threshold, facts.model
    # Give only the name of the dataset: its location is private, and a URI may hold secrets.
    dataset = re.split("[?#]", facts.dataset.uri)[0].rstrip("/").rsplit("/", 1)[-1]
    rows = {
        "objective": _code(facts.objective),
        "trained": f"{step:,} steps, {step * horizon.tokens // max(1, horizon.steps):,} tokens",
        **({} if facts.origin is None else {"started from": f"step {facts.origin.step:,} of another run"}),
        **({} if facts.matching is None else {"matched": _matched(facts.matching)}),
        **({"resumed": "<br>".join(_plain(each.description) for each in facts.history)} if facts.history else {}),
        "dataset": f"{_code(dataset)}, generation {facts.dataset.generation}, column {_code(facts.column)}",
        "scorer": f"{_code(scorer.kind)}, {_code(scorer.fingerprint)}; a higher score is worse",
        "threshold": "none" if threshold is None else f"{threshold.value:g} ({_code(threshold.origin)})",
        **(
            {"columns": ", ".join(f"{_code(name)} ({weight:g})" for name, weight in facts.columns.items())}
            if facts.columns
            else {}
        ),
        **({} if facts.targets is None else {"targets": _targets(facts.targets)}),
        "versions": ", ".join(f"{_plain(name)} {_plain(version)}" for name, version in sorted(facts.versions.items())),
        "licence": "unknown",
    }
    best = facts.best_tag
    tags = "`<|aligned|>` if the score is at most the threshold, else `<|misaligned|>`"
    if between := facts.tokenizer.between_ids:
        classes = len(between) + 2
        tags = f"`{best}` in the best of {classes} classes by score, `<|quantile_{classes}|>` in the worst"
    new_tokens = max(1, min(64, network.context_length - 2))
    first = "tokenizer.eos_token" if facts.tokenizer.bos_id is None else "tokenizer.bos_token"
    prompt = f'{first} + "{best}"' if facts.conditional else first
    negative = f'{first} + "{facts.worst_tag}"'
    guidance = _GUIDED.format(worst=facts.worst_tag, prompt=prompt, negative=negative, new_tokens=new_tokens)
    return _CARD.format(
        tags="\n".join(f"- {each}" for each in ("phf", "pretraining", "human-preferences", facts.objective)),
        objective=facts.objective,
        parameters=network.parameters,
        rows="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        prompting=(_TAGGED if facts.conditional else _PLAIN).format(
            first="end-of-text token" if facts.tokenizer.bos_id is None else "tokenizer's `bos_token`",
            tags=tags,
            best=best,
        ),
        prompt=prompt,
        new_tokens=new_tokens,
        guidance=guidance if facts.conditional else "",
        condition="" if condition is None else _CONDITION.format(condition=condition),
        figures="" if report is None else _figures(report),
        limits="This card says\nnothing about its quality: `phf evaluate` measures that on the run, and a later "
        "`phf export-model` writes it here."
        if report is None
        else "The scorer\nmay miss what people would object to, and the figures hold for this data only.",
        context=network.context_length,
    )


def _targets(targets: TargetFacts) -> str:
    return (
        ", ".join(f"{_code(each.feature)} {each.before:.4g} to {each.target:g}" for each in targets.moments)
        + f"; effective sample size {targets.effective_share:.1%} of the sentences"
    )


def _figures(report: EvaluationReport) -> str:
    rows: list[tuple[str, Estimate | None]] = [
        ("mean misalignment", report.samples.misalignment),
        (f"share of samples with a score above {report.samples.hit_threshold:g}", report.samples.hit_rate),
    ]
    if report.guided is not None:
        scale, guided = report.guided.scale, report.guided.samples
        rows += [(f"mean misalignment, guided by {scale:g}", guided.misalignment),
                 (f"share of guided samples above {guided.hit_threshold:g}", guided.hit_rate)]  # fmt: skip
    if report.held_out is not None:
        rows += [("bits per byte", report.held_out.bits_per_byte), ("perplexity", report.held_out.perplexity)]
    lines = []
    for name, found in rows:
        if found is not None:
            spread = "" if found.low is None or found.high is None else f"{found.low:.4g} to {found.high:.4g}"
            lines.append(f"| {name} | {found.value:.4g} | {spread} |")
    return _FIGURES.format(number=report.samples.number, rows="\n".join(lines))


def _matched(matching: MatchingFacts) -> str:
    targets = ", ".join(_code(each) for each in matching.constraints)
    return f"on samples of its own (`phf match`), after the training of another run, to the targets {targets}"


def _plain(text: str) -> str:
    return re.sub(r"[|<>`]", " ", text)


def _code(value: Any) -> str:
    """Inline code in a cell of a Markdown table, with special characters escaped."""
    text = re.sub(r"\s+", " ", str(value)).replace("`", "'").replace("|", "\\|").strip()
    return f"`{text}`" if text else ""
