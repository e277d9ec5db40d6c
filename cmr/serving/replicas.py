"""Replicas of a server by Ray Serve, each session sent to the one that has it at home.

Ray starts the replicas, on one machine or many, starts one anew that has ended, and sends a request
by a consistent hash of its `X-Session-Id`. Which replica has a session is not Ray's to say: they
share a folder (see `homes`), so a request that comes to another one is answered all the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from cmr.errors import ConfigError

NAME = "cmr"
HEADER = "RAY_SERVE_SESSION_ID_HEADER_KEY"
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
AT_ONCE = 1024
"""Requests that Ray hands a replica at once: how many may wait there is the server's own limit."""
Application = Callable[[], AbstractContextManager[Any]]


class Replica:
    """One server, inside of a replica of Ray's; `make` gives the application."""

    def __init__(self, make: Application) -> None:
        self._stack = ExitStack()
        self._app = self._stack.enter_context(make())

    def __serve_build_asgi_app__(self) -> Any:
        """What answers requests; its lifespan is Ray's to begin and to end."""
        return self._app

    def check_health(self) -> None:
        """Raises where the replica is to be replaced by another one."""
        service = getattr(self._app.state, "service", None)
        if service is not None and not service.engine.alive:
            raise RuntimeError("the engine has ended")


class Replicas:
    """Servers that run until they are closed.

    Ray is started here, and ends with them, unless `RAY_ADDRESS` says where it runs already. What
    Ray would tell its makers of its use is turned off, unless the environment says otherwise.

    Args:
        make: gives the application of one; it is called in the replica's own process.
        count: how many.
        host, port: where Ray listens for all of them.
        drain: seconds that requests under way have when they end.

    Raises:
        ConfigError: Ray is missing, or the replicas did not start.
    """

    def __init__(
        self, make: Application, count: int, *, host: str, port: int, drain: float
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Read when Ray is imported, here and in each of its processes.
        os.environ[HEADER] = "x-session-id"
        try:
            import ray
            from ray import serve
            from ray.serve.config import HTTPOptions, RequestRouterConfig
        except ImportError as error:
            raise ConfigError(f"replicas need the package {error.name}: run "
                              "`pip install 'cmr[ray]'`") from None  # fmt: skip
        self._ray, self._serve = ray, serve
        if "RAY_ADDRESS" in os.environ:
            ray.init(log_to_driver=False)
        else:
            cores = max(count, os.cpu_count() or 1)
            ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False)
        try:
            # Lines of requests would name sessions.
            silent = {"enable_access_log": False}
            serve.start(http_options=HTTPOptions(host=host, port=port), logging_config=silent)
            one = serve.deployment(
                num_replicas=count,
                max_ongoing_requests=AT_ONCE,
                ray_actor_options={"num_cpus": 1, "num_gpus": _gpus()},
                graceful_shutdown_timeout_s=2 * drain + 30,
                health_check_period_s=5,
                logging_config=silent,
                request_router_config=RequestRouterConfig(
                    request_router_class=ROUTER,
                    request_router_kwargs={"num_fallback_replicas": 0},
                ),
            )(serve.ingress()(Replica))
            serve.run(one.bind(make), name=NAME, route_prefix="/")
        except Exception as error:
            self.close()
            raise ConfigError(f"replicas: Ray did not start them ({type(error).__name__}); its "
                              "logs say why") from None  # fmt: skip

    def close(self) -> None:
        """Have them answer what is under way and save, and end them."""
        self._serve.shutdown()
        self._ray.shutdown()


def _gpus() -> int:
    import torch

    return int(torch.cuda.is_available())
