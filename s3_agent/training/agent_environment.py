"""The agent class that plays each rollout, and the environment variables that this class reads.

The main job puts both into every rollout. Our own pool does not need the variables, because it plays our agents from
its own recipe. Agent Lightning's local controller and a user's own class need them to play the same rollouts.
"""

import json

from pydantic import BaseModel

from s3_agent.agl.one_task import PREFIX
from s3_agent.clients.tokenizer import ChatTemplate
from s3_agent.processes.run_folder import Run
from s3_agent.recipe import Recipe
from s3_agent.rollout.worker.native import RECIPE_AGENT


def agent_class_of(recipe: Recipe) -> str:
    """The class that plays the recipe's rollouts."""
    return recipe.local.agent_class or recipe.agent.method.entry or RECIPE_AGENT


def _json(section: BaseModel) -> str:
    return json.dumps(section.model_dump(mode="json"))


def env_map_of(recipe: Recipe, run: Run) -> dict[str, str]:
    """Task, addresses and settings; `local.env_map` of the recipe overrides them. Agents of an external controller also
    get the file for their episodes."""
    template = recipe.policy.template
    if template.chat_template is not None:
        template = template.model_copy(update={"chat_template": template.chat_template.absolute()})
    values = {
        "TASK": "input",
        "RETRIEVER_URL": recipe.retriever_url,
        "GENERATOR_URL": recipe.generator_url,
        "POLICY_TOKENIZER": recipe.policy.model,
        "POLICY_TEMPLATE": _json(template) if template != ChatTemplate() else None,
        "POLICY_CONTEXT_TOKENS": str(recipe.trained_window),
        "PATIENCE_S": str(recipe.trainer.rollout_timeout_s),
        "AGENT": _json(recipe.agent),
        "GENERATOR": _json(recipe.generator.client),
        "JUDGE": _json(recipe.judge),
        "EPISODES": str(run.episodes.absolute()) if recipe.workers.external else None,
    }
    return {PREFIX + name: value for name, value in values.items() if value is not None} | recipe.local.env_map
