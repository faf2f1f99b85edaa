"""Env-contract classes as users of AGL's local controller write them: `run()`, variables in, a posted reward out."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

LEFT: list[str] = []


def post(event_type: str, **data: Any) -> None:
    headers = {"Authorization": f"Bearer {os.environ['AGL_KEY']}"}
    body = {"event_type": event_type, "data": data}
    httpx.post(os.environ["AGL_EVENT_URL"], json=body, headers=headers, timeout=30).raise_for_status()


class AsksThePolicy:
    """One chat completion about the question, then a reward: the shape of AGL's own examples."""

    async def run(self) -> None:
        headers = {"Authorization": f"Bearer {os.environ['AGL_KEY']}"}
        async with httpx.AsyncClient(base_url=os.environ["AGL_OPENAI_BASE_URL"], headers=headers) as client:
            body = {"model": "auto", "prompt": [65, 66], "max_tokens": 8, "stop": []}
            answer = await client.post("completions", json=body, timeout=30)
        answer.raise_for_status()
        gold = json.loads(os.environ["GOLD"])
        print("asked about", os.environ["QUESTION"])
        await asyncio.to_thread(post, "reward", value=1.0 if "Krone" in gold else 0.0)


class TellsWhatItSees:
    """Posts what a class can see of the process that it runs in."""

    def run(self) -> None:
        post(
            "seen",
            argv=sys.argv,
            cwd=os.getcwd(),
            path=[entry for entry in sys.path if "site-packages" in entry or entry == ""],
            environment={name: os.environ.get(name) for name in ("QUESTION", "NESTED", "CONSTANT", "INHERITED")},
            leader=os.getsid(0) == os.getpid(),
            stdin=sys.stdin.read(),
            main=__name__,
        )
        post("reward", value=0.5)


class LeavesEverythingBehind:
    """Notes what an earlier rollout has left here, and leaves as much as it can itself."""

    def run(self) -> None:
        post("found", left=LEFT, variable=os.environ.get("LEFT_BEHIND"), cwd=os.getcwd(), module="left" in sys.modules)
        LEFT.append("global")
        os.environ["LEFT_BEHIND"] = "yes"
        sys.modules["left"] = sys
        subprocess.Popen(["sleep", "300"])
        away = subprocess.Popen(["sleep", "301"], start_new_session=True)
        with Path(os.environ["PIDS"]).open("a") as file:
            file.write(f"{away.pid}\n")
        os.chdir("/")
        post("reward", value=1.0)


class FailsOnce:
    """Exits as it is told to at its first try: an exception, an exit code, a signal, or never."""

    def run(self) -> None:
        mark, how = Path(os.environ["MARK"]), os.environ["HOW"]
        if mark.exists():
            post("reward", value=1.0)
            return
        mark.touch()
        print("about to fail")
        post("reward", value=100.0)
        if how == "exception":
            raise RuntimeError("as I was told")
        if how == "exit":
            sys.exit(7)
        if how == "killed":
            os.kill(os.getpid(), 9)
        subprocess.Popen(["sleep", "302"])
        Path(os.environ["PIDS"]).write_text(f"{os.getpid()}\n")
        time.sleep(600)


class AsksTooMuch:
    """Asks for two answers, asks the same again, and asks a chat whose server returns no token ids."""

    def run(self) -> None:
        headers = {"Authorization": f"Bearer {os.environ['AGL_KEY']}"}
        with httpx.Client(base_url=os.environ["AGL_OPENAI_BASE_URL"], headers=headers, timeout=30) as client:
            body = {"model": "auto", "max_tokens": 8, "stop": []}
            message = {"role": "user", "content": "Krone?"}
            for path, asked in (
                ("completions", {"prompt": [65, 66], "n": 2}),
                ("completions", {"prompt": [65, 67]}),
                ("completions", {"prompt": [65, 67]}),
                ("chat/completions", {"messages": [message]}),
            ):
                client.post(path, json={**body, **asked}).raise_for_status()
            if os.environ.get("STREAMED"):
                client.post("completions", json={**body, "prompt": [65], "stream": True}).raise_for_status()
        post("reward", value=1.0)


class EndsWithoutReward:
    """Exits as one that succeeded, and posts no reward that is a finite number."""

    def run(self) -> None:
        if reward := os.environ.get("REWARD"):
            content = f'{{"event_type": "reward", "data": {{"value": {reward}}}}}'
            headers = {"Authorization": f"Bearer {os.environ['AGL_KEY']}", "Content-Type": "application/json"}
            httpx.post(os.environ["AGL_EVENT_URL"], content=content, headers=headers).raise_for_status()
        sys.exit(0)


class Sleeps:
    """Sleeps for as many seconds as it is told to."""

    def run(self) -> None:
        time.sleep(float(os.environ["SECONDS"]))


not_a_class = 1
