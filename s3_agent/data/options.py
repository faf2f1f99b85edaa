"""Handles questions with options: reads `choices` or `options`, adds them to the question, and finds the gold's text.

The form is MIRAGE's: one line `A: text` per option after the question. Retrieval leaves the options out.
"""

from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from s3_agent.data.golds import golds_in
from s3_agent.questions import OPTIONS


def options_of(row: Mapping[str, Any]) -> dict[str, str]:
    """The options of a row by their keys, or by letters if they have none; empty if the row has no options.

    Raises ValueError for an unknown form of options.
    """
    value: Any = next((row[name] for name in ("choices", "options") if row.get(name)), None)
    if isinstance(value, str):
        value = listed if len(listed := golds_in(value)) > 1 else None
    if value is None:
        return {}
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = {name: [item.get(name) for item in value] for name in ("label", "text")}
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        return dict(zip(map(str, value["label"]), map(_one, value["text"]), strict=True))
    if isinstance(value, dict):
        return {str(key): _one(text) for key, text in value.items()}
    if isinstance(value, list) and len(value) <= len(ascii_uppercase):
        return dict(zip(ascii_uppercase, map(_one, value), strict=False))
    raise ValueError(f"its options are {value!r:.200}")


def _one(value: Any) -> str:
    [text] = golds_in([value]) or [""]
    return text


def with_options(question: str, options: dict[str, str]) -> str:
    """The question with its options."""
    return f"{question}{OPTIONS}\n" + "".join(f"{key}: {text}\n" for key, text in options.items())


def golds_of_options(options: dict[str, str], golds: Any) -> list[str]:
    """The golds, given as keys, texts or numbers (from 0) of options, as texts with and without their key.

    Raises ValueError if no gold is an option, and for a number without an option.
    """
    found: list[str] = []
    texts = {text: key for key, text in reversed(options.items())}
    hits = 0
    for raw in golds if isinstance(golds, list) else [golds]:
        for gold in golds_in(raw):
            key = _key(raw, gold, options, texts)
            hits += key is not None
            found += [gold] if key is None else [options[key], f"{key}: {options[key]}"]
    if found and not hits:
        raise ValueError(f"the gold {found[0]!r} is none of the options {', '.join(map(repr, options.values()))}")
    return list(dict.fromkeys(found))


def _key(raw: Any, gold: str, options: dict[str, str], texts: dict[str, str]) -> str | None:
    lettered = list(options) == list(ascii_uppercase[: len(options)])
    if lettered and not isinstance(raw, str) and gold.lstrip("-").isdecimal():
        return _at(int(gold), options)
    for key in (gold, gold.strip(" ().:").upper(), gold.partition(":")[0]):
        if key in options and (key == gold or gold not in texts):
            return key
    if gold in texts:
        return texts[gold]
    return _at(int(gold), options) if lettered and gold.isdecimal() else None


def _at(number: int, options: dict[str, str]) -> str:
    if not 0 <= number < len(options):
        raise ValueError(f"the gold {number} is the number of none of the {len(options)} options (from 0)")
    return list(options)[number]
