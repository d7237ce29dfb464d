"""The registry of scorer kinds: parse a column's specification, check it and build the scorer.

A new kind is one file and one line in `KINDS`, or an entry point of the group `phf.scorers` in another package.
"""

import importlib
import re
from collections.abc import Collection, Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, cast, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from scorers.contract import DocumentKind, Execution, Scorer, ScorerType, SemanticOptions
from scorers.errors import UserError
from scorers.languages import Languages
from scorers.paths import escape_path
from scorers.settings import validate

ENTRY_POINT_GROUP = "phf.scorers"

KINDS = {
    "detoxify": "scorers.classifiers.detoxify:DetoxifyScorer",
    "linear": "scorers.linear:LinearScorer",
    "classifier": "scorers.classifiers.classifier:ClassifierScorer",
    "token-classifier": "scorers.classifiers.token_classifier:TokenClassifierScorer",
    "scrubadub": "scorers.pii.scrubadub:ScrubadubScorer",
    "pycodestyle": "scorers.linters.pycodestyle:PycodestyleScorer",
    "pylint": "scorers.linters.pylint:PylintScorer",
    "ruff": "scorers.linters.ruff:RuffScorer",
    "column": "scorers.column:ColumnScorer",
}

LANGUAGE_FIELD = "language"

DEFAULT_KINDS = {"toxicity": "detoxify", "pii": "scrubadub", "pep8": "pycodestyle", "pylint": "pylint"}

_COLUMN = re.compile(r"[a-z][a-z0-9_]*\Z")
_FORM = "COLUMN[=KIND[:VALUE][,OPTION=VALUE...]], such as pii, toxicity=linear or toxicity=detoxify:unbiased"


class ScorerSpec(BaseModel):
    """A kind and the options given for it; `resolve` checks them and fills in the defaults.

    In YAML either a mapping, `{kind: detoxify, model: unbiased}`, or the command line's form, `detoxify:unbiased`.
    """

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    kind: str
    """Kind of the scorer, one that `phf scorers` lists; its options are further keys."""
    spans: bool = Field(default=False, exclude_if=lambda spans: not spans)
    """Also store where the scorer found something, in the column `<column>_spans`; changes no score."""
    languages: Languages = Field(default=(), exclude_if=lambda languages: not languages)
    """Languages that the scorer speaks, such as `[en, pt-BR]`; its column is null for documents in others. Empty for
    all.
    """
    language_field: str = Field(default=LANGUAGE_FIELD, min_length=1, exclude_if=lambda field: field == LANGUAGE_FIELD)
    """Field of a record with its language, as a tag such as `en` or `pt-BR`."""

    @property
    def options(self) -> dict[str, Any]:
        """Return the given options, unchecked."""
        return dict(self.model_extra or {})

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        try:
            return _read_text(value) if isinstance(value, str) else value
        except UserError as error:
            raise ValueError(str(error)) from None


def parse_scorer(text: str) -> tuple[str, ScorerSpec]:
    """Parse `toxicity=detoxify:unbiased` into the column and its specification.

    A column alone takes its default kind: `pii` is `pii=scrubadub`, and a kind's own name is a column of that kind.
    The value after the colon sets the kind's main option; more options follow after commas:
    `toxicity=detoxify:/models/my.ckpt,config=/models/config`.

    Raises:
        UserError: the text has another form, an invalid column name, an unknown kind or an invalid option.
    """
    column, separator, rest = text.partition("=")
    if ":" in column or "," in column:
        raise UserError(f"--scorer {text!r}: name the column first: {_FORM}.")
    check_column(column)
    if separator and not rest:
        raise UserError(f"--scorer {text!r} names no kind after the '='; expected {_FORM}.")
    return column, validate(ScorerSpec, _read_text(rest or default_kind(column)), f"--scorer {text!r} is not valid")


def parse_scorers(texts: Iterable[str]) -> dict[str, ScorerSpec]:
    """Parse several specifications into a mapping by column, in the order given; see `parse_scorer`.

    Raises:
        UserError: as `parse_scorer`, or a column is given twice.
    """
    specs: dict[str, ScorerSpec] = {}
    for text in texts:
        column, spec = parse_scorer(text)
        if column in specs:
            raise UserError(
                f"--scorer {text}: the column {column!r} is given twice; name another column for one of them."
            )
        specs[column] = spec
    return specs


