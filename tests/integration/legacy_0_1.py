"""Run in an environment with AGL 0.1.2: its server and runner play the rows with our adapter; prints what they got."""

# pyright: reportAttributeAccessIssue=false, reportMissingImports=false

import asyncio
import json
import sys
from contextlib import nullcontext

from agentlightning import LLM, AgentLightningClient, AgentLightningServer
from agentlightning.runner import AgentRunner
from agentlightning.tracer import TripletExporter
from agentlightning.tracer.base import BaseTracer

from s3_agent.agl.legacy.agl_0_1 import S3LitAgent
from s3_agent.agl.one_task import OneTaskSettings


class NoTracer(BaseTracer):
    """Records nothing: the AgentOps tracer does not start here, so its traces beside our triplets are not tested."""

    def trace_context(self, name=None):
        return nullcontext()

    def get_last_trace(self):
        return []


async def main(policy_url: str, port: int, cases: list[dict]) -> list[dict]:
    server = AgentLightningServer(host="127.0.0.1", port=port)
    await server.start()
    tracer = NoTracer()
    client = AgentLightningClient(endpoint=f"http://127.0.0.1:{port}")
    model = LLM(endpoint=policy_url, model="fake", sampling_parameters={"temperature": 0.7})
    await server.update_resources({"main_llm": model})
    found = []
    for case in cases:
        agent = S3LitAgent(OneTaskSettings.model_validate(case["settings"]))
        runner = AgentRunner(agent, client, tracer, TripletExporter(), max_tasks=1)
        rollout_id = await server.queue_task(case["row"], mode="train")
        await runner.iter_async()
        rollout = await server.poll_completed_rollout(rollout_id, timeout=20)
        triplets = rollout.triplets or []
        ids = [(each.prompt["token_ids"], each.response["token_ids"]) for each in triplets]
        found.append({"reward": rollout.final_reward, "ids": ids})
    await server.stop()
    return found


if __name__ == "__main__":
    found = asyncio.run(main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])))
    print("FOUND" + json.dumps(found))
