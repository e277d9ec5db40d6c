"""``cmr serve``, ``cmr serve-key`` and ``cmr plan``: their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmr.cli.options import (
    BudgetOption,
    KeyFileOption,
    LongTermBudgetOption,
    ModelOption,
    WeightOption,
    WindowOption,
    WorkingBudgetOption,
)

KeysOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Keys of clients, as `cmr serve-key` makes them. "
                 "Without it nobody needs one, and only this machine is served."),
]  # fmt: skip


def serve(
    model: ModelOption = None,
    host: Annotated[str, typer.Option(help="Address; another than this machine's needs --keys.")]
    = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    keys: KeysOption = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where the memory is kept, and taken up again. Without it, it ends with "
                     "the server."),
    ] = None,
    shared: Annotated[
        bool,
        typer.Option("--shared", help="Other servers keep sessions in --folder, too: each session "
                     "is at home in one of them, and comes when it is asked for."),
    ] = False,
    ray: Annotated[
        bool, typer.Option("--ray", help="Have Ray Serve run it, as several replicas; --shared.")
    ] = False,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="How many, with --ray.  [default: 2]")
    ] = None,
    key_file: KeyFileOption = None,
    save_every: Annotated[float, typer.Option(min=0.1, help="Seconds until it is saved.")] = 30.0,
    window: WindowOption = None,
    budget: BudgetOption = None,
    working_budget: WorkingBudgetOption = None,
    long_term_budget: LongTermBudgetOption = None,
    memory_weight: WeightOption = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer, at most.")] = 512,
    max_prompt: Annotated[int, typer.Option(min=1, help="Tokens of a prompt, at most.")] = 16_384,
    batch: Annotated[int, typer.Option(min=1, help="Requests answered together.")] = 16,
    lanes: Annotated[
        int, typer.Option(min=1, help="Batches under way at once, token by token in turns.")
    ] = 2,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; then 429.")] = 64,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds of a request.")] = 120.0,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request.")] = 1 << 20,
    rate: Annotated[
        int | None, typer.Option(min=1, help="Requests a minute of a tenant.")
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Requests of a tenant at once.")] = 32,
    sessions: Annotated[
        int | None, typer.Option(min=1, help="Sessions of a tenant at once.")
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A server with OpenAI's endpoints that answers, such as "
                     "http://127.0.0.1:8001/v1; --model keeps and searches the memory. Its key is "
                     "taken from CMR_UPSTREAM_KEY."),
    ] = None,
    upstream_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="What that server calls its model.")
    ] = None,
    upstream_timeout: Annotated[
        float | None,
        typer.Option(min=0.1, show_default="60",
                     help="Seconds of silence after which it is given up."),
    ] = None,
    upstream_extra_body: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="Fields that each request to it has beside the others."),
    ] = None,
) -> None:  # fmt: skip
    """Serve a memory for many people, by the endpoints that OpenAI's clients know."""
    # Before anything else is a local: all options by name.
    options = dict(locals())
    from cmr.cli.serve import Serving, run, run_replicas

    options.pop("ray"), options.pop("replicas")
    if ray or replicas is not None:
        run_replicas(options, ray, replicas)
    else:
        run(Serving.parse(**options))


def serve_key(
    keys: Annotated[Path, typer.Option(metavar="FILE", help="File that the key is added to.")],
    tenant: Annotated[str, typer.Option(help="Whose key: tenants see nothing of each other.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="use (answers, the default), admin (the tenant's memory), metrics; "
                     "may be given several times."),
    ] = None,
) -> None:  # fmt: skip
    """Make a key for clients of `cmr serve`. It is shown once; the file knows only its hash."""
    from cmr.cli.serve import new_key

    new_key(keys, tenant, scope or ["use"])


def plan(
    sessions: Annotated[int, typer.Option(min=1, help="Sessions that are remembered.")],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of each that are remembered.")],
    model: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|SIZES",
                     help="Decoder, or sizes such as layers=32,hidden=4096,heads=32,kv_heads=8"
                     "[,head_dim=128,dtype=bfloat16]; without it SmolLM2-135M-Instruct."),
    ] = None,
    device_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="What there is for memory beside the model, such as "
                     "20GB: budgets are chosen that keep to it."),
    ] = None,
    budget: BudgetOption = None,
    working_budget: WorkingBudgetOption = None,
    long_term_budget: LongTermBudgetOption = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:  # fmt: skip
    """What a memory takes, tier by tier, and the settings for it. No weights are loaded."""
    # As in `serve`.
    options = dict(locals())
    as_json = options.pop("json")
    from cmr.cli.plan import Wanted, run

    run(Wanted.parse(**options), as_json)
