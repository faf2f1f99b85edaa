"""What a run is not resumed with, before anything is started or changed."""

from pathlib import Path

import httpx
import pytest
import respx

from s3_agent.errors import ConfigError, LaunchError
from s3_agent.launch.job import require_empty_gateway, resume_job
from s3_agent.recipe import load_recipe

GATEWAY = "http://gateway:1"


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run 'nobody'"):
        resume_job("nobody", [f"runs={tmp_path}"])


@pytest.mark.parametrize(
    ("answer", "empty"),
    [
        (httpx.Response(200, json=[]), True),
        (httpx.Response(200, json=[{"rollout_id": "of the killed run"}]), False),
        (httpx.Response(401), False),
    ],
)
@respx.mock
def test_a_gateway_that_holds_rollouts_of_the_killed_run_is_refused(answer: httpx.Response, empty: bool) -> None:
    asked = respx.get(f"{GATEWAY}/api/rollouts").mock(return_value=answer)
    recipe = load_recipe("cpu", [f"gateway.url={GATEWAY}", "gateway.key=k"])
    if empty:
        require_empty_gateway(recipe)
    else:
        with pytest.raises(LaunchError, match="still holds rollouts"):
            require_empty_gateway(recipe)
    request = asked.calls.last.request
    assert request.url.params.get_list("state_in") == ["queuing", "running"]
    assert request.headers["Authorization"] == "Bearer k"


def test_our_own_gateway_is_new_and_not_asked() -> None:
    require_empty_gateway(load_recipe("cpu"))
