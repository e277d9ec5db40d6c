"""A support assistant that remembers each customer's device and plan from earlier conversations.

One process reads the conversations of two customers, a session each, and saves the memory. Another
process loads it and answers what they ask weeks later. Nobody's request reads anybody else's text.

    python examples/support_assistant.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from assistant import Answered, Request, arguments, run
from common import encode

import cmr

ANNA = """Support conversation of 3 March.
Customer: Hello, my internet is slow in the evening.
Agent: I am sorry to hear that. Which device do you use, and which plan are you on?
Customer: A Tarn X2 router, and I am on Family Plus.
Agent: Thank you. Your device is a Tarn X2 router. Your plan is Family Plus.
Agent: Please switch the router off for a minute. Does that help?
Customer: It is better now, thanks. And when is the next bill due?
Agent: Your next bill is due on the first day of the month.
Customer: Good. What do I do when the router hangs?
Agent: When the router hangs, press the blue button on its back.
Customer: That was all. Have a nice evening!
"""
BEN = """Support conversation of 9 March.
Customer: Hi, nobody can hear me in calls, and the volume is at its highest. It began last week.
Agent: Let us find out why. Which device do you use, and which plan are you on?
Customer: A Lumo 5 phone, and I am on Night Owl.
Agent: Thank you. Your device is a Lumo 5 phone. Your plan is Night Owl.
Agent: Please look whether something covers the microphone.
Customer: There was a case over it. It works now, thank you!
Agent: I am glad that it works again. Is there anything else that I can do for you?
Customer: Not today. I only wish that the line was not so busy in the morning.
"""
REQUESTS = (
    Request(
        "anna",
        "Hi, it's me again. The router hangs again, which button do I press?",
        "When the router hangs,",
        ("blue button",),
    ),
    Request("anna", "which plan am I on?", "Your plan is", ("Family Plus",)),
    Request("anna", "When is my next bill due?", "Your next bill is due on", ("first day",)),
    Request(
        "anna",
        "I want to sell my old device. Which one do I have?",
        "Your device is a",
        ("Tarn X2",),
    ),
    Request("ben", "What phone do I have?", "Your device is a", ("Lumo 5",)),
    Request("ben", "what's my plan called?", "Your plan is", ("Night Owl",)),
)


def learn(model: Any, tokenizer: Any, memory: cmr.Memory) -> None:
    """Read each customer's conversation into a session of its own."""
    for name, conversation in (("anna", ANNA), ("ben", BEN)):
        memory.session(name, create=True).read(encode(tokenizer, conversation))


def main(argv: Sequence[str] | None = None) -> list[Answered]:
    """Learn and ask, in a process each, or one of the two; returns the answers of this process."""
    return run(__file__, arguments(__doc__, argv), learn, REQUESTS)


if __name__ == "__main__":
    main()
