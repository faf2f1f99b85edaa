"""One question, one episode, shown readably: the quickest look at what a trained policy does."""

import asyncio
import secrets
from pathlib import Path

import httpx
from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel

from s3_agent.clients.generator import make_generator
from s3_agent.clients.policy import CompletionsPolicy, load_tokenizer
from s3_agent.clients.retriever import HttpRetriever
from s3_agent.errors import ConfigError
from s3_agent.launch import commands
from s3_agent.launch.job import Run, require_external, resolve_ports, scratch_run, service_parts
from s3_agent.launch.ports import reserve_port
from s3_agent.launch.stack import Part, Stack
from s3_agent.recipe import Recipe
from s3_agent.rollout.runner import Outcome, run_task
from s3_agent.types import Passage, Task, Turn

console = Console(stderr=True)
POLICY_NAME = "policy"
UNKNOWN = "(unknown)"


def newest_run(runs: Path) -> Path:
    """The newest run that has a trained policy. Raises ConfigError when there is none."""
    finished = sorted(runs.glob("*/policy/config.json"), key=lambda path: path.stat().st_mtime)
    if not finished:
        raise ConfigError(f"no run in {runs} has a trained policy", remedy="train one: bash train.sh")
    return finished[-1].parents[1]


def policy_part(model: Path, run: Run, *, port: int) -> Part:
    """vLLM over the trained policy."""
    options = ["--enforce-eager", "--max-num-seqs", "8"] + (["--dtype", "float32"] if commands.has_cpu_vllm() else [])
    return Part(
        name="policy",
        command=commands.vllm_command(str(model), POLICY_NAME, port=port, options=options),
        log=run.logs / "policy.log",
        ready_url=f"http://127.0.0.1:{port}/health",
        environment=commands.CPU_ENVIRONMENT if commands.has_cpu_vllm() else {},
        remedy="check that the run's policy folder is whole",
    )


async def _play(recipe: Recipe, task: Task, policy_url: str, tokenizer: str) -> Outcome:
    async with httpx.AsyncClient(timeout=300.0) as http:
        return await run_task(
            task,
            recipe.agent.model_copy(update={"reward": "accuracy"}),
            policy=CompletionsPolicy(http, policy_url, load_tokenizer(tokenizer), model=POLICY_NAME, temperature=0.0),
            retriever=HttpRetriever(http, commands.retriever_url(recipe)),
            generator=make_generator(http, commands.generator_url(recipe), recipe.generator.client),
        )


def _passages(passages: tuple[Passage, ...]) -> str:
    return "\n".join(
        f"[dim]{number}. {escape(doc.title)}[/] {escape(doc.text)}" for number, doc in enumerate(passages, 1)
    )


def _turn(number: int, turn: Turn) -> Panel:
    body = escape(turn.response)
    if turn.passages is not None:
        body += "\n\n" + (_passages(turn.passages) or "[dim]nothing found[/]")
    return Panel(body, title=f"turn {number}: {turn.action.kind if turn.action else ''}", title_align="left")


def episode_view(question: str, outcome: Outcome) -> Group:
    """The trajectory, what was selected and the answer."""
    episode = outcome.episode
    return Group(
        Panel(_passages(episode.initial_passages), title=escape(question), title_align="left"),
        *(_turn(number, turn) for number, turn in enumerate(episode.turns, 1)),
        Panel(_passages(episode.selected), title=f"selected ({episode.stop_reason})", title_align="left"),
        Panel(f"[bold]{escape(outcome.answer)}[/]", title="answer", title_align="left"),
    )


def ask_job(recipe: Recipe, question: str, *, run: Path | None, policy_url: str | None, as_json: bool) -> int:
    """Play one question with the policy of `run`, or the one at `policy_url`. Raises S3AgentError."""
    if not question.strip():
        raise ConfigError("the question is empty", remedy='ask something: s3-agent ask "…?"')
    model = recipe.policy.model if policy_url and run is None else str((run or newest_run(recipe.runs)) / "policy")
    if run is not None and not (run / "policy").is_dir():
        raise ConfigError(f"{run} has no trained policy", remedy="give the folder of a finished run")
    require_external(recipe)
    recipe = resolve_ports(recipe)
    task = Task(id="ask", question=question, golden_answers=(UNKNOWN,))
    with scratch_run(recipe) as scratch:
        parts = service_parts(recipe, scratch)
        if policy_url is None:
            port = reserve_port("policy", 0)
            parts.append(policy_part(Path(model), scratch, port=port))
            policy_url = f"http://127.0.0.1:{port}/v1"
        with Stack(parts, run_id=secrets.token_hex(8)) as stack:
            with console.status("starting " + ", ".join(part.name for part in parts)):
                stack.run()
            outcome = asyncio.run(_play(recipe, task, policy_url, model))
    if as_json:
        answer = {"question": question, "answer": outcome.answer, "episode": outcome.episode.model_dump(mode="json")}
        Console().print_json(data=answer)
    else:
        Console().print(episode_view(question, outcome))
    return 0
