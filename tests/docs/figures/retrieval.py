"""Finding the right part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from cmr.retrieval.calibration import Calibration
from tests.docs.blocks import ROOT
from tests.docs.figures.measured import ANSWERS, QWEN, SMOLLM2, talk
from tests.docs.ledger import Figure, Row, between, newest, of_json

DOCUMENT = "docs/retrieval.md"
LENGTHS = (5_000, 30_000, 100_000, 1_000_000)
KINDS = ("same words", "paraphrased", "straddling", "two facts")
SYSTEMS = {
    "**default**": "default",
    "`semantic_similarity`, the best scores alone": "semantic_similarity",
    "`contextual_relevance`": "contextual_relevance",
    "`multi_criteria`, weights as in the specification": "multi_criteria",
    "`hierarchical`": "hierarchical",
    "`task_specific`": "task_specific",
    "`hybrid_ensemble`": "hybrid_ensemble",
    "BM25": "bm25",
    "dense (MiniLM)": "dense",
}
NOT_AT_A_MILLION = {"contextual_relevance", "hierarchical", "task_specific", "hybrid_ensemble"}
CALIBRATIONS = {
    "calibrated": ("auto", None),
    "sampled": ("sampled",),
    'states as they are (`"none"`)': ("none",),
}


def held() -> Iterator[str]:
    yield from haystacks()
    yield from kinds()
    yield from times()
    yield from clusters()
    yield from calibration()
    yield from conversations()
    yield from answers()
    yield from uncalibrated()
    yield from tasks()


def haystack(system: str, tokens: int, kind: str) -> Row:
    return newest("retrieval.jsonl", system=system, tokens=tokens, kind=kind, seed=0)


def by_length(cell: Callable[[Row], str]) -> Iterator[str]:
    """A line for each system, with what a cell says of the mean at each length."""
    for name, system in SYSTEMS.items():
        cells = [
            "–"
            if tokens == LENGTHS[-1] and system in NOT_AT_A_MILLION
            else cell(haystack(system, tokens, "mean"))
            for tokens in LENGTHS
        ]
        yield f"| {name} | {' | '.join(cells)} |"


def haystacks() -> Iterator[str]:
    yield from by_length(lambda mean: " / ".join(f"{mean[f'read@{k}']:%}" for k in (1, 2, 4)))
    yield (
        f"Haystacks of four lengths, {haystack('default', LENGTHS[0], 'paraphrased').questions} "
        "questions of each"
    )


def kinds() -> Iterator[str]:
    for tokens in LENGTHS:
        lines = [
            f"| {tokens:,} tokens, at 2 passages, % | {' | '.join(KINDS)} | mean |",
            "|---|---|---|---|---|---|",
        ]
        for name in ("**default**", "BM25", "dense (MiniLM)"):
            rows = [haystack(SYSTEMS[name], tokens, kind) for kind in KINDS]
            cells = [f"{row['read@2']:%} {between(row['read@2 interval'])}" for row in rows]
            mean = haystack(SYSTEMS[name], tokens, "mean")["read@2"]
            lines.append(f"| {name} | {' | '.join(cells)} | {mean:%} |")
        yield "\n".join(lines)


def times() -> Iterator[str]:
    lines = [
        f"| milliseconds a search, one thread | {' | '.join(f'{tokens:,}' for tokens in LENGTHS)} "
        "|",
        "|---|---|---|---|---|",
    ]
    lines += by_length(lambda mean: f"{Figure(1000 * mean.median_seconds):.3g}")
    yield "\n".join(lines)


def clusters() -> Iterator[str]:
    new, replaced = (
        newest("hierarchy.jsonl", case=case) for case in ("new", "half replaced, old clusters")
    )
    yield (
        f"Over {new.blocks:,} single entries (float32, one query token, ranked by cosine) "
        f"`MemoryHierarchy` finds {new.overlap_at_4:.1%} % of the exact top four in "
        f"{new.ratio:.3f} of the exact search's time, and {replaced.overlap_at_4:.1%} % in "
        f"{replaced.ratio:.3f} after half of the entries were replaced, at "
        f"{new.bytes_per_token:.0f} bytes an entry beside the index of "
        f"{new.index_bytes_per_token:,}"
    )


def calibration() -> Iterator[str]:
    """What `cmr.calibrate` measured stands in the file that comes with the library."""
    file = next((ROOT / "cmr" / "calibrations").glob("SmolLM2-135M-Instruct-*.safetensors"))
    shipped = Calibration.load(file)
    heads = ", ".join(f"{Figure(float(f'{layer}.{head}')):.1f}" for layer, head in shipped.heads)
    width, hidden = Figure(shipped.projection.shape[1]), Figure(shipped.projection.shape[0])
    yield f"layer {Figure(shipped.index_layer)}, width {width} of {hidden}, heads {heads}."
    measured = of_json(shipped.measured)["candidates"]
    widths = list(dict.fromkeys(row.width for row in measured))
    lines = [
        f"| mean reciprocal rank | raw | {' | '.join(f'{width}' for width in widths if width)} |",
        "|---|---|---|---|---|---|",
    ]
    for layer in dict.fromkeys(row.layer for row in measured):
        ranks = (f"{row['rank']:.3f}" for row in measured if row.layer == layer)
        lines.append(f"| layer {int(layer)} | {' | '.join(ranks)} |")
    yield "\n".join(lines)


def conversations() -> Iterator[str]:
    bare, wrapped = talk("memory", "bare"), talk("memory", "wrapped")
    yield f"their {bare.questions} questions that can be answered"
    yield (
        f"| **default**, {bare.tokens:.0f} tokens recalled for a bare question, "
        f"{wrapped.tokens:.0f} for a wrapped one | **{bare.found:.1%}** {between(bare.interval)} | "
        f"{' | '.join(places('memory'))} | **{wrapped.found:.1%}** {between(wrapped.interval)} | "
        f"{wrapped.of_bare.share:.2f} |"
    )
    before = talk("memory", "bare", run="5179914b")
    yield (
        f"`ratio` 0.6, {before.tokens:.0f} tokens | {before.found:.1%} {between(before.interval)} "
        "| – | – | – | – | – |"
    )
    for words, run in (
        ("passages ended with their lines, {} tokens", "90d0627e"),
        ("messages were asked in parts", "9507d113"),
    ):
        yield talk_row(f"before {words}", "memory", run=run)
    for name in ("BM25, {} tokens", "dense (MiniLM), {} tokens"):
        yield talk_row(name, "bm25" if "BM25" in name else "dense")
    kinds = ("several facts", "time", "open", "one fact")
    lines = [f"| bare, % | {' | '.join(kinds)} |", "|---|---|---|---|---|"]
    for name, system in (("**default**", "memory"), ("BM25", "bm25"), ("dense (MiniLM)", "dense")):
        groups = talk(system, "bare").by_category
        lines.append(f"| {name} | {' | '.join(f'{groups[kind].found:%}' for kind in kinds)} |")
    yield "\n".join(lines)
    bm25, dense = bare.against.bm25, bare.against.dense
    yield (
        f"the default finds {bm25.more:.1%} points more than BM25 {between(bm25.interval)} and "
        f"{dense.more:.1%} more than the dense retriever {between(dense.interval)}"
    )
    bm25, dense = wrapped.against.bm25, wrapped.against.dense
    yield (
        f"and inside everyday talk {bm25.more:.1%} {between(bm25.interval)} and {dense.more:.1%} "
        f"{between(dense.interval)} more. Of messages without a question mark it finds "
        f"{wrapped.unmarked.found:%} in a hundred"
    )
    qwen = talk("memory", "bare", model=QWEN)
    bm25, dense = qwen.against.bm25, qwen.against.dense
    yield (
        f"With Qwen, not calibrated, the default finds {qwen.found:.1%} % {between(qwen.interval)} "
        f"of the same evidence in {qwen.tokens:.0f} tokens, {bm25.more:.1%} points more than BM25 "
        f"{between(bm25.interval)} and {dense.more:.1%} more than MiniLM {between(dense.interval)}"
    )
    sampled, bm25, dense = (
        newest("conversations.jsonl", system=system, model=QWEN, questions=81, calibrated=False)
        for system in ("memory", "bm25", "dense")
    )
    measured = newest(
        "conversations.jsonl", system="memory", model=QWEN, questions=81, calibrated=True
    )
    yield (
        f"({sampled.questions} bare questions): {sampled.found:.1%} {between(sampled.interval)} "
        f"uncalibrated and {measured.found:.1%} {between(measured.interval)} after "
        f"`cmr.calibrate`, BM25 over its tokens {bm25.found:.1%} {between(bm25.interval)}, the "
        f"dense retriever {dense.found:.1%} {between(dense.interval)}"
    )


def places(system: str, **which: Any) -> list[str]:
    """What is found with everyday talk in front of a question, behind it, and on both sides."""
    forms = ("before", "behind", "both")
    return [f"{talk(system, form, **which).found:.1%}" for form in forms]


def talk_row(name: str, system: str, **which: Any) -> str:
    """A row of the table of conversations."""
    bare, wrapped = (talk(system, form, **which) for form in ("bare", "wrapped"))
    return (
        f"| {name.format(f'{bare.tokens:.0f}')} | {bare.found:.1%} {between(bare.interval)} | "
        f"{' | '.join(places(system, **which))} | {wrapped.found:.1%} {between(wrapped.interval)} "
        f"| {wrapped.of_bare.share:.2f} |"
    )


def answers() -> Iterator[str]:
    def both(system: str, model: str) -> tuple[Figure, Figure]:
        bare, wrapped = (
            newest("recall.jsonl", system=system + form, model=model, **ANSWERS).right
            for form in ("", ", wrapped")
        )
        return bare, wrapped

    memory, ceiling, bm25 = (both(system, SMOLLM2) for system in ("memory", "ceiling", "bm25"))
    yield (
        f"SmolLM2 answers {memory[0]} bare and {memory[1]} wrapped, with nothing but the fact's "
        f"sentence in front of it {ceiling[0]} and {ceiling[1]}, BM25 as text {bm25[0]} and "
        f"{bm25[1]}"
    )
    memory, ceiling, bm25 = (both(system, QWEN) for system in ("memory", "ceiling", "bm25"))
    yield f"{memory[0]} and {memory[1]}, {ceiling[0]} and {ceiling[1]}, {bm25[0]} and {bm25[1]} ("
    memory, prompt, alone = (
        newest("notes.jsonl", system=name, seed=1) for name in ("memory", "in_prompt", "alone")
    )
    yield (
        f"told six things each) memory answers {memory.right}, the model with all the notes in its "
        f"prompt {prompt.right}, without either {'none' if not alone.right else alone.right}"
    )
    yield f"seed 1: {memory.n} questions of six people"


def uncalibrated() -> Iterator[str]:
    for name, model in (("SmolLM2", SMOLLM2), ("Qwen", QWEN)):
        for how, settings in CALIBRATIONS.items():

            def calibrated(row: Row, wanted: tuple[str | None, ...] = settings) -> bool:
                return row.settings.settings.get("calibration") in wanted

            if (name, how) == ("SmolLM2", "calibrated"):
                how = "the calibration that comes with it"
            found = (
                newest("uncalibrated/retrieval.jsonl", calibrated, model=model, kind=kind, seed=3)
                for kind in ("paraphrased", "two facts", "mean")
            )
            cells = (f"{row['read@2']:%}" for row in found)
            yield f"| {name}, {how} | {' | '.join(cells)} |"


TASKS = (
    ("dialogue", "the newer one", "the newer of two statements", "recency 0.3: {}"),
    ("dialogue", "the older one", "the older one (the less, the better)", "recency 0.3: {}"),
    (
        "summarising",
        "all that is said",
        "four things said of a person",
        "similarity alone: {}, 8 read",
    ),
    ("code", "called", "the definition of what is called", "ensemble, lexical weight 1: {}"),
    ("code", "described", "the function that a docstring's first line describes", "the same: {}"),
)
"""Task and kind of question in the rows, what the page says they are, and the task's setting."""


