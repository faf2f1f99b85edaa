"""Scripted searchers from which the nano policies are cloned: each follows one protocol and makes mistakes on purpose.

In fixed shares of the episodes they stop early, ask the wrong thing or choose wrongly, so that a clone knows the
actions but not when to use them.
"""

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from retrieval_server.backends.bm25.index import Bm25
from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.corpus import Corpus
from s3_agent.agents.s3 import compact_prompt
from s3_agent.agents.search_r1 import SearchR1Protocol
from s3_agent.embedded import CORPUS
from s3_agent.embedded.world_facts import ATTRIBUTES, Row
from s3_agent.tags import observation
from s3_agent.types import Passage, Task

TOPK = 3
_ENDS = ("", "n", "r", "s")
_SYLLABLES = [start + vowel + end for start in "bcdfghjklmnprstvwyz" for vowel in "aeiou" for end in _ENDS]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
END = "<|im_end|>"

Segment = tuple[str, bool]


class PassageFinder:
    """The embedded corpus, searched as by our server."""

    def __init__(self) -> None:
        corpus = Corpus(CORPUS)
        self._engine = Bm25.build(corpus, Bm25Settings())
        self._passages = [Passage(id=doc.id, title=doc.title, text=doc.text) for doc in corpus]
        self._found: dict[str, list[Passage]] = {}

    def retrieve(self, query: str) -> list[Passage]:
        """The top passages of a query, cached."""
        if query not in self._found:
            [hits] = self._engine.search([query], topk=TOPK)
            self._found[query] = [self._passages[row] for row, _ in hits]
        return self._found[query]


class Script(ABC):
    """Plays episodes of one protocol by script. A segment is (text, whether the policy writes it)."""

    tag_names: ClassVar[tuple[str, ...]]
    vocabulary: ClassVar[int] = 3072
    layers: ClassVar[int] = 3
    copying_steps: ClassVar[int] = 0
    """How many steps the clone first spends only on `copying`."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.retrieve = PassageFinder().retrieve

    @classmethod
    def tags(cls) -> list[str]:
        """The protocol's opening and closing tags; each becomes one token."""
        return [f"<{slash}{tag}>" for tag in cls.tag_names for slash in ("", "/")]

    def words(self, question: Row) -> str:
        """A text whose words become tokens."""
        prompt, segments = self.play(question)
        return prompt + "".join(text for text, _ in segments)

    @abstractmethod
    def play(self, question: Row, *, easy: bool = False) -> tuple[str, list[Segment]]:
        """One episode: the user message and the segments after it. `easy` shows one document and makes no mistakes."""

    def copying(self, question: Row) -> tuple[str, list[Segment]]:
        """The shortest episode that consists of copying. Raises NotImplementedError if the protocol needs none."""
        raise NotImplementedError


class S3Script(Script):
    """s3: marks the documents that it needs, and searches for the country of a city."""

    tag_names = ("query", "information", "important_info", "search_complete", "question")
    stops_early, stops_on_one_hop = 0.40, 0.75
    wrong_name, wrong_attribute = 0.25, 0.10
    marks_all, marks_at_random = 0.25, 0.15

    def _mark(self, passages: Sequence[Passage], titles: set[str], *, noise: bool) -> str:
        ids = [number for number, passage in enumerate(passages, 1) if passage.title in titles]
        chance = self.rng.random()
        everything = range(1, len(passages) + 1)
        if noise and chance < self.marks_all:
            ids = list(everything)
        elif noise and chance < self.marks_all + self.marks_at_random:
            ids = sorted(self.rng.sample(everything, self.rng.choice([1, min(2, len(passages))])))
        return f"<important_info>{ids or [1]}</important_info>\n"

    def play(self, question: Row, *, easy: bool = False) -> tuple[str, list[Segment]]:
        shown = 1 if easy else TOPK
        rng, bridge, label = self.rng, question["bridge"], ATTRIBUTES.get(question["attribute"], "country")
        first = self.retrieve(question["question"])[:shown]
        finish = f"<search_complete>True</search_complete>{END}"
        gold = {question["entity"], bridge} - {None}
        head = self._mark(first, gold, noise=not easy)
        prompt = compact_prompt(question["question"], first)
        stops = not bridge if easy else rng.random() < (self.stops_early if bridge else self.stops_on_one_hop)
        if stops:
            return prompt, [(head + finish, True)]
        name, chance = bridge or question["entity"], rng.random()
        if not easy and chance < self.wrong_name:
            name = rng.choice(first).title
        elif not easy and chance < self.wrong_name + self.wrong_attribute:
            label = rng.choice(list(ATTRIBUTES.values()))
        query = f"{label} of {name}"
        search = f"<search_complete>False</search_complete>\n<query>{json.dumps({'query': query})}</query>"
        second = self.retrieve(query)[:shown]
        return prompt, [
            (head + search, True),
            (observation(second), False),
            (self._mark(second, gold, noise=not easy) + finish, True),
        ]


