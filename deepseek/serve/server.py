"""Starting a server: in the foreground (`serve`), in several processes, or beside a program (`BackgroundServer`).

Not here: what one process does (see `running`), routes (see `rest`) and the command line (see `deepseek.cli.serve`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from deepseek.errors import ConfigError, DeepSeekError
from deepseek.serve.heap import SteadyHeap
from deepseek.serve.options import Models, OptionWords, options_of
from deepseek.serve.options import Safety as Safety
from deepseek.serve.options import ServerLimits as ServerLimits
from deepseek.serve.options import ServerOptions as ServerOptions
from deepseek.serve.running import Listening as Listening
from deepseek.serve.running import Running
from deepseek.serve.service import Service


def serve(
    models: Models,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    on_ready: Callable[[Listening], None] | None = None,
    workers: int | None = None,
    **options: Unpack[OptionWords],
) -> None:
    """Serve until SIGTERM or Ctrl-C, then let running requests finish for `limits.drain_seconds`.

    `on_ready` is told where the server listens once every model answered its golden samples. Port 0 takes a free one.
    With `workers` a supervisor runs that many processes on the same port and replaces those that die or hang; it loads
    bundles only. Other words: fields of ServerOptions, `api_key` and `allowed_hosts`.
    Raises ConfigError for an address, key or certificate that can't be used, BundleError for a bundle that can't be
    served, SupervisorError where workers die again and again while they load.
    """
    wish = options_of(host, port, options)
    if workers is not None:
        from deepseek.serve.supervisor import supervise

        supervise(_paths(models), wish, workers, on_ready)
        return
    running = Running(models, wish)
    with contextlib.ExitStack() as heap:

        def checked(problem: DeepSeekError | None) -> None:
            if problem is not None:
                running.problem = problem
                running.server.should_exit = True
                return
            heap.enter_context(SteadyHeap(running.service))
            if on_ready is not None:
                on_ready(running.listening)

        running.run(checked)
    if running.problem is not None:
        raise running.problem


class BackgroundServer:
    """A server in a thread of this process, for as long as the `with` block lasts.

    with BackgroundServer(["runs/quickstart/bundle"]) as server:
        httpx.post(server.url + "/v1/completions", json={"prompt": "Once"})

    Entering waits until every model is ready. Raises what `serve` raises.
    """

    def __init__(self, models: Models, host: str = "127.0.0.1", port: int = 0, **options: Unpack[OptionWords]) -> None:
        self._running = Running(models, options_of(host, port, options))
        self._checked = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deepseek-server", daemon=True)

    @property
    def url(self) -> str:
        """Where the server listens, without a slash at the end."""
        return self._running.url

    @property
    def grpc_address(self) -> str | None:
        """`host:port` of gRPC, None without `grpc_port`."""
        return self._running.listening.grpc

    @property
    def service(self) -> Service:
        """The models that are served."""
        return self._running.service

    def __enter__(self) -> Self:
        self._thread.start()
        self._checked.wait()
        if self._running.problem is not None:
            self.close()
            raise self._running.problem
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server; running requests may finish for `limits.drain_seconds`."""
        self._running.server.should_exit = True
        self._thread.join()

    def _run(self) -> None:
        try:
            self._running.run(self._on_checked)
        except DeepSeekError as error:
            self._running.problem = error
        except Exception as error:
            self._running.problem = ConfigError("the server could not start", found=repr(error))
            self._running.problem.__cause__ = error
        finally:
            self._checked.set()

    def _on_checked(self, problem: DeepSeekError | None) -> None:
        self._running.problem = self._running.problem or problem
        self._checked.set()


def _paths(models: Models) -> dict[str, Path]:
    """Return names and bundles for processes to load. Raises ConfigError for models in memory."""
    from deepseek.serve.folder import name_bundles

    if not isinstance(models, Mapping):
        return name_bundles(models)
    paths = {name: Path(model) for name, model in models.items() if isinstance(model, str | Path)}
    if len(paths) < len(models):
        raise ConfigError("models in memory can't be given to workers", wanted="bundles", fix="ds.save(model, path)")
    return paths
