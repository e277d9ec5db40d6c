"""The page of all measurements."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.recall.report import difference
from tests.docs.ledger import Figure, Row, between, newest, of_json, rows

DOCUMENT = "docs/measured.md"
SMOLLM2, QWEN = "smollm2-135m*", "qwen2.5-coder-0.5b*"
ANSWERS = {"tokens": 5000, "seed": 7, "n": 96}
"""Of which documents and questions the first table is."""
FORMS_AT_LENGTH = Figure(24)
"""How many of the requests of seed 9 are long: the command says so, its rows do not."""
SYSTEMS = {
    "the last 512 tokens with the question": "window",
    "the whole text in the prompt": "full",
    "BM25, as many recalled tokens put into the prompt": "bm25",
    "the passages that memory chose, put into the prompt as text": "memory_text",
    "**memory**": "memory",
    "ceiling: the fact's sentence alone, right before the question": "ceiling",
}
PRESSED = {
    "**memory**": "memory",
    "the whole text in the prompt": "full",
    "SnapKV": "snapkv, 642 kept",
    "ExpectedAttention": "expected-attention, 642 kept",
    "Knorm": "knorm, 642 kept",
    "StreamingLLM": "streaming-llm, 642 kept",
}
FACTS = {"**memory**": "default", "BM25": "bm25", "dense retriever (MiniLM)": "dense"}
ASKED = ("prompt", "step")
READINGS = {
    "the question alone": "none",
    'stored states blended in (`method="weighted_sum"`)': "residual",
    "**attention read** (the default)": "attention",
    "**next-token memory alone**": "knn",
    "**both**": "both",
}


def held() -> Iterator[str]:
    yield from answers(intervals=True)
    yield from left_inside_talk()
    yield from forms()
    yield from beside_kvpress()
    yield from over_kinds()
    yield from asked_again()
    yield from other_answers()
    yield from found()
    yield from conversations()
    yield from readings()
    yield from costs()


KINDS = {
    "memory": "**memory**",
    "dense": "dense retriever (MiniLM), as text",
    "bm25": "BM25, as text",
    "full-context": "the whole text in the prompt",
    "window": "the last tokens alone",
    "snapkv": "SnapKV",
    "expected-attention": "ExpectedAttention",
}


def answers(intervals: bool) -> Iterator[str]:
    """The first table: right answers, plainly and inside everyday talk, of both models."""
    for name, system in SYSTEMS.items():
        cells = []
        for model in (SMOLLM2, QWEN):
            for form in ("", ", wrapped"):
                row = newest("recall.jsonl", system=system + form, model=model, **ANSWERS)
                right = f"**{row.right}**" if system == "memory" else f"{row.right}"
                cells.append(f"{right} {between(row.wilson)}" if intervals else right)
        yield f"| {name} | {' | '.join(cells)} |"
    n = newest("recall.jsonl", system="memory", model=SMOLLM2, **ANSWERS).n
    yield f"| answers right, of {n}" + (" [95 %, in %]" if intervals else ", in 5,000 tokens")


def left_inside_talk() -> Iterator[str]:
    small = newest("recall.jsonl", system="memory, wrapped", model=SMOLLM2, **ANSWERS)
    qwen = newest("recall.jsonl", system="memory, wrapped", model=QWEN, **ANSWERS)
    yield (
        f"Of the plain answers {small.of_bare.share:.2f} {between(small.of_bare.interval, '.2f')} "
        f"of SmolLM2 and {qwen.of_bare.share:.2f} {between(qwen.of_bare.interval, '.2f')} of Qwen "
        "are left inside talk"
    )
    before = newest("recall.jsonl", system="memory, wrapped", seed=4)
    plainly = newest("recall.jsonl", system="memory", seed=4)
    yield (
        f"`focus` it was {before.of_bare.share:.2f} of SmolLM2 ({before.right} of {plainly.right}, "
        "seed 4)"
    )
    ceiling = newest("recall.jsonl", system="ceiling, wrapped", model=SMOLLM2, **ANSWERS)
    yield f"fact's sentence in its prompt SmolLM2 keeps {ceiling.of_bare.share:.2f}"
    text = {
        (model, form): paired(f"memory{form}", f"memory_text{form}", model)
        for model in (SMOLLM2, QWEN)
        for form in ("", ", wrapped")
    }
    bare, inside = text[QWEN, ""], text[QWEN, ", wrapped"]
    yield (
        f"(paired: {-bare.difference:%} points {less(bare.interval)} plainly, "
        f"{-inside.difference:%} {less(inside.interval)} inside talk)"
    )
    yield (
        f"on SmolLM2 {text[SMOLLM2, ''].difference:%} and "
        f"{text[SMOLLM2, ', wrapped'].difference:%} points less"
    )


def paired(system: str, other: str, model: str) -> Row:
    """The difference on the same questions; the two need not be of one run."""
    sides = []
    for name in (system, other):
        run = newest("recall.jsonl", system=name, model=model, **ANSWERS)["run"]
        sides.append(rows("recall_details.jsonl", system=name, run=run))
    found = difference(*sides)
    return Row(of_json({**found, "interval": list(found["interval"])}))


def less(interval: list[Figure]) -> str:
    """The interval of how much less it is."""
    low, high = interval
    return f"[{-high:%}, {-low:+%}]"


def forms() -> Iterator[str]:
    """Requests about the form of the answer."""
    asked = [newest("forms.jsonl", seed=9, focus=focus) for focus in (0.0, 0.35, 0.7)]
    none, default, more = asked
    short, long = ([followed(row, long) for row in asked] for long in (False, True))
    few = none.n - FORMS_AT_LENGTH
    yield f"| about as short as the question | {few} | {short[0]} | {short[1]} | {short[2]} |"
    yield f"| three times as long | {FORMS_AT_LENGTH} | {long[0]} | **{long[1]}** | **{long[2]}** |"
    yield (
        f"{none.right} of {none.n} are right without it, {default.right} at 0.35 and {more.right} "
        "at 0.7"
    )


def beside_presses(system: str) -> Row:
    """What a system answered of the questions that presses were asked."""
    return newest("recall.jsonl", system=system, model=SMOLLM2, **{**ANSWERS, "n": 48})


def beside_kvpress() -> Iterator[str]:
    """The table of the presses, which see the document and not the question."""
    for name, system in PRESSED.items():
        row = beside_presses(system)
        yield (
            f"| {name} | {row.right} {between(row.wilson)} | {row.first_answer_seconds:.1f} | "
            f"{row.next_answer_seconds:.2f} |"
        )
    yield f"| right, of {row.n} [95 %, in %] | first answer, s | next one, s |"


def over_kinds() -> Iterator[str]:
    """The table of kinds of tasks at 8,000 tokens."""
    found = {system: newest("kinds.jsonl", system=system, tokens=8000) for system in KINDS}
    lines = ["| answered, mean over kinds | % [95 %] | first answer, s |", "|---|---|---|"]
    for system, name in KINDS.items():
        mean, interval = found[system].mean, found[system].mean_interval
        lines.append(
            f"| {name} | {mean:%} {between(interval)} | {found[system].first_answer_seconds:.1f} |"
        )
    yield "\n".join(lines)
    yield (
        f"presses keep {found['snapkv'].shown_tokens:.0f} tokens, the retrievers show as many as "
        f"memory reads, {found['memory'].shown_tokens:.0f}"
    )


def followed(row: Row, long: bool) -> Figure:
    """How many requests were followed; those at length are kinds of their own in a row."""
    return Figure(sum(n for name, n in row.by_form.items() if ("at length" in name) == long))


def asked_again() -> Iterator[str]:
    times = {"plainly": 1, "again": 2, "*Tell me again: …*": 3, "*Sorry, I forgot. …*": 4}
    for name, at in (times | {"plainly, the fifth time": 5}).items():
        which = {"system": f"time {at}", "seed": 1}
        small, qwen = (newest("again.jsonl", model=m, **which) for m in (SMOLLM2, QWEN))
        cells = (f"{row.right} {between(row.wilson)} | {row.found}" for row in (small, qwen))
        yield f"| {name} | {' | '.join(cells)} |"
    small, qwen = (newest("again.jsonl", model=m, system="time 1") for m in (SMOLLM2, QWEN))
    yield f"| SmolLM2: right, of {small.n} [95 %] | found | Qwen: right, of {qwen.n} | found |"


def other_answers() -> Iterator[str]:
    right = {
        system: newest("recall.jsonl", system=system, tokens=16000, seed=2)
        for system in ("memory", "bm25", "memory_text", "window", "ceiling")
    }
    yield (
        f"memory {right['memory'].right}, BM25 {right['bm25'].right}, the passages as text "
        f"{right['memory_text'].right}, the window {right['window'].right}, the ceiling "
        f"{right['ceiling'].right} of {right['memory'].n}"
    )
    tiers = [newest("tiers.jsonl", tier=tier) for tier in ("recent", "working", "long_term")]
    yield f"| answers right, of {tiers[0].n} | {' | '.join(f'{tier.right}' for tier in tiers)} |"
    yield f"| bytes a token | {' | '.join(f'{tier.bytes_per_token:,.0f}' for tier in tiers)} |"


def found() -> Iterator[str]:
    for name, system in FACTS.items():
        cells = []
        for tokens in (5_000, 30_000, 100_000, 1_000_000):
            which = {"system": system, "tokens": tokens, "seed": 0}
            mean = newest("retrieval.jsonl", kind="mean", **which)
            words = newest("retrieval.jsonl", kind="paraphrased", **which)
            cells.append(f"{mean['read@2']:%} ({words['read@2']:%})")
        yield f"| {name} | {' | '.join(cells)} |"
    asked = newest("retrieval.jsonl", system="default", kind="paraphrased", tokens=5000, seed=0)
    yield f"about two facts, {asked.questions} of each; in brackets"


def conversations() -> Iterator[str]:
    memory, bm25, dense = (talk(system, "bare") for system in ("memory", "bm25", "dense"))
    yield (
        f"(LoCoMo, {memory.questions} questions) it finds {memory.found:.1%} % "
        f"{between(memory.interval)} of the evidence asked plainly in {memory.tokens:.0f} tokens, "
        f"where BM25 finds {bm25.found:.1%} % and MiniLM {dense.found:.1%} % in {bm25.tokens:.0f}"
    )
    left, theirs = (talk(system, "wrapped").of_bare.share for system in ("memory", "bm25"))
    yield f"everyday talk {left:.2f} of that are left, of BM25's {theirs:.2f} ([retrieval"
    yield f"With Qwen it finds {talk('memory', 'bare', model=QWEN).found:.1%} % asked plainly"


def talk(system: str, form: str, **which: Any) -> Row:
    """What a system finds of the evidence in all five conversations."""
    which = {"questions": 760, "model": SMOLLM2, "seed": 0, **which}
    return newest("conversations.jsonl", system=system, form=form, **which)


def readings() -> Iterator[str]:
    """The table that the page of next-token memory has, too."""
    for name, system in READINGS.items():
        row = newest("readings.jsonl", system=system, seed=1)
        groups = (f"{row.group[kind][0]} of {row.group[kind][1]}" for kind in ("number", "name"))
        interval = row.by_fact if row.right else row.wilson  # a bootstrap of nothing is [0, 0]
        yield f"| {name} | {row.right} {between(interval)} | {' | '.join(groups)} |"
    both = newest("readings.jsonl", system="both", seed=1)
    yield f"| answers right, of {both.n} questions [95 %, in %] |"
    more = both.against.attention
    yield (
        f"answer {more.difference:%} points more than the attention read alone "
        f"{between(more.interval)}"
    )


def costs() -> Iterator[str]:
    reading = newest("cost.jsonl", part="reading")
    yield f"reading runs at {reading.ratio.p50:.2f} of the tokens a second of a plain forward"
    yield f"and at {reading.ratio_all_logits.p50:.2f} of one that computes them all"
    step = newest("cost.jsonl", part="decode")
    yield f"{step.stored:,} tokens stored, takes {step.ratio.p50:.2f} times as long"
    peak = newest("cost.jsonl", part="peak")
    few, many = peak.peaks[0]
    yield (
        f"a budget of {peak.budget:,} tokens, reading {many.tokens:,} tokens peaks at "
        f"{peak.ratio.p50:.3f} times the memory of reading {few.tokens:,}"
    )
    one, many = (newest("throughput.jsonl", batch=size, dtype="bfloat16") for size in (1, 16))
    yield (
        f"Stock `generate` of {one.new} tokens, its prompt and the search in it included, keeps "
        f"{one.ratio.p50:.2f} of its tokens a second for one row and {many.ratio.p50:.2f} for"
    )
    harm = newest("perplexity.jsonl", scored_tokens=8176)
    low, high = harm.interval
    yield (
        f"loss with memory was {-harm.difference:.3f} nats lower than without on "
        f"{harm.scored_tokens:,} tokens (95 % interval {-high:.3f} to {-low:.3f}"
    )
    now, before = (
        [
            row[part].cpu_ms.p50
            for row in rows("search_users.jsonl", commit=commit)
            for part in ASKED
        ]
        for commit in ("ab9a368", "f95ed76")
    )
    asked = newest("search_users.jsonl")
    yield (
        f"Where {asked.users} users have {asked.tokens_each:,} tokens each, the search of a batch "
        f"of {asked.batch} takes {min(now):.0f} to {max(now):.0f} ms"
    )
    yield f"alone it was {min(before):.0f} to {max(before):.0f} (medians"
    floats = newest_by_size("float32")
    faiss = sorted(row.ms.cmr / row.ms.faiss for row in floats.values())
    yield f"the time is {faiss[0]:.2f} to {faiss[-1]:.2f} of faiss-cpu's"
    plain = {size: row.ms.cmr / row.ms.plain for size, row in floats.items()}
    few, one = plain.pop((4096, 32)), plain.pop((4096, 1))
    alone = floats[4096, 1].ms
    yield (
        f"it is {min(plain.values()):.2f} to {max(plain.values()):.2f} except at 4,096 entries "
        f"with 32 queries ({few:.2f}) and with one ({one:.2f}, {alone.cmr - alone.plain:.2f} ms "
        "more)"
    )
    halves = {size: row.ms.cmr / row.ms.plain for size, row in newest_by_size("bfloat16").items()}
    large = sorted(ratio for size, ratio in halves.items() if size[0] == 65_536)
    small = sorted(ratio for size, ratio in halves.items() if size[0] == 4_096)
    yield (
        f"it is {large[0]:.2f} to {large[-1]:.2f} at 65,536 entries and {small[0]:.1f} to "
        f"{small[-1]:.1f} at 4,096"
    )


def newest_by_size(dtype: str) -> dict[tuple[float, float], Figure]:
    """The rows of the exact search's speed, by numbers of entries and queries."""
    found = rows("search_speed.jsonl", dtype=dtype)
    return {(float(row.entries), float(row.queries)): row for row in found}
