#!/usr/bin/env bash
# semantic-text-splitter's MarkdownSplitter returns a heading as a separate chunk if the section below it is longer than
# the limit, so that the text of the section loses its heading, and the heading becomes a passage without text.
#
# Seen with semantic-text-splitter 0.33.1, Python 3.12, Linux x86-64. Fails when that changes. Needs Python 3.12 and PyPI;
# installs into a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.12}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "semantic-text-splitter==0.33.1"
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

from semantic_text_splitter import MarkdownSplitter

text = "## One\n\n" + "Alpha beta gamma delta. " * 30
splitter = MarkdownSplitter.from_callback(lambda piece: len(piece.split()), 60)
chunks = splitter.chunks(text)
print("semantic-text-splitter", version("semantic-text-splitter"), [chunk[:20] for chunk in chunks])
assert chunks[0] == "## One" and len(chunks) > 1, chunks
PYTHON
