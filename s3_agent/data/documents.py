"""A folder of text, markdown and PDF files as a corpus: the title is the first heading or the file's name.

PDFs are read by pypdf (BSD). A file that holds no text, such as a scanned PDF, is told and left out, never passed over.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from s3_agent.data.corpora import quoted
from s3_agent.data.splitting import DEFAULT_WORDS, Splitter
from s3_agent.data.tables import Row
from s3_agent.errors import DataError

TEXT, MARKDOWN, PDF = (".txt",), (".md", ".markdown"), (".pdf",)
KINDS = (*TEXT, *MARKDOWN, *PDF)


def document_files(folder: Path) -> list[Path]:
    """The readable files below `folder`, sorted. Raises DataError when there are none."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in KINDS)
    if not found:
        raise DataError(f"{folder} holds no document", remedy="give a folder with files of " + ", ".join(KINDS))
    return found


def _plain(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"{path} can not be read: {cause}", remedy="save it as UTF-8, or take it out") from cause


def _pdf(path: Path) -> tuple[str, str]:
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError as cause:
        raise DataError("reading PDFs needs pypdf", remedy="s3-agent setup, or install the extra `data`") from cause
    try:
        reader = PdfReader(path)
        title = str((reader.metadata.title if reader.metadata else None) or "").strip()
        return title, "\n\n".join(page.extract_text() for page in reader.pages)
    except (PyPdfError, OSError, ValueError, KeyError, TypeError) as cause:  # damaged files fail in all these ways
        raise DataError(f"{path} can not be read: {cause}", remedy="repair, decrypt or take it out") from cause


def _heading(text: str) -> tuple[str, str]:
    """The first heading of a markdown text and what follows it, when it begins with one."""
    first, _, rest = text.lstrip().partition("\n")
    return (first.lstrip("# ").strip(), rest) if first.startswith("#") else ("", text)


def read_document(path: Path) -> tuple[str, str]:
    """Title and text of one file. Raises DataError."""
    kind = path.suffix.lower()
    title, text = _pdf(path) if kind in PDF else _heading(_plain(path)) if kind in MARKDOWN else ("", _plain(path))
    return title or path.stem.replace("_", " ").replace("-", " "), text.strip()


def passages_of_folder(folder: Path, *, words: int = DEFAULT_WORDS, left_out: Callable[[str], None]) -> Iterator[Row]:
    """Passages of every document below `folder`; the id is the file's path there, with the piece's number.

    `left_out` is told of files without text.
    """
    text_splitter, markdown_splitter = Splitter(words), Splitter(words, form="markdown")
    for path in document_files(folder):
        title, text = read_document(path)
        name = path.relative_to(folder).as_posix()
        if not text:
            left_out(name)
            continue
        splitter = markdown_splitter if path.suffix.lower() in MARKDOWN else text_splitter
        pieces = splitter.pieces(text)
        for part, piece in enumerate(pieces, 1):
            number = f"#{part}" if len(pieces) > 1 else ""
            yield {"id": name + number, "title": title, "text": piece, "contents": quoted(title, piece)}
