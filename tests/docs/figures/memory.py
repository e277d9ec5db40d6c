"""Layered memory."""

from __future__ import annotations

from collections.abc import Iterator

from tests.docs.ledger import Figure, Row, newest, rows

DOCUMENT = "docs/memory.md"
POLICIES = {
    "`oldest`": "oldest",
    "random": "random",
    "`lru`": "lru",
    "`relevance`, surprise": "relevance, surprise",
}
OTHER_SCORES = ("attention_based", "variance_based", "hybrid")
KINDS = ("planted", "named", "random")


def held() -> Iterator[str]:
    yield from tiers()
    yield from evicted()
    yield from resent()
    saved = newest("save_speed.jsonl")
    yield (
        f"{saved.tokens:,} tokens ({saved.bytes / 1e9:.1f} GB) were saved in {saved.save.s:.2f} s, "
        f"{saved.save_share_of_disk:.2f} of what plain writing"
    )
    yield (
        f"loaded in {saved.load.s:.2f} s, or {saved.load_verified.s:.2f} s with every checksum "
        f"looked at ({saved.load_share_of_disk:.2f} and {saved.load_verified_share_of_disk:.2f} of "
        f"plain reading); loading peaked at {saved.peak_over_tensors.load:.2f} times"
    )


def tiers() -> Iterator[str]:
    recent, working, long_term = (
        newest("tiers.jsonl", tier=tier) for tier in ("recent", "working", "long_term")
    )
    yield f"| in place | {recent.bytes_per_token:,.0f} |"
    yield f"| copied once a search | {working.bytes_per_token:,.0f} |"
    yield f"with some text before it | {long_term.bytes_per_token:,.0f} |"
    yield (
        f"({recent.tokens:,} tokens, {recent.n} questions) in one tier after the other, "
        f"{recent.right} were answered from `recent`, {working.right} from `working`, and "
        f"{long_term.right} from `long_term`"
    )
    stream = newest("stream.jsonl")
    yield (
        f"was read at {stream.last_to_first_cpu:.2f} times the first one's tokens a second of "
        f"processor time ({stream.last_to_first:.2f} by the clock of a machine that others used at "
        f"first), and the process took {stream.resident_last_to_first:.3f} times the memory"
    )


def policy(name: str, kind: str, text: str = "all") -> Row:
    return newest("retention.jsonl", part="policy", policy=name, kind=kind, text=text)


def kept(name: str) -> list[Figure]:
    return [policy(name, kind).first.found.mean for kind in KINDS]


def evicted() -> Iterator[str]:
    first = policy("oldest", "planted")
    yield f"one stream of {first.read:,} tokens of real text"
    every = newest("retention.jsonl", part="ranking", score="surprise", among="all", run=first.run)
    places = [every[kind].places for kind in KINDS]
    yield f"| {places[0]} planted facts | {places[1]} named sentences | {places[2]} random places |"
    for words, name in POLICIES.items():
        yield f"| {words} | {' | '.join(f'{share:.1%}' for share in kept(name))} |"
    best = kept("lru_relevance, surprise")
    yield f"| **{best[0]:.1%}** | **{best[1]:.1%}** | {best[2]:.1%} |"
    others = [kept(f"lru_relevance, {score}") for score in OTHER_SCORES]
    cells = (" / ".join(f"{shares[kind]:.1%}" for shares in others) for kind in range(3))
    yield f"| `lru_relevance`, attention / variance / hybrid | {' | '.join(cells)} |"
    facts, named, random = (more(kind) for kind in KINDS)
    yield (
        f"keeps {facts.mean:.1%} points more of the facts that stand out than first in, first out "
        f"(95 % interval {facts.low:.1%} to {facts.high:.1%}) and {named.mean:.1%} more named "
        f"sentences ({named.low:.1%} to {named.high:.1%}), and loses {-random.mean:.1%} of places "
        f"drawn blindly ({-random.high:.1%} to {-random.low:.1%})"
    )
    prose = policy("oldest", "planted", "prose").read
    yield f"source code, which made up {Figure(1 - prose / first.read):%} % of the stream"
    facts, named = more("planted", "prose"), more("named", "prose")
    yield (
        f"on its prose alone it is {facts.mean:+.1%} ({facts.low:.1%} to {facts.high:.1%}), and "
        f"{named.mean:+.1%} ({named.low:.1%} to {named.high:.1%}) for named sentences"
    )
    cost = rows("retention.jsonl", part="cost", method="surprise")[-1]
    yield f"reading then takes {cost.ratio_processor.p50:.2f} times the processor time"


def more(kind: str, text: str = "all") -> Row:
    """What is kept beyond what the default keeps."""
    return policy("lru_relevance, surprise", kind, text).first.minus_oldest


def resent() -> Iterator[str]:
    row = newest("resent.jsonl")
    yield (
        f"turns of {row.tokens_a_turn} tokens, each sent with all before it, are stored once each; "
        f"storing takes {row.storing_ms_early:.1f} ms of processor time a turn in the first turns "
        f"and {row.storing_ms_late:.1f} in the last ones ({row.late_to_early:.2f}), `remember` "
        f"{row.remember_ms_early:.0f} and {row.remember_ms_late:.0f} ("
    )
