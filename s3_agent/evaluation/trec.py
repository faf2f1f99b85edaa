"""Writes the rankings of an evaluation as TREC run files, with the qrels and topics that belong to them.

For each agent there is a run of everything that was retrieved, of what was shown, selected and handed on, and of each
search alone. Documents are named as the evidence measures compare them, each once; the score falls with the rank, so
that trec_eval keeps the order.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from s3_agent.data.files.whole import write_whole
from s3_agent.data.trec import qrel_lines, token, topic_lines
from s3_agent.evaluation.coverage import Coverage
from s3_agent.evaluation.evidence import lists_of, retrievals_of
from s3_agent.evaluation.records import EvaluatedTask
from s3_agent.evidence import GoldDocuments
from s3_agent.names import file_name
from s3_agent.types import Passage, Task

LONGEST = 200
"""Characters of a document's name; a longer one is a passage without id and title, and gets a hash for a name."""


def run_lines(question: str, ranking: Sequence[str], *, tag: str) -> Iterator[str]:
    """The lines of one question, each document once: `question Q0 document rank score tag`."""
    names = [*dict.fromkeys(map(_document, ranking))]
    for rank, name in enumerate(names, 1):
        yield f"{token(question)} Q0 {name} {rank} {len(names) - rank + 1} {token(tag)}"


def _document(name: str) -> str:
    if len(name) > LONGEST or not name.strip():
        return "passage-" + hashlib.sha256(name.encode(errors="replace")).hexdigest()[:16]
    return token(name)


def runs_of(result: EvaluatedTask, coverage: Coverage) -> dict[str, list[str]]:
    """The rankings of one result by the name of their run; none for one that failed."""
    if result.episode is None:
        return {}
    gold = GoldDocuments(result.task.evidence or (), exact=coverage.exact)
    lists: dict[str, Sequence[Passage]] = {**lists_of(result.episode, result.shown or None)}
    lists |= {f"search-{number}": found for number, found in enumerate(retrievals_of(result.episode))}
    return {name: gold.ranking(passages) for name, passages in lists.items()}


def write_trec(results: Sequence[EvaluatedTask], out: Path, coverage: Coverage, *, plain: bool = False) -> list[Path]:
    """Write topics, qrels and runs into `out`; return their paths. Questions that the measures leave out have no qrels.

    Protected questions have no topics unless `plain`; ids of questions and documents are public. Raises DataError for
    ids that a TREC file can not tell apart.
    """
    tasks: dict[str, Task] = {result.task.id: result.task for result in results}
    shown = [task for task in tasks.values() if plain or not task.protected]
    files: dict[Path, list[str]] = {Path("topics.tsv"): topic_lines(shown)} if shown else {}
    measured = [task for task in tasks.values() if task.evidence and task.id not in coverage.left_out]
    for name, answers in (("qrels.txt", False), ("qrels-answers.txt", True)):
        if lines := qrel_lines(measured, answers=answers):
            files[Path(name)] = lines
    several = {result.agent for result in results if result.sample}
    runs: dict[Path, list[str]] = defaultdict(list)
    for result in results:
        place = Path(file_name(result.agent), *([f"sample-{result.sample + 1}"] if result.agent in several else []))
        for name, ranking in runs_of(result, coverage).items():
            if ranking:
                runs[place / f"{name}.run"] += run_lines(result.task.id, ranking, tag=result.agent)
    written: list[Path] = []
    for path, lines in {**files, **runs}.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(out / path, "".join(line + "\n" for line in lines))
        written.append(out / path)
    return written
