"""An agent of your own: one look at the passages, at most one search, and the generator answers."""

import json
import os
import re
from typing import Any

import httpx

RETRIEVER, GENERATOR = "S3_AGENT_RETRIEVER_URL", "S3_AGENT_GENERATOR_URL"


def call(http: httpx.Client, url: str, **body: Any) -> Any:
    return http.post(url, json=body).raise_for_status().json()


def search(http: httpx.Client, query: str) -> list[dict[str, str]]:
    return call(http, f"{os.environ[RETRIEVER]}/retrieve", queries=[query], topk=3)["result"][0]


def chat(http: httpx.Client, base: str, model: str, content: str, **options: Any) -> str:
    messages = [{"role": "user", "content": content}]
    reply = call(http, f"{base}/chat/completions", model=model, messages=messages, **options)
    return reply["choices"][0]["message"]["content"]


class OneLook:
    """Agent Lightning calls `run()` for each rollout: it reads its input from the environment and posts a reward."""

    def run(self) -> None:
        task = json.loads(os.environ["S3_AGENT_TASK"])
        question, key = task["question"], {"Authorization": f"Bearer {os.environ['AGL_KEY']}"}
        with httpx.Client(timeout=120) as services, httpx.Client(timeout=120, headers=key) as gateway:
            seen = search(services, question)
            shown = "\n".join(f"Doc {n} (Title: {doc['title']}) {doc['text']}" for n, doc in enumerate(seen, 1))
            prompt = f"<question>\n{question}\n</question>\n<information>\n{shown}\n</information>\n"
            said = chat(gateway, os.environ["AGL_OPENAI_BASE_URL"], "policy", prompt, max_tokens=48, stop=["</query>"])
            if query := re.search(r'"query": "([^"]+)"', said):
                seen = search(services, query[1])
            context = "\n".join(doc["text"] for doc in seen)
            asked = f"{context}\n\nQuestion: {question}\nAnswer with a few words of the text above."
            model = json.loads(os.environ["S3_AGENT_GENERATOR"])["model"]
            answer = chat(services, os.environ[GENERATOR], model, asked, max_tokens=24, temperature=0)
            right = any(gold.casefold() in answer.casefold() for gold in task["golden_answers"])
            call(gateway, os.environ["AGL_EVENT_URL"], event_type="reward", data={"value": float(right)})
