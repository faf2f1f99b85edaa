"""Extracts the text of a PDF as paragraphs: lines are joined, and words hyphenated at a line's end are rejoined.

pypdf (BSD) reads the lines and their positions. A wider gap between two lines, another font size, or a short line that
ends a sentence ends a paragraph; the end of a page alone does not.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from s3_agent.errors import DataError

_WIDER = 1.3  # multiple of the usual distance of two lines
_SHORT = 0.75  # share of the longest line of a page
_SENTENCE = re.compile(r"[.!?:\u3002][\"'\u201d\u2019)\]]*$")
_CUT = re.compile(r"([^\W\d_]+)[-\u2010\u00ad]$")
_HYPHENED = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_HYPHEN_STAYS = ("self", "well")


@dataclass(frozen=True, slots=True)
class Line:
    """A line with its position (from the bottom, in points) and its font size; 0 if unknown."""

    text: str
    height: float = 0.0
    size: float = 0.0


def read_pdf(path: Path) -> tuple[str, str]:
    """The title (empty if the file has none) and the text. Raises DataError."""
    try:
        from pypdf import PdfReader
        from pypdf.errors import DependencyError, FileNotDecryptedError
    except ImportError as cause:
        raise DataError("reading PDFs needs pypdf", remedy="s3-agent setup, or install the extra `data`") from cause
    try:
        reader = PdfReader(path)
        title = str((reader.metadata.title if reader.metadata else None) or "").strip()
        return title, text_of([_lines(page) for page in reader.pages])
    except DependencyError as cause:
        raise DataError(
            f"{path} is encrypted, and reading it needs another package: {cause}",
            remedy="install cryptography, or decrypt the file: qpdf --decrypt",
        ) from cause
    except FileNotDecryptedError as cause:
        raise DataError(
            f"{path} can not be read: it is encrypted with a password",
            remedy="decrypt it (qpdf --decrypt), or remove it from the folder",
        ) from cause
    except Exception as cause:  # for damaged files pypdf raises nearly any kind of exception
        raise DataError(
            f"{path} can not be read: {cause or type(cause).__name__}", remedy="repair, decrypt or remove it"
        ) from cause


def _lines(page: Any) -> list[Line]:
    lines = [Line("")]

    def visit(text: str, moved: Any, placed: Any, _: Any, size: float | None) -> None:
        first, *more = text.split("\n")
        height = float(placed[5] * moved[3] + moved[5])
        letters = abs(float((size or 0.0) * placed[3] * moved[3]))
        last = lines[-1]
        if first.strip() and not last.text.strip():
            last = Line(last.text, height, letters)
        lines[-1] = Line(last.text + first, last.height, last.size)
        lines.extend(Line(each, height, letters) for each in more)

    text = page.extract_text(visitor_text=visit)
    if "".join(line.text for line in lines).split() != "".join(text.split("\n")).split():
        lines = [Line(each) for each in text.split("\n")]  # older releases of pypdf report the text of forms twice
    return [Line(line.text.strip(), line.height, line.size) for line in lines]


def text_of(pages: Iterable[list[Line]]) -> str:
    """The paragraphs of pages of lines, a blank line between them."""
    pages = [[*page] for page in pages]
    words = {word.lower() for page in pages for line in page for word in _HYPHENED.findall(_CUT.sub("", line.text))}
    paragraphs: list[str] = []
    for number, page in enumerate(pages):
        for place, (begins, text) in enumerate(_marked(page)):
            crosses = number > 0 and place == 0
            if paragraphs and not begins and not (crosses and _SENTENCE.search(paragraphs[-1])):
                paragraphs[-1] = _joined(paragraphs[-1], text, words)
            else:
                paragraphs.append(text)
    return "\n\n".join(paragraphs)


def _marked(page: list[Line]) -> Iterator[tuple[bool, str]]:
    """The non-blank lines of a page, each with whether it begins a paragraph. The first one does not by itself."""
    shown = [line for line in page if line.text]
    gaps = [above.height - below.height for above, below in pairwise(shown)]
    usual = _usual([gap for gap, below in zip(gaps, shown[1:], strict=True) if gap >= 0.8 * below.size], shown)
    longest = max((len(line.text) for line in shown), default=0)
    blank_before = {id(line) for before, line in pairwise(page) if line.text and not before.text}
    for number, line in enumerate(shown):
        if number == 0:
            yield False, line.text
            continue
        above = shown[number - 1]
        sentence = _SENTENCE.search(above.text) is not None
        yield (
            (
                id(line) in blank_before
                or gaps[number - 1] > _WIDER * usual
                or (above.size > 0 and abs(line.size - above.size) > 0.1 * above.size)
                or (sentence and len(above.text) < _SHORT * longest)
            ),
            line.text,
        )


def _usual(gaps: list[float], lines: list[Line]) -> float:
    """The usual distance of lines in a paragraph: that of the closer lines, and never far above their font size."""
    size = max((line.size for line in lines), default=0.0)
    if len(gaps) > 3:
        return sorted(gaps)[len(gaps) // 4]
    return min([*gaps, 1.3 * size]) if gaps and size else float("inf")


def _joined(above: str, below: str, words: set[str]) -> str:
    """Join two lines of a paragraph; a word hyphenated at the line's end is rejoined."""
    cut, rest = _CUT.search(above), _HYPHENED.match(below)
    if cut is None or rest is None:
        return f"{above} {below}"
    begin, end = cut[1].lower(), rest[0].lower()
    whole = above[:-1] + below
    if above.endswith("\u00ad") or begin + end in words:
        return whole
    stays = rest[0][0].isupper() or begin in _HYPHEN_STAYS or f"{begin}-{end}" in words
    return above + below if stays else whole
