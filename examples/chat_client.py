"""Two users of a running `cmr serve`: what one has told is answered to that one alone.

Each user is a session, named in a header; only what is new is sent. The answers are streamed, and
what was recalled for one comes with its end. Nothing but the standard library is needed; any client
of OpenAI's endpoints does the same (docs/serving.md).

    cmr serve
    python examples/chat_client.py --url http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

TOLD = "The meeting with Mr Harlow is on Thursday at the town hall."
QUESTION = "On which day is the meeting with Mr Harlow?"


def ask(url: str, user: str, text: str, tokens: int) -> tuple[str, list[dict[str, Any]]]:
    """Say something as a user; prints the answer as it comes, and returns it and what was read."""
    body = {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "stream": True,
    }
    headers = {"Content-Type": "application/json", "X-Session-Id": user}
    if key := os.environ.get("CMR_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), headers
    )
    print(f"{user}: {text}\n  ", end="", flush=True)
    answer, recalled = "", []
    with urllib.request.urlopen(request) as reply:
        for line in reply:
            event = line.decode().strip().removeprefix("data: ")
            if not event or event == "[DONE]":
                continue
            chunk = json.loads(event)
            if "error" in chunk:
                sys.exit(f"\nthe server says: {chunk['error']['message']}")
            piece = chunk["choices"][0]["delta"].get("content", "")
            print(piece, end="", flush=True)
            answer += piece
            recalled = chunk.get("memory", {}).get("recalled", recalled)
    print()
    for passage in recalled:
        print(f"  (read, score {passage['score']:.2f}: {' '.join(passage['text'].split())})")
    return answer, recalled


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """Tell a fact as one user and ask for it as two; returns each one's answer and passages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--tokens", type=int, default=24)
    args = parser.parse_args(argv)
    try:
        ask(args.url, "anna", TOLD, args.tokens)
        return {user: ask(args.url, user, QUESTION, args.tokens) for user in ("anna", "ben")}
    except urllib.error.HTTPError as error:
        sys.exit(f"\nthe server says: {json.load(error)['error']['message']}")
    except urllib.error.URLError as error:
        sys.exit(f"\nno server at {args.url} ({error.reason}): `cmr serve` starts one")


if __name__ == "__main__":
    main()