def check_column(column: str) -> None:
    """Refuse a name that cannot be a column of scores.

    Raises:
        UserError: it is not lower case letters, digits and underscores, or ends in `_aligned`, as columns of tags do.
    """
    if not _COLUMN.match(column):
        raise UserError(
            f"{column!r} cannot name a column: use lower case letters, digits and underscores, starting with a letter. "
            f"Write a scorer as {_FORM}."
        )
    if column.endswith("_aligned"):
        raise UserError(f"{column!r} cannot name a column of scores: '_aligned' is reserved for the columns of tags.")


def _column_name(name: str) -> str:
    if not _COLUMN.match(name):
        raise ValueError(f"'{escape_path(name)}' is not a column name")
    return name


ColumnName = Annotated[str, AfterValidator(_column_name)]
"""The name of a column in a stored file; folders and files are named after it."""


def default_kind(column: str) -> str:
    """Return the kind that scores `column` by default.

    Raises:
        UserError: the column is neither one of `DEFAULT_KINDS` nor a kind's own name.
    """
    if column in DEFAULT_KINDS:
        return DEFAULT_KINDS[column]
    if column in kinds():
        return column
    raise UserError(
        f"The column {column!r} has no default kind of scorer: write {column}=KIND, where KIND is one of "
        f"{', '.join(kinds())}. (The columns {', '.join(DEFAULT_KINDS)} need no kind.)"
    )


def kinds() -> list[str]:
    """Return the names of all kinds: our own, then those that installed packages add."""
    return [*KINDS, *sorted(_plugins())]


def scorer_type(kind: str) -> ScorerType:
    """Return the class of a kind, without importing the library it wraps.

    Raises:
        UserError: there is no such kind, or a package's entry point cannot be imported.
    """
    if kind in KINDS:
        module, _, name = KINDS[kind].partition(":")
        return cast(ScorerType, getattr(importlib.import_module(module), name))
    plugin = _plugins().get(kind)
    if plugin is None:
        raise UserError(f"There is no scorer of kind {kind!r}; the kinds are {', '.join(kinds())}.")
    try:
        return cast(ScorerType, plugin.load())
    except Exception as error:  # another package's module may raise anything
        reason = f"{type(error).__name__}: {error}".rstrip(".")
        raise UserError(f"The scorer {kind!r} ({_origin(plugin)}) cannot be loaded: {reason}.") from error


def check_options(column: str, spec: ScorerSpec) -> SemanticOptions:
    """Check the options of a scorer and fill in the defaults.

    Raises:
        UserError: names the key of an unknown option or an invalid value.
    """
    options = scorer_type(spec.kind).Options
    return validate(options, spec.options, f"The options of the scorer {column!r} (kind {spec.kind}) are not valid")


def resolve(column: str, spec: ScorerSpec) -> ScorerSpec:
    """Fill in every default, as plain JSON values: what a manifest records and the scorer is rebuilt from.

    Raises:
        UserError: as `check_column` and `check_options`; spans are asked of a scorer that cannot locate; or a field of
            languages is given without them.
    """
    check_column(column)
    options = check_options(column, spec).model_dump(mode="json")
    if spec.spans and not can_locate(spec):
        raise UserError(
            f"The scorer of {column!r} ({spec.kind}) does not know where in a sentence it found something, so it has "
            f"no spans. Of these kinds it has: {', '.join(kinds_that_locate())}. Leave out "
            f"--spans {column} (scorers.{column}.spans)."
        )
    if spec.language_field != LANGUAGE_FIELD and not spec.languages:
        raise UserError(
            f"scorers.{column}.language_field names a field, but no languages are given: set "
            f"scorers.{column}.languages too, such as [en]."
        )
    return ScorerSpec(
        kind=spec.kind, spans=spec.spans, languages=spec.languages, language_field=spec.language_field, **options
    )


