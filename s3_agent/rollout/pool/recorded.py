"""What the gateway has recorded of an attempt, read as Agent Lightning 1.0.2 reads it before it trains.

For agents that post their own reward or call the policy by other clients than ours: only the pool knows what the
trainer would leave out of an attempt, since neither the agent nor the trainer reports it.
"""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

SAME_PROMPT = "the same prompt was asked again: the last answer is trained"
OTHER_CHOICES = "a call asked for several choices: the first is trained"
NO_TOKENS = "the policy server returned no token ids"

Event = Mapping[str, Any]


def reward_of(events: Sequence[Event]) -> float:
    """The finite number of the last reward event. Raises a ValueError that says what was found instead."""
    rewards = [event["data"].get("value") for event in events if event["event_type"] == "reward"]
    if not rewards:
        raise ValueError("posted no reward")
    value = rewards[-1]
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return float(value)
    shown = json.dumps(value)[:60] + (" (what NaN and infinite numbers become)" if value is None else "")
    raise ValueError(f"posted no reward that is a finite number: its last is {shown}")


def untrained_answers(events: Sequence[Event]) -> Counter[str]:
    """How many answers of the policy will be in no training row, by reason.

    The trainer knows a call by its prompt's token ids and keeps one answer for each prompt.
    """
    calls = [event["data"] for event in events if event["event_type"] == "model_request"]
    choices = [_choices(call) for call in calls]
    prompts = [_prompt(call, answers) for call, answers in zip(calls, choices, strict=True)]
    last = {prompt: number for number, prompt in enumerate(prompts) if prompt}
    lost: Counter[str] = Counter()
    for number, (call, answers, prompt) in enumerate(zip(calls, choices, prompts, strict=True)):
        if not answers or call.get("status") == "error":
            continue
        if prompt and last[prompt] != number:
            lost[SAME_PROMPT] += len(answers)
        elif not answers[0].get("token_ids"):
            lost[NO_TOKENS] += len(answers)
        else:
            lost[OTHER_CHOICES] += len(answers) - 1
    return +lost


def _choices(call: Mapping[str, Any]) -> list[Any]:
    response = call.get("response")
    return (response.get("choices") or []) if isinstance(response, Mapping) else []


def _prompt(call: Mapping[str, Any], choices: Sequence[Any]) -> tuple[int, ...]:
    """A chat's prompt is in the response, a completion's in its first choice; empty where it is missing."""
    of_chat = call["response"].get("prompt_token_ids") if isinstance(call.get("response"), Mapping) else None
    found = of_chat or (choices[0].get("prompt_token_ids") if choices else None)
    return tuple(found) if isinstance(found, list) else ()
