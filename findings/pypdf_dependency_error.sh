#!/usr/bin/env bash
# pypdf's DependencyError, raised for a PDF encrypted with AES where `cryptography` is not installed, is not a
# PyPdfError: code that catches the library's base class for "this PDF can not be read" ends with a traceback.
#
# Seen with pypdf 7.1.0, Python 3.12, Linux x86-64. Fails when that changes. Needs Python 3.12 and PyPI; installs into a
# temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for name in with without; do "${PYTHON:-python3.12}" -m venv "$folder/$name"; done
"$folder/with/bin/pip" install --quiet "pypdf==7.1.0" cryptography
"$folder/without/bin/pip" install --quiet "pypdf==7.1.0"
"$folder/with/bin/python" - "$folder/locked.pdf" <<'PYTHON'
import sys

from pypdf import PdfWriter

writer = PdfWriter()
writer.add_blank_page(width=72, height=72)
writer.encrypt("", owner_password="owner", algorithm="AES-256")
writer.write(sys.argv[1])
PYTHON
"$folder/without/bin/python" - "$folder/locked.pdf" <<'PYTHON'
import sys

import pypdf
from pypdf.errors import PyPdfError

try:
    pypdf.PdfReader(sys.argv[1]).pages[0]
except Exception as error:
    print("pypdf", pypdf.__version__, type(error).__name__, [base.__name__ for base in type(error).__mro__])
    assert type(error).__name__ == "DependencyError" and not isinstance(error, PyPdfError)
else:
    raise SystemExit("it was read")
PYTHON