def build(column: str, spec: ScorerSpec, execution: Execution | None = None) -> Scorer:
    """Build the scorer that fills `column`.

    Raises:
        UserError: as `resolve`, or something the scorer needs is missing (the message says how to install it).
    """
    check_column(column)
    return scorer_type(spec.kind)(column, check_options(column, spec), execution or Execution())


def check(column: str, spec: ScorerSpec) -> None:
    """Check that a scorer could be built here, without loading or downloading anything.

    Raises:
        UserError: as `build`.
    """
    options = check_options(column, spec)
    look = getattr(scorer_type(spec.kind), "check", None)
    if look is not None:
        look(options)


def check_recorded(column: str, spec: ScorerSpec, fingerprint: str, trusted: Collection[str]) -> None:
    """Check a scorer that a dataset or a run names, before loading anything of it.

    Args:
        column: the column it fills.
        spec: the recorded specification.
        fingerprint: the recorded fingerprint.
        trusted: hashes that the user of this machine vouches for.

    Raises:
        UserError: the fingerprint is of another kind, or a file of the scorer could run code and is not trusted.
    """
    if spec.kind in KINDS and not fingerprint.startswith(f"{spec.kind}-"):
        raise UserError(
            f"The column {column!r} is recorded as scored by {spec.kind!r}, but the fingerprint {fingerprint!r} is of "
            "another kind. The record was changed; nothing that it names is loaded."
        )
    look = getattr(scorer_type(spec.kind), "check_recorded", None)
    if look is not None:
        look(check_options(column, spec), trusted)


def can_locate(spec: ScorerSpec) -> bool:
    """Return whether this kind of scorer knows where in a text it found something; see `scorers.spans`."""
    return hasattr(scorer_type(spec.kind), "locate")


def kinds_that_locate() -> list[str]:
    """The kinds of scorers that know where in a text they found something, without packages that cannot be loaded."""
    return [each for each in kinds() if _locates(each)]


def _locates(kind: str) -> bool:
    try:
        return hasattr(scorer_type(kind), "locate")
    except UserError:
        return False


def runs_on_gpu(spec: ScorerSpec) -> bool:
    """Return whether this kind of scorer uses a GPU; the others ignore `Execution.device`."""
    return scorer_type(spec.kind).runs_on_gpu


def documents_of(spec: ScorerSpec) -> DocumentKind | None:
    """Return the one kind of documents a scorer applies to; None if it applies to any, or its package is missing."""
    try:
        declared = getattr(scorer_type(spec.kind), "documents", None)
    except UserError:
        declared = None
    kind = declared or spec.options.get("documents")
    return cast(DocumentKind, kind) if kind in get_args(DocumentKind) else None


def given_field(column: str, spec: ScorerSpec) -> str | None:
    """Return the field of the corpus that this scorer needs in `Document.given`; None for most, which need none.

    Raises:
        UserError: as `check_options`.
    """
    look = getattr(scorer_type(spec.kind), "given_field", None)
    return None if look is None else cast(str, look(check_options(column, spec)))


def _read_text(text: str) -> dict[str, Any]:
    head, *rest = text.split(",")
    kind, separator, main = head.partition(":")
    values: dict[str, Any] = {"kind": kind}
    if separator:
        option = scorer_type(kind).main_option
        if option is None:
            raise UserError(f"The scorer {kind!r} has no main option, so nothing can follow its colon in {text!r}.")
        values[option] = main
    elif kind not in kinds():
        scorer_type(kind)
    for part in rest:
        option, separator, value = part.partition("=")
        if not (separator and option) or option in values:
            raise UserError(f"{part!r} in {text!r} is not of the form OPTION=VALUE, or is given twice.")
        values[option] = value
    return values


@cache
def _plugins() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        other = found.get(point.name)
        if point.name in KINDS or (other is not None and other.value != point.value):
            raise UserError(
                f"Two packages provide a scorer of kind {point.name!r}: {_origin(point)} and "
                f"{_origin(other) if other else 'phf itself'}. Uninstall one of them."
            )
        found[point.name] = point
    return found


def _origin(point: EntryPoint) -> str:
    package = f"package {point.dist.name}, " if point.dist else ""
    return f"{package}entry point {point.value}"
