"""What a check says: one line, that all is well or what is wrong and what to do."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `note` is worth knowing and stops nobody."""

    area: str
    state: State
    text: str


def wrong_if(needed: bool) -> State:
    """How bad it is that something is missing: wrong where it is needed, else worth a note."""
    return "wrong" if needed else "note"
