"""Run in an environment with AGL 0.3.0: its store and runner play the rows with our adapter; prints what they got."""

import asyncio
import json
import sys

from agentlightning import (
    InMemoryLightningStore,  # pyright: ignore
    LitAgentRunner,  # pyright: ignore
    OtelTracer,  # pyright: ignore
    ProxyLLM,  # pyright: ignore
    find_final_reward,  # pyright: ignore
)

from s3_agent.agl.legacy.agl_0_3 import S3LitAgent
from s3_agent.agl.one_task import OneTaskSettings


async def main(policy_url: str, cases: list[dict]) -> list[dict]:
    store, found = InMemoryLightningStore(), []
    model = ProxyLLM(endpoint=policy_url, model="fake", api_key="k", sampling_parameters={"temperature": 0.7})
    await store.add_resources({"main_llm": model})
    for case in cases:
        agent = S3LitAgent(OneTaskSettings.model_validate(case["settings"]))
        runner = LitAgentRunner(tracer=OtelTracer(), max_rollouts=1, poll_interval=0.1)
        rollout = await store.enqueue_rollout(case["row"], mode="train")
        with runner.run_context(agent=agent, store=store):
            await runner.iter()
        [attempt] = await store.query_attempts(rollout.rollout_id)
        reward = find_final_reward(await store.query_spans(rollout.rollout_id))
        found.append({"reward": reward, "status": attempt.status})
    return found


if __name__ == "__main__":
    found = asyncio.run(main(sys.argv[1], json.loads(sys.argv[3])))
    print("FOUND" + json.dumps(found))
