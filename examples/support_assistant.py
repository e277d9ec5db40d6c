"""A support assistant that remembers each customer's device and plan from earlier conversations.

Every customer is a session. The assistant has read their earlier conversations; now each of them
asks something in a new one. Shown is what the model answers with memory paused and with memory,
and that a customer's question reads nothing of anybody else: a new customer has no memory at all.

    python examples/support_assistant.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from common import both, encode, load

import cmr

ANNA = """Support conversation of 3 March.
Customer: Hello, my internet is slow in the evening.
Agent: I am sorry to hear that. Which device do you use, and which plan are you on?
Customer: My device is a Tarn X2 router, and I am on the Family Plus plan.
Agent: Noted. The customer's device is a Tarn X2 router. The name of the customer's plan is Family \
Plus.
Agent: Please switch the router off for a minute. Does that help?
Customer: It is better now, thanks. And when is the next bill due?
Agent: The next bill is due on the first day of the month.
Customer: Good. What do I do when the router hangs?
Agent: When the router hangs, press the blue button on its back.
Customer: That was all. Have a nice evening!
"""
BEN = """Support conversation of 9 March.
Customer: Hi, nobody can hear me in calls, and the volume is at its highest. It began last week.
Agent: Let us find out why. Which device do you use, and which plan are you on?
Customer: My device is a Lumo 5 phone, and I am on the Night Owl plan.
Agent: Noted. The customer's device is a Lumo 5 phone. The name of the customer's plan is Night Owl.
Agent: Please look whether something covers the microphone.
Customer: There was a case over it. It works now, thank you!
Agent: I am glad that it works again. Is there anything else that I can do for you?
Customer: Not today. I only wish that the line was not so busy in the morning.
"""
CONVERSATIONS = {"anna": ANNA, "ben": BEN}
DEVICE = "What is the customer's device?"
QUESTIONS = {
    "anna": (
        DEVICE,
        "What is the name of the customer's plan?",
        "Which button do I press when the router hangs?",
    ),
    "ben": (DEVICE,),
    "carl": (DEVICE,),
}


def main(argv: Sequence[str] | None = None) -> dict[str, list[tuple[str, str]]]:
    """Read the conversations, ask; returns each customer's answers without and with memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--customer", choices=QUESTIONS, action="append", help="only this one")
    args = parser.parse_args(argv)
    model, tokenizer = load()
    found = {}
    with cmr.attach(model, tokenizer=tokenizer, budget=8192) as memory:
        for name, conversation in CONVERSATIONS.items():
            with memory.session(name, create=True):
                memory.read(encode(tokenizer, conversation))
        for name in args.customer or QUESTIONS:
            print(f"{name}, in a new conversation:")
            with memory.session(name, create=True):
                found[name] = [both(model, tokenizer, memory, text) for text in QUESTIONS[name]]
                read = {passage.session for row in memory.recalled for passage in row}
            print(f"  sessions read: {', '.join(sorted(read)) or 'none'}\n")
            assert read <= {name}
    return found


if __name__ == "__main__":
    main()
