#!/usr/bin/env bash
# The wheel of pyarrow 17.0.0 installs packages called `benchmarks`, `examples`, `scripts` and `cmake_modules` at the
# top level. `benchmarks` has an `__init__.py` and so takes precedence over a folder of that name in the working
# directory without one: `import benchmarks.mine` fails. An `__init__.py` in that folder fixes it.
#
# Seen with pyarrow 17.0.0, Python 3.12, Linux x86-64; 26.0.1 has none of them. Fails when that changes. Needs Python 3.12 and
# PyPI; installs into a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/work/benchmarks"
echo 'print("ours")' >"$folder/work/benchmarks/mine.py"
"${PYTHON:-python3.12}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "pyarrow==17.0.0"
cd "$folder/work"
"$folder/venv/bin/python" -c 'import benchmarks; print(benchmarks.__file__)' | tee "$folder/found"
grep --quiet site-packages "$folder/found"
! "$folder/venv/bin/python" -c 'import benchmarks.mine'
