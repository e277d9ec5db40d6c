"""How it works."""

from __future__ import annotations

from collections.abc import Iterator

from tests.docs.figures.measured import talk
from tests.docs.ledger import newest, told

DOCUMENT = "docs/how-it-works.md"


def held() -> Iterator[str]:
    windows, before = talk("memory", "bare"), talk("memory", "bare", run="5179914b")
    yield (
        f"for {windows.questions} questions of LoCoMo {windows.found:.1%} % are found in "
        f"{windows.tokens:.0f} tokens with them, and {before.found:.1%} % were found in "
        f"{before.tokens:.0f} without"
    )
    focused, plain, usual = (newest("forms.jsonl", seed=9, focus=focus) for focus in (0.7, 0, 0.35))
    yield (
        f"Qwen follows {focused.followed} of {focused.n} requests about a form, without it "
        f"{plain.followed}, at 0.35 {usual.followed} ("
    )
    prose = newest("perplexity.jsonl")
    low, high = prose.interval
    yield (
        f"On {prose.scored_tokens:,} tokens of essays, scored in windows with recall on against "
        f"the window alone, the loss was {-prose.difference:.3f} nats lower with memory, 95 % "
        f"interval {-low:.3f} lower to {high:.3f} higher"
    )
    yield from reconstruction()
    cost = newest("registration.jsonl").us
    yield f"which costs {cost.custom_op:.0f} µs a call instead of {cost.Library:.0f} ("


def reconstruction() -> Iterator[str]:
    def right(method: str, limit: str, n: int) -> str:
        return f"{newest('reconstruction.jsonl', method=method, limit=f'ratio {limit}', n=n).right}"

    every = newest("reconstruction.jsonl", method="none", n=24)
    yield (
        f"of {every.n}, {every.right} with all that was recalled ({every.recalled:.0f} tokens on "
        "average), "
        f"{right('recompute', '1', 24)} recomputed, and with half of it "
        f"{right('attention', '0.5', 24)} by "
        f'`"attention"` and {right("hierarchical", "0.5", 24)} by `"hierarchical"`'
    )
    few = newest("reconstruction.jsonl", method="none", n=8)
    told(right("attention", "0.25", 8) == right("hierarchical", "0.25", 8), "each")
    yield (
        f"Of {few.n}, {few.right} with all of it, and with a quarter "
        f"{right('attention', '0.25', 8)} each by "
        f'`"attention"` and `"hierarchical"` and {right("weighted_sum", "0.25", 8)} by '
        '`"weighted_sum"`'
    )
    blended = newest("readings.jsonl", system="residual", seed=1)
    yield f"by the first form {blended.right} of {blended.n} questions were answered"
    yield f"was at first, gave {right('weighted_sum, sums only', '0.5', 24)} of {every.n} with half"
