"""Exact cosine search beside what a user would take instead, in turns: medians and their ratio.

`cosine_topk` is compared with faiss-cpu's flat index (float32 only) and with `torch.matmul` and
`topk`, on the CPU. The results are held to be equal first.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run
from cmr.evaluation.machine import version
from cmr.kernels import cosine_topk

HIDDEN, K = 576, 16

Way = Callable[[], torch.Tensor]


def ways(entries: int, queries: int, dtype: torch.dtype) -> dict[str, Way]:
    """The scores of the same search, [queries, K], each way."""
    torch.manual_seed(0)
    stored = F.normalize(torch.randn(entries, HIDDEN), dim=-1).to(dtype)
    query = torch.randn(queries, HIDDEN)
    found: dict[str, Way] = {
        "cmr": lambda: cosine_topk(query, stored, None, None, K)[0],
        "plain": lambda: (F.normalize(query, dim=-1).to(dtype) @ stored.t()).float().topk(K).values,
    }
    if dtype == torch.float32:
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        flat = faiss.IndexFlatIP(HIDDEN)
        flat.add(stored.numpy())
        found["faiss"] = lambda: torch.from_numpy(
            flat.search(F.normalize(query, dim=-1).numpy(), K)[0]
        )
    return found


def medians(found: dict[str, Way], seconds: float) -> dict[str, float]:
    """Median milliseconds of each way, in turns for about `seconds` in all, 5 times at least."""
    times: dict[str, list[float]] = {name: [] for name in found}
    until = time.perf_counter() + seconds
    order = random.Random(0)
    while time.perf_counter() < until or len(times["cmr"]) < 5:
        # In no fixed order: who comes after another library's threads pays for waking its own.
        for name in order.sample(list(found), len(found)):
            found[name]()
            start = time.perf_counter()
            found[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(spent) for name, spent in times.items()}


@torch.inference_mode()
def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each case")
    parser.add_threads(2)
    options = parser.parse_args(words)
    about = rows.conditions(seconds=options.seconds, hidden=HIDDEN, k=K)
    about["faiss"] = version("faiss-cpu")
    for dtype in (torch.float32, torch.bfloat16):
        close = 1e-5 if dtype == torch.float32 else 4e-3
        for entries in (4096, 65536):
            for queries in (1, 32, 512):
                found = ways(entries, queries, dtype)
                for name, way in found.items():
                    torch.testing.assert_close(
                        way(), found["cmr"](), atol=close, rtol=0, msg=f"{name} differs"
                    )
                spent = medians(found, options.seconds)
                best = min(ms for name, ms in spent.items() if name != "cmr")
                row = {
                    **about,
                    "dtype": str(dtype)[6:],
                    "entries": entries,
                    "queries": queries,
                    "ms": {name: round(ms, 3) for name, ms in spent.items()},
                    "ratio_to_best": round(spent["cmr"] / best, 3),
                    "gb_s": round(entries * HIDDEN * dtype.itemsize / spent["cmr"] / 1e6, 2),
                }
                rows.append("search_speed", row)
                print(
                    row["dtype"], entries, queries, row["ms"], f"x{row['ratio_to_best']} the best"
                )


if __name__ == "__main__":
    run(main)
