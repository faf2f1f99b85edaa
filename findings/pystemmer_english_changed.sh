#!/usr/bin/env bash
# PyStemmer's `english` gives different stems in 3.1.0 than in 2.2.0.3 ("university" and "universe" are separate now),
# and Stemmer.version() of 2.2.0.3 returns 2.0.1. An index built with one release and searched with the other silently
# loses matches, and the version to record is the distribution's, not the module's. `porter` gives the same stems in
# both.
#
# Seen with PyStemmer 2.2.0.3 and 3.1.0, Python 3.12, Linux x86-64. Fails when that changes. Needs Python 3.12 and PyPI;
# installs into a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/look.py" <<'PYTHON'
import json
from importlib.metadata import version

import Stemmer

words = ["university", "universities", "organization", "organ", "evening", "running"]
stems = {name: Stemmer.Stemmer(name).stemWords(words) for name in ("english", "porter")}
print(json.dumps({"distribution": version("PyStemmer"), "module": Stemmer.version(), **stems}))
PYTHON
for release in 2.2.0.3 3.1.0; do
    "${PYTHON:-python3.12}" -m venv "$folder/$release"
    "$folder/$release/bin/pip" install --quiet "PyStemmer==$release"
    "$folder/$release/bin/python" "$folder/look.py" | tee "$folder/$release.json"
done
"${PYTHON:-python3.12}" - "$folder" <<'PYTHON'
import json, sys
from pathlib import Path

old, new = (json.loads(Path(sys.argv[1], f"{release}.json").read_text()) for release in ("2.2.0.3", "3.1.0"))
assert old["module"] == "2.0.1", old
assert old["english"] != new["english"] and old["porter"] == new["porter"], (old, new)
PYTHON
