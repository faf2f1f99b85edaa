"""Reads a user's corpus: files of rows, or a folder of text, markdown and PDF files.

The title of a document is its first heading or the file's name.

A file that holds no text, such as a scanned PDF, is reported and left out, never skipped silently.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from retrieval_server.passages import contents_of, whole_text
from s3_agent.data.corpus.corpora import passages_of_files
from s3_agent.data.corpus.pdf_text import read_pdf
from s3_agent.data.corpus.splitting import DEFAULT_WORDS, Splitter
from s3_agent.data.files.tables import Placed, is_beside, row_files
from s3_agent.data.files.whole import refuse_lfs_pointer
from s3_agent.errors import DataError

TEXT, MARKDOWN, PDF = (".txt",), (".md", ".markdown"), (".pdf",)
KINDS = (*TEXT, *MARKDOWN, *PDF)
_HEADING = re.compile(r"\s*(?:#{1,6}[ \t]+([^\n]*?)[ \t#]*|([^\n]+)\n(?:=+|-+)[ \t]*)(?:\n|\Z)")


def document_files(folder: Path) -> list[Path]:
    """The readable files below `folder`, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in KINDS)


def _plain(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(
            f"{path} can not be read: {cause}", remedy="save it as UTF-8, or remove it from the folder"
        ) from cause


def _heading(text: str) -> tuple[str, str]:
    """The first heading of a markdown text and the text after it, if the text begins with a heading."""
    found = _HEADING.match(text)
    return ((found[1] or found[2]).strip(), text[found.end() :]) if found else ("", text)


def read_document(path: Path) -> tuple[str, str]:
    """Title and text of one file. Raises DataError."""
    refuse_lfs_pointer(path)
    kind = path.suffix.lower()
    title, text = read_pdf(path) if kind in PDF else _heading(_plain(path)) if kind in MARKDOWN else ("", _plain(path))
    title = title or path.stem.replace("_", " ").replace("-", " ")
    return whole_text(title), whole_text(text).strip()


def passages_of_folder(
    folder: Path, *, words: int = DEFAULT_WORDS, left_out: Callable[[str], None]
) -> Iterator[Placed]:
    """Passages of every document below `folder`, with its path. `left_out` is called with files without text.

    The id is the file's path below `folder`, plus the piece's number if there are several. Raises DataError.
    """
    text_splitter, markdown_splitter = Splitter(words), Splitter(words, form="markdown")
    files = document_files(folder)
    if not files:
        raise DataError(f"{folder} holds no document", remedy="give a folder with files of " + ", ".join(KINDS))
    for path in files:
        title, text = read_document(path)
        name = path.relative_to(folder).as_posix()
        if not text:
            left_out(name)
            continue
        splitter = markdown_splitter if path.suffix.lower() in MARKDOWN else text_splitter
        pieces = splitter.pieces(text)
        for part, piece in enumerate(pieces, 1):
            number = f"#{part}" if len(pieces) > 1 else ""
            contents = contents_of(title, piece)
            yield str(path), {"id": name + number, "title": title, "text": piece, "contents": contents}


def passages_of_own(corpus: Path, *, words: int, left_out: Callable[[str], None]) -> Iterator[Placed]:
    """Passages of a file of rows, of a folder of such files (shards), or of a folder of documents.

    Raises DataError, also for a folder with both files of rows and documents.
    """
    shards = row_files(corpus)
    if not corpus.is_dir():
        yield from passages_of_files(shards, splitter=Splitter(words), left_out=left_out)
        return
    documents = [path for path in document_files(corpus) if not is_beside(path)] if shards else []
    if shards and documents:
        raise DataError(
            f"{corpus} holds files of rows ({shards[0].name}) and documents ({documents[0].name})",
            remedy="put each kind into its own folder, and import one",
        )
    if shards:
        yield from passages_of_files(shards, splitter=Splitter(words), left_out=left_out)
    else:
        yield from passages_of_folder(corpus, words=words, left_out=left_out)
