"""What a stream is made of."""

from dataclasses import dataclass


def tag_names(classes: int) -> tuple[str, ...]:
    """What the classes of sentences are called, best first: two are aligned and misaligned, more are quantiles."""
    if classes == 2:
        return "aligned", "misaligned"
    return tuple(f"quantile_{number}" for number in range(1, classes + 1))


@dataclass(frozen=True)
class StreamOptions:
    """What the stream is made of.

    Attributes:
        context_length: T, tokens a block.
        eos_id: ends every document, so it stands before every document, the first too.
        bos_id: begins every document, after `eos_id`; None, or the same, where that does both.
        held_out: share of documents left out, chosen by a hash of `held_out_seed` and the document's text.
        held_out_seed: of that hash.
        filter_threshold: documents whose mean score is above it are left out; None for none.
        tag_bounds: ascending, compared as float32: sentences get the control token `tag_ids[i]` where their score is
            above i of the bounds. One bound for aligned and misaligned, K - 1 for K classes; None for no tags.
        tag_ids: the control tokens, best first, one more than bounds.
        drop_tags: share of sentences that get no control token, chosen by a hash of `seed`, the document's text and
            the sentence's number in it.
        seed: of that hash, and of the next.
        part: only documents whose hash, as a number in [0, 1), is in [low, high); None for all. Streams of parts that
            don't overlap share no text.
        findings: what a scorer has found in the store's tokens, by name: a token of the text carries its sentence's
            score where it overlaps a finding, else 0; None for the sentence's score on every token of it.
    """

    context_length: int
    eos_id: int
    bos_id: int | None = None
    held_out: float = 0.0
    held_out_seed: int = 0
    filter_threshold: float | None = None
    tag_bounds: tuple[float, ...] | None = None
    tag_ids: tuple[int, ...] = ()
    drop_tags: float = 0.0
    seed: int = 0
    part: tuple[float, float] | None = None
    findings: str | None = None

    @property
    def begins_with(self) -> int:
        """The token that a document begins with."""
        return self.eos_id if self.bos_id is None else self.bos_id

    @property
    def between(self) -> tuple[int, ...]:
        """The tokens before a document: the end of the one before, and its own beginning where that is another."""
        return (self.eos_id,) if self.begins_with == self.eos_id else (self.eos_id, self.begins_with)

    def __post_init__(self) -> None:
        if self.tag_bounds is not None and len(self.tag_ids) != len(self.tag_bounds) + 1:
            raise ValueError("a stream with tags needs the ids of all its control tokens, one more than bounds")
