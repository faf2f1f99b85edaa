"""What is made from protected tasks of a user's own files is private, as what is made from published ones."""

import json
from pathlib import Path

import pytest

from s3_agent.data.files.stages import Ledger, run_stages
from s3_agent.data.naive_rag.cache import RagAnswer, RagCache
from s3_agent.preparation.stages import DataStages
from s3_agent.recipe import load_recipe


@pytest.mark.parametrize("marked", [None, "train", "validation"])
def test_the_data_folder_of_own_protected_tasks_is_private(tmp_path: Path, marked: str | None) -> None:
    for name in ("train", "validation"):
        row = {"id": name, "question": "q?", "golden_answers": ["a"], **({"protected": "c"} if name == marked else {})}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    files = [f"data.{name}={tmp_path / name}.jsonl" for name in ("train", "validation")]
    recipe = load_recipe("cpu", [*files, f"data.folder={tmp_path / 'data'}"])
    ledger = Ledger(recipe.data_folder)
    run_stages(ledger, [DataStages(recipe, ledger).questions()], say=lambda _: None, dry_run=False)
    private = ledger.folder.stat().st_mode & 0o077 == 0
    assert private == (ledger.folder / ".gitignore").exists() == (marked is not None)


@pytest.mark.parametrize("protected", [None, "canary"])
def test_only_the_owner_reads_a_rag_cache_with_protected_answers(tmp_path: Path, protected: str | None) -> None:
    answer = RagAnswer(question="q?", answer="a", golden_answers=("a",), score=1, em_score=1, protected=protected)
    path = tmp_path / "rag_cache.json"
    RagCache(fingerprint=None, answers={"1": answer}).save(path)
    assert (path.stat().st_mode & 0o077 == 0) == (protected is not None)
