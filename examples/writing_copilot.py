"""A writing copilot that remembers a project's name, tone, deadline and budget.

One process reads four documents of the studio and saves the memory. Another process loads it and is
asked with none of them in the prompt.

    python examples/writing_copilot.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from assistant import Answered, Request, arguments, run
from common import encode

import cmr

DOCUMENTS = {
    "welcome": """Welcome to the studio. Your desk is on the second floor, next to the window with
the plants; please water them on Mondays. The kitchen is shared with the photographers, who are glad
about every cup that finds its way back. Parcels are kept at the reception until six. If you need a
quiet place to write, take one of the two small rooms and put your name on the door. The printer is
old and slow, so be patient with it, and never print more than twenty pages at once. On Thursdays we
have lunch together, and whoever is new chooses the place.
""",
    "style guide": """Style guide, third edition. We write for people who read on their way to work,
so every text begins with what is new. Numbers up to twelve are written as words. The tone of the
project is concise and friendly. Every text is read by a second person before it leaves the house.
Pictures are chosen by the client, and we only say what does not fit.
""",
    "minutes": """Minutes of the meeting on Tuesday. The new posters are back from the printers and
hang in the hall. Three drafts were shown, of which the second one was liked best because of its
colours. The deadline of the project is the 14th of October. The coffee machine will be repaired,
and the room is booked until noon.
""",
    "letter": """Dear team, thank you for your quick answer and for the samples, which arrived
safely on Friday. Everybody here liked the green one. The code name of the project is Falcon. The
budget of the project is 8500 euros. Please send the invoice to our new address. With kind regards.
""",
}
REQUESTS = (
    Request("studio", "What's the project called?", "The code name of the project is", ("Falcon",)),
    Request(
        "studio",
        "When do we have to be done? I need the deadline for my calendar.",
        "The deadline of the project is",
        ("14th of October",),
    ),
    Request(
        "studio",
        "What tone should I write in?",
        "The tone of the project is",
        ("concise", "friendly"),
    ),
    Request(
        "studio",
        "Write a short note to the team about the deadline of our project.",
        "Dear team, the deadline of the project is",
        ("14th of October",),
    ),
    Request(
        "studio",
        "Draft a mail to the printers, they want to know what we can spend.",
        "Dear printers, our budget is",
        ("8500",),
    ),
)


def learn(model: Any, tokenizer: Any, memory: cmr.Memory) -> None:
    """Read the documents, and show what is stored about a word."""
    memory.session("studio", create=True).read(encode(tokenizer, "\n".join(DOCUMENTS.values())))
    print("stored about the deadline:")
    for block in memory.inspect(text="deadline"):
        print(f"  tokens {block.start}-{block.end}: {' '.join(block.text.split())}")


def main(argv: Sequence[str] | None = None) -> list[Answered]:
    """Learn and ask, in a process each, or one of the two; returns the answers of this process."""
    return run(__file__, arguments(__doc__, argv), learn, REQUESTS)


if __name__ == "__main__":
    main()
