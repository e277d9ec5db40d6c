"""What a call of an operation costs, registered by a decorator or by a library.

An operation that does nothing, with the arguments of a decoding step's, registered by the decorator
`torch.library.custom_op` and by `torch.library.Library` as in `cmr.kernels.dispatch`, called in
turns. Without gradients, as `generate` calls; tensors of `torch.inference_mode` cost the decorator
less.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole

SCHEMA = "(Tensor query, Tensor? mask, float scale, Tensor(a!) out, Tensor(b!) gate) -> ()"
CALLS, ROUNDS = 500, 9
LIBRARY = torch.library.Library("cmr_bench", "FRAGMENT")


def registered() -> dict[str, Callable[..., None]]:
    """The same operation, registered either way."""

    @torch.library.custom_op("cmr_bench::decorated", mutates_args=("out", "gate"))
    def decorated(
        query: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
        out: torch.Tensor,
        gate: torch.Tensor,
    ) -> None:
        pass

    LIBRARY.define("plain" + SCHEMA)
    LIBRARY.impl("plain", lambda *_: None, "CPU")
    return {"custom_op": decorated, "Library": torch.ops.cmr_bench.plain.default}


@torch.no_grad()
def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--calls", type=whole(), default=CALLS, help="in a round")
    parser.add_argument("--rounds", type=whole(), default=ROUNDS)
    parser.add_threads()
    args = parser.parse_args(words)
    query, out = torch.randn(2, 1, 9, 1, 64)
    gate = torch.empty(1, 9, 1)
    times: dict[str, list[float]] = {}
    ways = registered()
    for _ in range(args.rounds):
        for name, call in ways.items():
            start = time.perf_counter()
            for _ in range(args.calls):
                call(query, None, 1.0, out, gate)
            times.setdefault(name, []).append(1e6 * (time.perf_counter() - start) / args.calls)
    found = {name: round(statistics.median(spent), 1) for name, spent in times.items()}
    rows.append(
        "registration", {**rows.conditions(calls=args.calls, rounds=args.rounds), "us": found}
    )
    print(found)


if __name__ == "__main__":
    run(main)
