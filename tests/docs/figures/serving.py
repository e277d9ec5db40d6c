"""Serving a memory: what was measured of it."""

from __future__ import annotations

from collections.abc import Iterator

from tests.docs.ledger import Figure, Row, in_words, newest, rows, told

DOCUMENT = "docs/serving.md"


def held() -> Iterator[str]:
    yield from under_load()
    yield from killed()
    yield from in_front()
    yield from full_queue()
    yield from batched()


def replies(row: Row, *endings: str) -> Figure:
    return Figure(sum(n for name, n in row.replies.items() if name.endswith(endings)))


def under_load() -> Iterator[str]:
    row = newest("serving.jsonl")
    yield (
        f"{row.clients} clients at once over {row.sessions} sessions, each told a number of its "
        f"own, {row.requests:,}"
    )
    yield (
        f"{row.foreign} passages with another session's number in {row.recalls:,} replies that "
        f"recalled something, {row.wrong} replies that this page does not tell of. Resident memory "
        f"was {row.warm.rss_mb:.1f} MB in the middle of the requests and {row.end.rss_mb:.1f} MB "
        f"at their end, threads {row.end.threads:.0f} and open files {row.end.files:.0f} both "
        f"times. {replies(row, ' 504')} requests ran into their deadline"
    )
    told(round(row.warm.threads) == round(row.end.threads), "threads, both times")
    told(round(row.warm.files) == round(row.end.files), "files, both times")


def killed() -> Iterator[str]:
    alone, again = (newest("serving_kills.jsonl", seed=seed) for seed in (0, 1))
    shared = newest("serving_kills.jsonl", command="*--shared*")
    for row in (alone, again, shared):
        told(not row.early, "nothing that was told before the last save was missing")
        told(not row.back and not row.foreign, "nothing came back or stood elsewhere")
        told(row.open == row.kills, "the folder opened each time")
    yield f"SIGKILL ends the server, {in_words(alone.kills)} times"
    yield (
        f"the folder opened {alone.open} times, no number that had been told before the last save "
        "began was missing, none came back that was deleted, none stood in another session. "
        f"{alone.told} were looked for"
    )
    yield (
        f"since the last save was gone, {alone.late} numbers, the oldest told {alone.oldest:.0f} s "
        "before the kill"
    )
    yield (
        f"In {in_words(again.kills)} kills at a better moment the same was so, and the oldest was "
        f"told {again.oldest:.1f} s before"
    )
    yield f"one of them is killed {in_words(shared.kills)} times"
    yield (
        f"{shared.told:,} were looked for, those of earlier kills again each time; {shared.late} "
        f"that were told since were gone, the oldest told {shared.oldest:.1f} s before the kill"
    )


def in_front() -> Iterator[str]:
    row = newest("serving_front.jsonl")
    wall, cpu = (
        {name: 1000 * float(s) for name, s in times.items()} for times in (row.wall, row.cpu)
    )
    took = {name: f"{Figure(ms):.0f}" for name, ms in wall.items()}
    worked = {name: f"{Figure(ms):.0f}" for name, ms in cpu.items()}
    yield (
        f"{row.stored} tokens in each session): {took['direct']} ms to the whole answer by itself, "
        f"{took['off']} ms through the server in front without memory, {took['read']} ms where "
        f"memory is read, {took['read_write']} ms where it is read and written (medians of "
        f"{row.rounds}). In CPU time of the server in front that is {worked['off']}, "
        f"{worked['read']} and {worked['read_write']} ms a request. {row.recalled_right} of "
        f"{row.rounds} questions recalled"
    )


def full_queue() -> Iterator[str]:
    row = newest("serving_waiting.jsonl")
    asked = sum(row.replies.values())
    yield (
        f"{row.clients} clients for {in_words(row.lanes)} batches of {row.rows} and {row.queue} "
        "places in the queue"
    )
    yield (
        f"token came within {row.first_most:.1f} s (the 95th percentile, and the most), where a "
        f"batch alone took {row.batch_seconds:.1f} s"
    )
    yield (
        f"times that, {row.bound:.0f} s here; the deadline was {row.deadline:.0f} s. "
        f"{row.replies['429']} of {Figure(asked)} requests were told"
    )


def batched() -> Iterator[str]:
    row, before = rows("serving_throughput.jsonl")[::-1][:2]
    share, cpu = row.share_of_direct, row.share_by_cpu
    yield f"{row.sessions} sessions, the small model"
    yield (
        f"{share.p50:.2f} times as many tokens a second as `generate` with a session a row (the "
        f"median of {in_words(row.rounds)} rounds; {share.p20:.2f} to {share.p80:.2f} from the "
        f"20th percentile to the 80th), and {cpu.p50:.2f} times as many a second of CPU time "
        f"({cpu.p20:.2f} to {cpu.p80:.2f}). Before a batch waited while others come it was "
        f"{before.share_by_cpu.p50:.2f}. {row.same_answers} of {row.sessions} answers"
    )
