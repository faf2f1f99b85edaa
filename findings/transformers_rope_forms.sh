#!/usr/bin/env bash
# transformers 5 saves a model's rotary parameters only under `rope_parameters`. transformers 4.57 reads `rope_theta`
# and `rope_scaling`, finds neither, and uses its defaults without a warning: a Qwen2 with a base of 1,000,000 is read
# with 10,000, a Llama 3 loses its scaling. The tokenizer's class, `TokenizersBackend`, is unknown to it as well. Both
# releases read files that have both forms in the same way.
#
# Seen: 5.23.0 writes rope_theta 1000000.0 in rope_parameters; 4.57.6 reads 10000.0, scaling None.
# Fails when 4.57.6 reads what 5.23.0 wrote. Needs Python 3.12 and PyPI (40 MB); installs into a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 5.23.0 4.57.6; do
    "${PYTHON:-python3.12}" -m venv "$folder/$version"
    if command -v uv >/dev/null; then install=(uv pip install --quiet --no-config --python "$folder/$version/bin/python")
    else install=("$folder/$version/bin/pip" install --quiet); fi
    "${install[@]}" "transformers==$version"
done
"$folder/5.23.0/bin/python" - "$folder/model" 2>/dev/null <<'PYTHON'
import sys
from transformers import LlamaConfig

scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
scaling["original_max_position_embeddings"] = 8192
LlamaConfig(rope_theta=1e6, rope_scaling=scaling, max_position_embeddings=65536).save_pretrained(sys.argv[1])
PYTHON
grep -A 8 rope_parameters "$folder/model/config.json"
"$folder/4.57.6/bin/python" - "$folder/model" 2>/dev/null <<'PYTHON'
import sys
import transformers

config = transformers.AutoConfig.from_pretrained(sys.argv[1])
print(transformers.__version__, "reads rope_theta", config.rope_theta, "and scaling", config.rope_scaling)
sys.exit(config.rope_theta == 1e6 or config.rope_scaling is not None)
PYTHON
