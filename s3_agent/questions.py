"""The forms of a question: normalised, as a retrieval query, and with options."""

OPTIONS = "\nOptions:"
"""The line before the options in a question of MIRAGE."""


def normalize_question(question: str) -> str:
    """Strip the question and end it with a question mark, as the originals do; with options it is only stripped."""
    question = question.strip()
    return question if question.endswith("?") or OPTIONS in question else question + "?"


def retrieval_query(question: str) -> str:
    """The query for a task's first passages: the normalised question, without options."""
    return normalize_question(question).partition(OPTIONS)[0].rstrip()
