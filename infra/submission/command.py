"""Build `phf submit KIND` from the command of a job: its own arguments and options, and those of the places."""

import dataclasses
import inspect
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from infra.submission.job import Job, Kind, Task, job_id
from infra.submission.options import PANEL
from infra.submission.place import Place, place_of
from infra.submission.store import JobFiles, Store, state_folder
from scorers.errors import UserError
from scorers.printing import message, printable, without_secrets
from scorers.rehearsal import rehearse

_DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Check the job, print what would be submitted, and submit nothing.", rich_help_panel=PANEL
    ),
]


def submit_command(
    kind: Kind, job: Callable[..., object], places: Mapping[str, Place], without: Sequence[str] = ()
) -> Callable[..., None]:
    """Return the function of `phf submit KIND`, for Typer.

    Args:
        kind: of the job.
        job: the function of its command.
        places: by name.
        without: parameters of the command that mean nothing where it is submitted.
    """
    own = [each for name, each in inspect.signature(job, eval_str=True).parameters.items() if name not in without]
    options = _options(places)
    names_of_places = {name: name for name in places}
    where: Any = Enum("Place", names_of_places, type=str)  # type: ignore[misc] # known only here
    on = Annotated[where, typer.Option("--on", help="Where to run it.", rich_help_panel=PANEL)]

    def submit(context: typer.Context, **given: Any) -> None:
        place = places[given["on"].value]
        typed = {name for name in given if _was_typed(context, name)}
        chosen = _choose(place, {name: given[name] for name in options if name in typed}, places)
        names = [each.name for each in own]
        words = _words(context, [name for name in names if name in typed])
        _refuse_secrets(words)
        here = str(Path.cwd())
        draft = Job(id=f"{kind}-00000000", kind=kind, words=(kind, *words), folder=here, output="", place=place.name)
        arguments = {**{name: given[name] for name in names}, **_decided(place, kind, typed & set(names))}
        rehearsal = dataclasses.replace(
            place.rehearsal(draft, chosen), cluster="address" in place.decides.get(kind, {})
        )
        passed = rehearse(lambda: job(**arguments), rehearsal)
        for _, task in passed.tasks:
            # What the file of a sweep says.
            _refuse_secrets(task)
        tasks = tuple(Task(name=name, words=tuple(words)) for name, words in passed.tasks)
        changes = {"id": job_id(kind, passed.output), "output": passed.output, "tasks": tasks}
        ready = draft.model_copy(update=changes)
        if given["dry_run"]:
            sys.stdout.write(printable(place.render(ready, chosen, JobFiles(state_folder(), ready.id)), keep="\n"))
            return
        _submit(place, ready, chosen, places)

    keyword = inspect.Parameter.KEYWORD_ONLY
    submit.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter("context", keyword, annotation=typer.Context),
            *(each.replace(kind=keyword) for each in own),
            inspect.Parameter("on", keyword, annotation=on),
            inspect.Parameter("dry_run", keyword, annotation=_DryRun, default=False),
            *(
                inspect.Parameter(name, keyword, annotation=hint, default=default)
                for name, (hint, default) in options.items()
            ),
        ]
    )
    submit.__annotations__ = {
        each.name: each.annotation
        for each in inspect.signature(submit).parameters.values()  # what Typer reads beside the signature
    }
    return submit


def _options(places: Mapping[str, Place]) -> dict[str, tuple[Any, Any]]:
    """Return the annotation and the default of the options of all places, by name."""
    found: dict[str, tuple[Any, Any]] = {}
    for place in places.values():
        hints = get_type_hints(place.Options, include_extras=True)
        for field in dataclasses.fields(place.Options):
            found.setdefault(field.name, (hints[field.name], field.default))
    return found


def _was_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _choose(place: Place, given: Mapping[str, Any], places: Mapping[str, Place]) -> Any:
    """Return the options of a place; refuse those of other places."""
    taken = {field.name for field in dataclasses.fields(place.Options)}
    for name in given.keys() - taken:
        others = [
            f"--on {each.name}"
            for each in places.values()
            if any(field.name == name for field in dataclasses.fields(each.Options))
        ]
        raise UserError(
            f"--{name.replace('_', '-')} means nothing with --on {place.name}; it is for {', '.join(others)}."
        )
    return place.Options(**given)


def _decided(place: Place, kind: Kind, typed: Collection[str]) -> Mapping[str, Any]:
    """Return the parameters of the job's command that the place decides; refuse those that were given."""
    decided = place.decides.get(kind, {})
    if given := sorted(decided.keys() & typed):
        names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"With --on {place.name} the place decides {names}: leave that out.{place.instead(kind)}")
    return decided


def _words(context: typer.Context, names: Sequence[str]) -> list[str]:
    """Return the words that give the job's command these parameters as they were given here; arguments come last."""
    words: list[str] = []
    arguments: list[str] = []
    for parameter in context.command.params:
        if parameter.name not in names:
            continue
        value = context.params[parameter.name]
        values = [str(each) for each in (value if isinstance(value, list | tuple) else [value])]
        if parameter.param_type_name == "argument":
            arguments += values
        elif getattr(parameter, "is_flag", False):
            words.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            flag = max(parameter.opts, key=len)
            words += [word for each in values for word in ([f"{flag}={each}"] if each[:1] == "-" else [flag, each])]
    return [*words, *(["--"] if any(each[:1] == "-" for each in arguments) else []), *arguments]


def _refuse_secrets(words: Sequence[str]) -> None:
    for word in words:
        if without_secrets(word) != word:
            raise UserError(
                f"The argument {without_secrets(word)} holds a password, a token or a signature, which would end up in "
                "scripts and records. Give credentials in the environment (AWS_ACCESS_KEY_ID, HF_TOKEN and the like)."
            )


def _submit(place: Place, job: Job, options: Any, places: Mapping[str, Place]) -> None:
    store = Store()
    # Before the place is asked anything: wrong usage is reported wherever the command is run.
    place.render(job, options, store.files(job.id))
    place.check(job, options)
    with store.submitting(job.id) as files:
        before = store.find(job.id)
        if before is not None:
            status = place_of(before, places).status(before, files)
            if status.state.is_alive:
                raise UserError(
                    f"{job.id} already writes to {without_secrets(job.output)}: it is {status.state} "
                    f"(--on {before.place}). Follow it with: phf jobs {job.id} --follow"
                )
        job = job.model_copy(update={"submitted_at": time.time()})
        if files.log.exists():
            now = datetime.now().astimezone()
            files.add_to_log(f"--- submitted again, {now:%Y-%m-%d %H:%M:%S} ---\n".encode())
        with files.begin_attempt(place.name):
            store.write(job.model_copy(update={"handle": place.submit(job, options, files)}))
    sys.stdout.write(f"{job.id}\n")
    again = "Submitted again; it continues where it stopped." if before is not None else "Submitted."
    sys.stderr.write(message(f"{again} Follow it with: phf jobs {job.id} --follow\n"))
