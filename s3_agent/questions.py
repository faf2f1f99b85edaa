"""The forms of a question: normalised, as a retrieval query, and with options."""

OPTIONS = "\nOptions:"
"""Goes before the options in a question of MIRAGE."""


def normalize_question(question: str) -> str:
    """Strip, and end with a question mark, as the originals do; a question with options is only stripped."""
    question = question.strip()
    return question if question.endswith("?") or OPTIONS in question else question + "?"


def retrieval_query(question: str) -> str:
    """What retrieves a task's first passages: the normalised question, without options."""
    return normalize_question(question).partition(OPTIONS)[0].rstrip()
