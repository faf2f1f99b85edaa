#!/usr/bin/env bash
# Ray 2.60.0: `ray.cluster_utils.Cluster` writes the head's address into Ray's default temporary folder, whatever
# `temp_dir` its head gets, and does not create that folder. On a machine where no Ray has used the default folder yet, or
# with a new RAY_TMPDIR, it ends with FileNotFoundError after the head has started; once the folder exists, it works.
#
# Seen with ray 2.60.0, Python 3.12, Linux x86-64:
#   fresh default folder: FileNotFoundError .../ray/ray_current_cluster
#   existing default folder: started
# Fails when that changes. Needs Python 3.12 and PyPI (about 100 MB); installs into a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.12}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "ray==2.60.0"
cat >"$folder/look.py" <<'PYTHON'
import sys

from ray.cluster_utils import Cluster

node = dict(num_cpus=1, include_dashboard=False, node_ip_address="127.0.0.1", temp_dir=sys.argv[1])
try:
    Cluster(initialize_head=True, head_node_args=node).shutdown()
    print("started")
except FileNotFoundError as error:
    print("FileNotFoundError", error.filename)
PYTHON
mkdir "$folder/default" "$folder/own"
look() { RAY_TMPDIR="$folder/default" "$folder/venv/bin/python" "$folder/look.py" "$folder/own" 2>"$folder/errors" | tail -1; }
fresh=$(look)
echo "fresh default folder: ${fresh/"$folder"/...}"
mkdir -p "$folder/default/ray"
existing=$(look)
echo "existing default folder: $existing"
[[ $fresh == "FileNotFoundError $folder/default/ray/ray_current_cluster" && $existing == started ]] ||
    { cat "$folder/errors" >&2; echo "Ray behaves differently now" >&2; exit 1; }