def tasks() -> Iterator[str]:
    for task, kind, what, words in TASKS:
        search = "recency 0.3" if task == "dialogue" else "task_specific"
        default, setting = (
            " / ".join(f"{row[f'found@{k}']:%}" for k in (1, 2, 4, 8))
            for row in (
                newest("tasks.jsonl", task=task, kind=kind, search=name)
                for name in ("maxsim", search)
            )
        )
        yield f"| {task} | {what} | {default} | {words.format(setting)} |"
    code = {
        search: newest("tasks.jsonl", task="code", kind="called", search=search)
        for search in ("maxsim", "task_specific")
    }
    yield (
        f"found for {code['task_specific']['found@2']:%} % of {code['maxsim'].questions} questions "
        f"at 2 passages, {code['maxsim']['found@2']:%} % by the default"
    )
    same, other = (cost_of_recency(*kind) for kind in (("same words", 1), ("paraphrased", 2)))
    yield (
        f"costs ordinary questions {same:%} points at one passage (same words) and {other:%} at two"
    )


def cost_of_recency(kind: str, passages: int) -> Figure:
    """What a weight of 0.3 on recency loses beside choosing the best scores by similarity."""
    without, with_it = (
        newest("tasks.jsonl", task="question_answering", kind=kind, search=search)
        for search in ("hybrid_ensemble", "recency 0.3")
    )
    return without[f"found@{passages}"] - with_it[f"found@{passages}"]