class SearchR1Script(Script):
    """Search-R1: searches for what the question names, then for its country, and reads the answer from the results.

    A clone must copy names that it never saw instead of learning names. So names are spelled: tokens are learned from
    texts without names, and a name is split into pieces that all names share. In a share of the episodes the names of
    city and country are invented, the same in all texts. Training begins with searches only, in which a small model
    learns to copy.
    """

    tag_names = ("search", "information", "answer", "think")
    stops_early = 0.55
    wrong_name, wrong_answer = 0.15, 0.15
    renamed, renamed_easy = 0.5, 0.8
    vocabulary, layers = 512, 4
    copying_steps = 1200

    def play(self, question: Row, *, easy: bool = False) -> tuple[str, list[Segment]]:
        prompt, segments = self._play(question, easy=easy)
        if self.rng.random() >= (self.renamed_easy if easy else self.renamed):
            return prompt, segments
        return self._rename(question, prompt, segments)

    def words(self, question: Row) -> str:
        prompt, segments = self._play(question, easy=True)
        text = prompt + "".join(text for text, _ in segments)
        for name in filter(None, (question["entity"], question["bridge"])):
            text = text.replace(name, "")
        return text

    def copying(self, question: Row) -> tuple[str, list[Segment]]:
        return self._rename(question, self._prompt(question), [self._search(question["entity"])])

    def _rename(self, question: Row, prompt: str, segments: list[Segment]) -> tuple[str, list[Segment]]:
        for name in filter(None, (question["entity"], question["bridge"])):
            made_up = self._name()
            prompt = prompt.replace(name, made_up)
            segments = [(text.replace(name, made_up), written) for text, written in segments]
        return prompt, segments

    @staticmethod
    def _prompt(question: Row) -> str:
        return SearchR1Protocol("compact").message(Task.from_row(question), ())

    @staticmethod
    def _search(query: str) -> Segment:
        return f"<search> {query} </search>", True

    def _name(self) -> str:
        words = [self._word() for _ in range(self.rng.choice((1, 1, 1, 2)))]
        return " ".join(words)

    def _word(self) -> str:
        """An invented word: syllables, or letters in any order."""
        if self.rng.random() < 0.5:
            return "".join(self.rng.choice(_SYLLABLES) for _ in range(self.rng.choice((2, 3, 3, 4)))).capitalize()
        return "".join(self.rng.choice(_LETTERS) for _ in range(self.rng.randint(4, 11))).capitalize()

    def _play(self, question: Row, *, easy: bool) -> tuple[str, list[Segment]]:
        shown = 1 if easy else TOPK
        rng, entity, bridge = self.rng, question["entity"], question["bridge"]
        label = ATTRIBUTES.get(question["attribute"])
        first = self.retrieve(entity)[:shown]
        segments = [self._search(entity), (observation(first), False)]
        told = first
        if bridge and (easy or rng.random() >= self.stops_early):
            name = bridge if easy or rng.random() >= self.wrong_name else rng.choice(first).title
            query = f"{label} of {name}"
            told = self.retrieve(query)[:shown]
            segments += [self._search(query), (observation(told), False)]
        answer = self._answer(question, told, noise=not easy)
        return self._prompt(question), [*segments, (f"<answer> {answer} </answer>{END}", True)]

    def _answer(self, question: Row, told: Sequence[Passage], *, noise: bool) -> str:
        """The gold if it was shown, else the country or a title: the answer of a searcher that stopped early."""
        [gold] = question["golden_answers"]
        wanted = question["bridge"] or question["entity"]
        known = any(passage.title == wanted for passage in told)
        if known and not (noise and self.rng.random() < self.wrong_answer):
            return gold
        return question["bridge"] or self.rng.choice(told).title
