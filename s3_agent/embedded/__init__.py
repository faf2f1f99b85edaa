"""The embedded default: a small corpus with questions, a frozen generator and a trainable policy, all in packages.

With it the whole job runs on a bare machine, without a model hub. The modules here generate `assets/`.
"""

from importlib.resources import files
from pathlib import Path

ASSETS = Path(str(files(__package__) / "assets"))
CORPUS = ASSETS / "corpus.jsonl"
TRAIN = ASSETS / "train.jsonl"
VALIDATION = ASSETS / "val.jsonl"
RAG_CACHE = ASSETS / "rag_cache.json"
NANO_POLICY = ASSETS / "nano-policy"
NANO_SEARCH_R1 = ASSETS / "nano-search-r1"
NANO_POLICIES = {"s3": NANO_POLICY, "search_r1": NANO_SEARCH_R1}
