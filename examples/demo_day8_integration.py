"""The whole model of the specification around a real one: what passes becomes memory.

`FullCMRModel` holds the small model. A document passes through it once, in forwards of a window
each. Then questions are answered with nothing of the document in their prompts, and what every part
of the model holds or did is shown.

    python examples/demo_day8_integration.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from common import answers, encode, load

from cmr import FullCMRModel, RetrievalContext
from cmr.demo import demo_document

SETTINGS = {
    "scoring_method": "attention_based",
    "max_entries_per_layer": 8_192,
    "optimization_config": {"enable_background_optimization": True},
}
STRATEGIES = ("semantic_similarity", "multi_criteria", "hybrid_ensemble")


def retrieved(model: FullCMRModel, states: Any) -> dict[str, int]:
    """How many captured states each strategy finds for these states of a question."""
    asks = RetrievalContext(model.current_sequence_id, 15, states, retrieval_budget=8)
    return {
        name: len(model.retriever.retrieve_memories(asks, strategy=name)) for name in STRATEGIES
    }


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Remember, ask, show; returns for each question both answers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=4_000, help="of the document")
    parser.add_argument("--questions", type=int, default=4, help="how many are asked")
    args = parser.parse_args(argv)
    decoder, tokenizer = load()
    document = demo_document(tokenizer, args.tokens)
    ids, found = encode(tokenizer, document.text), []
    model = FullCMRModel(decoder, {**SETTINGS, "target_layers": [15]}, tokenizer=tokenizer)
    try:
        with model.session("reader"):
            for part in ids.split(384, dim=1):
                model(part)
            print(f"{ids.shape[1]:,} tokens have passed, and are memory now\n")
            for question in document.questions[: args.questions]:
                (remembered,) = answers(model, tokenizer, [question.text])
                model.disable_memory()
                (without,) = answers(model, tokenizer, [question.text])
                model.enable_memory()
                print(f"  asked           {question.text}")
                print(f"  without memory  {without}\n  with memory     {remembered}\n")
                found.append({"question": question, "without": without, "memory": remembered})
            asked = encode(tokenizer, document.questions[0].text)
            states = model(asked, output_hidden_states=True, use_memory=False).hidden_states[15]
            print("captured states that a question finds:", retrieved(model, states))
        for name, value in model.get_memory_usage().items():
            print(f"  {name:20}{value:,}" if isinstance(value, int) else f"  {name:20}{value:.0%}")
        print("what steers it:", model.optimizer.stats() if model.optimizer else "nothing")
    finally:
        model.cleanup()
    return found


if __name__ == "__main__":
    main()
