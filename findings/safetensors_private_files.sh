#!/usr/bin/env bash
# safetensors 0.8 writes files with the permissions 0600, whatever the umask is; 0.7 followed the umask. In a model
# folder saved by `save_pretrained` everybody can then read the configuration and tokenizer, but only the owner the
# weights: a server that another user starts on it ends with "Permission denied".
#
# Seen with umask 022: 0.7.0 0644, 0.8.0 0600.
# Fails when 0.8.0 follows the umask or 0.7.0 does not. Needs Python 3.12 and PyPI (20 MB); installs into a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.12}" -m venv "$folder/venv"
if command -v uv >/dev/null; then install=(uv pip install --quiet --no-config --python "$folder/venv/bin/python")
else install=("$folder/venv/bin/pip" install --quiet); fi
umask 022
for pair in 0.7.0:644 0.8.0:600; do
    "${install[@]}" "safetensors==${pair%:*}" "numpy==2.3.5"
    rm -f "$folder/x.safetensors"
    "$folder/venv/bin/python" -c "
import sys, numpy, safetensors.numpy
safetensors.numpy.save_file({'a': numpy.ones(2)}, sys.argv[1])" "$folder/x.safetensors"
    mode=$(stat -c %a "$folder/x.safetensors")
    printf 'safetensors %s: %s\n' "${pair%:*}" "$mode"
    [[ $mode == "${pair#*:}" ]]
done
