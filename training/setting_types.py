"""Types of settings, and the base of their sections."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from scorers.settings import read_number


def _whole(value: Any) -> Any:
    if isinstance(value, str) and "e" in value.lower():
        # YAML reads `1e6` as text.
        value = read_number(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(_whole)]
# NumPy accepts no negative seed, and torch gets a million times as much, in 64 bits.
Seed = Annotated[Count, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A section of settings."""

    # Refuse infinity and NaN: a report that contained them could not be read again.
    # The string below a field is its description in `phf config`.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
