"""Shows one episode on a terminal: its turns with the passages found, the selected passages and the answer."""

from rich.console import Group
from rich.markup import escape as escape_markup
from rich.panel import Panel

from s3_agent.guard import printable
from s3_agent.types import Episode, Passage, Turn


def escape(text: str) -> str:
    """`text` escaped for the terminal: neither rich nor the terminal interprets any of it as a command."""
    return escape_markup(printable(text))


def _passages(passages: tuple[Passage, ...]) -> str:
    return "\n".join(
        f"[dim]{number}. {escape(doc.title)}[/] {escape(doc.text)}" for number, doc in enumerate(passages, 1)
    )


def _turn(number: int, turn: Turn) -> Panel:
    body = escape(turn.response)
    if turn.passages is not None:
        body += "\n\n" + (_passages(turn.passages) or "[dim]nothing found[/]")
    title = f"turn {number}: {turn.action.kind if turn.action else ''}"
    tokens = f"{turn.prompt_tokens} tokens read, {turn.response_tokens} written" if turn.response_tokens else None
    return Panel(body, title=title, title_align="left", subtitle=tokens, subtitle_align="right")


def episode_view(question: str, episode: Episode, answer: str | None) -> Group:
    """The trajectory, the selected passages and the answer."""
    shown = "[dim]none[/]" if answer is None else f"[bold]{escape(answer)}[/]"
    return Group(
        Panel(_passages(episode.initial_passages), title=escape(question), title_align="left"),
        *(_turn(number, turn) for number, turn in enumerate(episode.turns, 1)),
        Panel(_passages(episode.selected), title=f"selected ({episode.stop_reason})", title_align="left"),
        Panel(shown, title="answer", title_align="left"),
    )
