"""Reads gold answers from the forms of published data sets: a list of texts, or an error, never `str()` of a value.

| value | gold answers | found in |
|---|---|---|
| a text | itself | HotpotQA, BrowseComp-Plus |
| a list, of lists too | its texts | FlashRAG, Natural Questions |
| a text that is a list of JSON, of Python or of NumPy | the list's texts | PopQA, CSV files |
| a number | as people write it: 1500.0 is "1500"; the text "1500.0" of a CSV is both | tables |
| `true`, `false` | "True" and "yes", "False" and "no" | BoolQ, StrategyQA |
| `{"value", "aliases", …}`, small or capital letters | the value, then the aliases | TriviaQA |
| `{"text": [...], "answer_start": [...]}`, `{"spans": [...]}` | the texts | SQuAD, DROP |
| `{"answer": …}`; a `provenance` without one adds nothing | the answer | KILT |

Anything else, null and NaN inside a list included, raises ValueError.
"""

import ast
import datetime
import io
import json
import math
import re
import tokenize
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from retrieval_server.passages import whole_text

_FLOAT = re.compile(r"(-?\d{1,15})\.0")
"""What pandas writes into a CSV file for an integer in a column with missing values."""
_NUMPY = re.compile(r"\barray\(|,\s*dtype=[\w<>]+")
_QUOTES = re.compile(r"[\[{]\s*['\"\[{]")
_BESIDE_ANSWER = {"provenance", "meta"}


def golds_in(value: Any) -> list[str]:
    """The gold answers in `value`, each once, in their order; empty for null, NaN or an empty text or list.

    Raises ValueError for an unknown form.
    """
    if _missing(value):
        return []
    return list(dict.fromkeys(_unfolded(value, alone=True)))


def plain(value: Any) -> Any:
    """Convert NumPy's lists and numbers, which pandas reads from Parquet, into Python's."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _unfolded(value: Any, *, alone: bool = False) -> list[str]:
    """`alone`: the value is not an element of a list, so a text like `[1990, 1991]` is a list itself."""
    if isinstance(value, str):
        value = whole_text(value)
        if (listed := _listed(value, numbers=alone)) is not None:
            return _unfolded(listed)
        if alone and (number := _FLOAT.fullmatch(value)):
            return [number[1], value]
        return [value]
    if isinstance(value, bool):
        return ["True", "yes"] if value else ["False", "no"]
    if isinstance(value, int):
        return [str(value)]
    if isinstance(value, float) and math.isfinite(value):
        return [str(int(value)) if value.is_integer() else format(Decimal(repr(value)), "f")]
    if isinstance(value, Decimal | datetime.date):
        return [format(value, "f") if isinstance(value, Decimal) else value.isoformat()]
    if isinstance(value, dict):
        return _of_object(value)
    items: Any = plain(value)
    if isinstance(items, list | tuple):
        return [gold for item in items for gold in _unfolded(item)]
    raise ValueError("a gold answer is null" if _missing(value) else f"a gold answer is {value!r}")


def _of_object(value: dict[str, Any]) -> list[str]:
    names = {name.lower(): name for name in value}

    def at(name: str) -> list[str]:
        return golds_in(value[names[name]]) if name in names else []

    if "value" in names:
        return [*at("value"), *at("aliases"), *at("humananswers")]
    for name in ("text", "spans", "answer", "answers"):
        if name in names:
            return at(name)
    if value and not names.keys() - _BESIDE_ANSWER:
        return []
    raise ValueError(f"a gold answer is an object with the fields {', '.join(map(repr, value)) or 'none'}")


def _listed(text: str, *, numbers: bool) -> Any:
    """The list or object that `text` holds as JSON, Python or NumPy; None for any other text."""
    inner = text.strip()
    if inner.startswith("array(") and inner.endswith(")"):
        inner = _NUMPY.sub("", inner)[:-1]
    if (inner[:1], inner[-1:]) not in {("[", "]"), ("{", "}")}:
        return None
    found = _parsed(inner)
    if found is None and _QUOTES.match(inner):
        raise ValueError(f"a gold answer looks like a list or an object, and can not be read: {text:.200}")
    if isinstance(found, list) and (numbers or any(isinstance(item, str | list | dict) for item in found)):
        return found
    return found if isinstance(found, dict) else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        if (texts := _side_by_side(text)) is not None:
            return texts
        return ast.literal_eval(_NUMPY.sub(lambda found: "(" if found[0] == "array(" else "", text))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError, tokenize.TokenError):
        return None


def _side_by_side(text: str) -> list[str] | None:
    """The texts of NumPy's `['X' 'Y']`, which Python would read as one text; None for any other form."""
    tokens = [
        token
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER, tokenize.INDENT, tokenize.DEDENT)
    ]
    opening, *inside, closing = tokens
    if opening.string != "[" or closing.string != "]" or any(token.type != tokenize.STRING for token in inside):
        return None
    return [ast.literal_eval(token.string) for token in inside]


def ground_truth(row: dict[str, Any]) -> Any:
    """The golds in `reward_model.ground_truth` of a verl row: its `target`, or the value itself; None without one."""
    model = row.get("reward_model")
    truth = model.get("ground_truth") if isinstance(model, dict) else None
    return truth.get("target") if isinstance(truth, dict) else truth


def nested_question(row: dict[str, Any]) -> Any:
    """The question of a verl row, from s3's ground truth or from `extra_info`; None without one."""
    model, extra = row.get("reward_model"), row.get("extra_info")
    truth = model.get("ground_truth") if isinstance(model, dict) else None
    for place in (truth, extra):
        if isinstance(place, dict) and isinstance(place.get("question"), str):
            return place["question"]
    return None
