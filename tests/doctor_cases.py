"""A sound case for the doctor's tests: a shipped recipe, a machine that suits it, and everything in its place."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from s3_agent.agl.verl_config import TrainerRecipe, TrainerSettings, trainer_config
from s3_agent.data.naive_rag.cache import Fingerprint, RagAnswer, RagCache
from s3_agent.doctor.case import Case, IndexFacts, ModelFiles
from s3_agent.doctor.training import Training, read_training
from s3_agent.machine.description import GIB, MIB, Disk, Gpu, Host, Machine
from s3_agent.machine.model_files import PUBLISHED
from s3_agent.recipe import Recipe, load_recipe
from s3_agent.testing.fakes import ToyTokenizer
from s3_agent.types import Task

PINNED = {"agentlightning": "1.0.2", "verl": "0.8.0", "torch": "2.11.0", "vllm": "0.20.2", "flash-attn": "2.8.3"}
INSTALLED = {**PINNED, "tensorboard": "2.21.0"}
A100 = Gpu(0, "NVIDIA A100-SXM4-40GB", 40960 * MIB, 40950 * MIB, driver="580.95.05", capability=(8, 0))
TASKS = tuple(Task(id=str(n), question=f"Who was number {n}?", golden_answers=("Ann",)) for n in range(700))
HOST = Host(
    ram=1024 * GIB,
    ram_free=900 * GIB,
    cores=96,
    shm_free=64 * GIB,
    open_files=1 << 20,
    processes=1 << 20,
    now=2e9,
    newest_input=1.9e9,
    ephemeral_ports=(32768, 60999),
    packages=INSTALLED,
    cuda="13.0",
)


@cache
def recipe(name: str, *overrides: str) -> Recipe:
    return load_recipe(name, overrides)


def settings(name: str, *overrides: str) -> TrainerSettings:
    chosen = recipe(name, *overrides)
    return TrainerSettings.model_validate(
        {
            **chosen.trainer.model_dump(include=set(TrainerRecipe.model_fields)),
            "run": "x",
            "model": chosen.policy.model,
            "gateway_url": "http://127.0.0.1:8181",
            "checkpoints": "checkpoints",
            "validation_size": 512,
        }
    )


@cache
def training(name: str, *overrides: str) -> Training:
    return read_training(trainer_config(settings(name, *overrides), gateway_key=""))


def rag_cache(tasks: tuple[Task, ...], **fingerprint: Any) -> RagCache:
    answers = {
        task.id: RagAnswer(
            question=task.question, answer="Bob", score=0, em_score=0, golden_answers=task.golden_answers
        )
        for task in tasks
    }
    made = {"corpus": "c", "retriever": "r", "topk": 3, "generator": "g", "max_tokens": None, "prompt": "p"}
    return RagCache(fingerprint=Fingerprint(**{**made, **fingerprint}), answers=answers)


def sound(name: str = "s3_8x40gb", *overrides: str, gpus: int = 8, card: Gpu = A100, **host: Any) -> Case:
    """A case without a fault, but for what the overrides or the changes to the host plant."""
    chosen = recipe(name, *overrides)
    kept = {path: Disk(device=1, free=2048 * GIB) for path in (chosen.runs, chosen.prepared)}
    cache = rag_cache(TASKS)
    models = {
        part: ModelFiles(model, Path("/models") / part, PUBLISHED[model])
        for part, model in (("policy", chosen.policy.model), ("generator", chosen.generator.model))
        if model in PUBLISHED
    }
    return Case(
        recipe=chosen,
        training=training(name, *overrides),
        machine=Machine(
            gpus=tuple(replace(card, index=index) for index in range(gpus)),
            host=replace(HOST, disks=kept, **host),
        ),
        models=models,
        index=IndexFacts(21_015_324, 768),
        tokenizer=ToyTokenizer(),
        vocabulary=PUBLISHED[chosen.policy.model].vocab - 100 if "policy" in models else None,
        first_prompt=1100,
        train=TASKS[:650],
        validation=TASKS[650:],
        rag_cache=cache if chosen.data.rag_cache else None,
        fingerprint=cache.fingerprint if chosen.data.rag_cache else None,
        pinned=PINNED,
    )
