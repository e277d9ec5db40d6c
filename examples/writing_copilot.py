"""A writing copilot that remembers a project's name, tone and deadline over several documents.

It reads four documents of the studio and is then asked with none of them in the prompt.
`memory.inspect` shows what is stored about a word.

    python examples/writing_copilot.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from common import both, encode, load

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
QUESTIONS = (
    "What is the code name of the project?",
    "What is the tone of the project?",
    "What is the deadline of the project?",
    "What is the budget of the project?",
)


def main(argv: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """Read the documents, ask; returns the answers without and with memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--question", action="append", help="in place of the questions above")
    args = parser.parse_args(argv)
    model, tokenizer = load()
    with (
        cmr.attach(model, tokenizer=tokenizer, budget=8192) as memory,
        memory.session("studio", create=True),
    ):
        report = memory.read(encode(tokenizer, "\n".join(DOCUMENTS.values())))
        print(f"read {', '.join(DOCUMENTS)}: {report.tokens} tokens\n")
        found = [both(model, tokenizer, memory, text) for text in args.question or QUESTIONS]
        print("stored about the deadline:")
        for block in memory.inspect(text="deadline"):
            print(f"  tokens {block.start}-{block.end}: {' '.join(block.text.split())}")
    return found


if __name__ == "__main__":
    main()
