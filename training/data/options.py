"""What a stream is made of."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StreamOptions:
    """What the stream is made of.

    Attributes:
        context_length: T, tokens a block.
        eos_id: stands before every document.
        held_out: share of documents left out, chosen by a hash of `held_out_seed` and the document's text.
        held_out_seed: of that hash.
        filter_threshold: documents whose mean score is above it are left out; None for none.
        tag_threshold: sentences get a control token, `aligned_id` where score <= tag_threshold; None for no tags.
        aligned_id, misaligned_id: the control tokens; needed with `tag_threshold`.
        drop_tags: share of sentences that get no control token, chosen by a hash of `seed`, the document's text and
            the sentence's number in it.
        seed: of that hash, and of the next.
        part: only documents whose hash, as a number in [0, 1), is in [low, high); None for all. Streams of parts that
            don't overlap share no text.
    """

    context_length: int
    eos_id: int
    held_out: float = 0.0
    held_out_seed: int = 0
    filter_threshold: float | None = None
    tag_threshold: float | None = None
    aligned_id: int | None = None
    misaligned_id: int | None = None
    drop_tags: float = 0.0
    seed: int = 0
    part: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.tag_threshold is not None and (self.aligned_id is None or self.misaligned_id is None):
            raise ValueError("a stream with tags needs the ids of both control tokens")
