"""What a call of an operation costs, registered either way: `python -m benchmarks.registration`.

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

from benchmarks import rows

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
def main() -> None:
    query, out = torch.randn(2, 1, 9, 1, 64)
    gate = torch.empty(1, 9, 1)
    times: dict[str, list[float]] = {}
    ways = registered()
    for _ in range(ROUNDS):
        for name, call in ways.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                call(query, None, 1.0, out, gate)
            times.setdefault(name, []).append(1e6 * (time.perf_counter() - start) / CALLS)
    found = {name: round(statistics.median(spent), 1) for name, spent in times.items()}
    rows.append("registration", {**rows.conditions(calls=CALLS, rounds=ROUNDS), "us": found})
    print(found)


if __name__ == "__main__":
    main()
