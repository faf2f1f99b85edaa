"""What each rollout says of its player: the class, and what that class finds in its environment.

Our own pool plays our agents by its own recipe and reads no environment. The same rollouts can be played by Agent
Lightning's local controller, and by a class of somebody's own.
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
    """Task, addresses and settings, then the recipe's own `local.env_map`. An external controller's agents also keep
    their episodes."""
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
