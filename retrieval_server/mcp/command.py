"""`python -m retrieval_server mcp --url …`: the tools over stdio, for desktop assistants, in front of a running server.

It loads no index, so that an assistant can start it in a second. Nothing but the protocol goes to standard output.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence

from retrieval_server.errors import RetrievalError
from retrieval_server.schemas import KEY_VARIABLE, TEXT_CHARACTERS
from retrieval_server.services import Key


def main(arguments: Sequence[str]) -> int:
    """Serve until standard input ends; the exit code."""
    try:
        from retrieval_server.mcp.client import Routes, http_client
        from retrieval_server.mcp.dialects import DIALECTS, make_server
    except ImportError as cause:
        sys.stderr.write(f"{cause}\n  What to do: pip install 's3-agent[mcp]'\n")
        return 2
    parser = argparse.ArgumentParser(
        prog="python -m retrieval_server mcp",
        description="Tools for assistants over stdio, in front of a running retrieval server.",
        epilog=f"The server's key is read from {KEY_VARIABLE}.",
    )
    parser.add_argument("--url", required=True, help="the retrieval server, for example http://127.0.0.1:3000")
    parser.add_argument("--dialect", choices=list(DIALECTS), default="own", help="names and shapes of the tools")
    parser.add_argument(
        "--characters", type=int, default=TEXT_CHARACTERS, help="characters of a found text (default %(default)s)"
    )
    options = parser.parse_args(arguments)
    if not options.url.startswith(("http://", "https://")):
        parser.error(f"--url: {options.url!r} is not an http address")
    if options.characters < 1:
        parser.error("--characters: give at least 1")
    try:
        key = Key(KEY_VARIABLE).value or None
    except RetrievalError as error:
        parser.error(str(error))

    async def serve() -> None:
        async with http_client(options.url, key) as http:
            server = make_server(Routes(http), characters=options.characters, dialect=options.dialect)
            await server.run_stdio_async()

    asyncio.run(serve())
    return 0
