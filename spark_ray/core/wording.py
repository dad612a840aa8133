"""Words that follow from numbers."""


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """`1 file`, `2 files`, `1,200 files`; `plural` where an s does not make it."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
