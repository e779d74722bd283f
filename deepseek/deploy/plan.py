"""What is deployed and how: everything the files are made of, checked as a whole before one of them is written."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING
from pathlib import Path
from typing import Any

from pydantic import Field

from deepseek import __version__
from deepseek.config import Config
from deepseek.deploy.names import (
    LONGEST_NAME,
    amount,
    check_address,
    check_image,
    check_label,
    check_subdomain,
    redis_port,
)
from deepseek.deploy.sizing import default_cpu, default_memory, weight_bytes
from deepseek.errors import BundleError, ConfigError
from deepseek.serve.folder import find_bundles, versions_of
from deepseek.yaml_source import read_yaml

MODEL_DIR = "/opt/deepseek/models"
"""Where the models lie in a container."""
API_KEY = "DEEPSEEK_API_KEY"
REDIS_URL = "DEEPSEEK_REDIS_URL"
"""The variables that `deepseek serve` reads its secrets and the address of its Redis from."""
USER = 65532
"""The user and group that the server runs as: a number that is nobody's name, here or on the host."""
DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,2})?")


class DeployPlan(Config):
    """One deployment."""

    name: str = "deepseek"
    """What its parts are called."""
    namespace: str = "default"
    """The cluster's namespace."""
    image: str = f"deepseek:{__version__}"
    """The image's reference, with a tag or digest."""
    gpu: int = Field(0, ge=0, le=16)
    """GPUs for each server; 0 serves on the processor."""
    replicas: int = Field(3, ge=1, le=1000)
    """Servers side by side; the fewest that autoscaling leaves."""
    max_replicas: int = Field(10, ge=1, le=10_000)
    """The most servers that autoscaling starts."""
    port: int = Field(8080, ge=1024, le=65535)
    """REST and the page."""
    grpc_port: int = Field(8081, ge=0, le=65535)
    """gRPC; 0 serves none."""
    host: str = "127.0.0.1"
    """The address of the machine that Docker and Compose publish the server's ports at."""
    redis: str | None = None
    """The address of a Redis for cached answers and sessions, without a password."""
    redis_secret: str | None = None
    """A Secret whose key `url` is that address, password included."""
    volume: str | None = None
    """A folder of models (Docker, Compose) or a volume claim (Kubernetes) in place of models in the image."""
    memory: str
    """Memory of one server, such as 2Gi."""
    cpu: str
    """Cores of one server, such as 2 or 500m."""
    drain_seconds: int = Field(20, ge=0, le=3600)
    """How long running requests may go on when a server is stopped."""

    def model_post_init(self, context: Any) -> None:
        """Raise ConfigError for what can't work."""
        check_label(self.name, "name", LONGEST_NAME)
        check_label(self.namespace, "namespace")
        check_image(self.image)
        check_address(self.host)
        amount(self.memory, "memory")
        amount(self.cpu, "cpu")
        if self.grpc_port and (self.grpc_port == self.port or self.grpc_port < 1024):
            raise ConfigError(
                "this port can't be gRPC's",
                found=self.grpc_port,
                wanted=f"1024 to 65535, not {self.port}: without rights of root lower ports can't be opened",
            )
        if self.max_replicas < self.replicas:
            raise ConfigError("more servers than the most", found=self.replicas, wanted=f"{self.max_replicas} or fewer")
        if self.redis is not None:
            redis_port(self.redis)
        if self.redis_secret is not None:
            check_subdomain(self.redis_secret, "Secret's name")

    @property
    def threads(self) -> int:
        """Compute threads of one server: its cores, rounded up."""
        return int(amount(self.cpu, "cpu").to_integral_value(ROUND_CEILING))

    @property
    def device(self) -> str:
        """Where the models run."""
        return "cuda" if self.gpu else "cpu"

    @property
    def command(self) -> list[str]:
        """The server's command line in a container."""
        line = ["deepseek-serve", "--model_dir", MODEL_DIR, "--port", str(self.port), "--host", "0.0.0.0"]
        line += ["--grpc_port", str(self.grpc_port)] if self.grpc_port else []
        return [*line, "--device", self.device, "--drain", str(self.drain_seconds)]


def models_in(path: Path) -> dict[str, Path]:
    """Return name -> folder of the models at `path`: a bundle, or a folder of bundles.

    Raises BundleError where there is none, for a bundle that is one file, and for a link that leads elsewhere.
    """
    if path.is_file():
        raise BundleError(
            f"{path} is one file; a server's folder of models holds folders", fix="save the model as a folder: ds.save"
        )
    models = find_bundles(path)
    for bundle in (version for model in models.values() for version in versions_of(model).values()):
        said = read_yaml(bundle / "config.yaml").value
        if not isinstance(said, dict) or "format_version" not in said or not (bundle / "model.safetensors").is_file():
            raise BundleError(
                f"{bundle} is not a bundle",
                wanted="config.yaml with its format_version, and model.safetensors",
                fix="write one with ds.save(model, path) or 'deepseek train'",
            )
    return models


def plan_for(models: dict[str, Path], **settings: Any) -> DeployPlan:
    """Return the plan for `models` (see `models_in`): `settings` are DeployPlan's fields, None for those not said.

    Memory and cores come from the models' sizes where they are not said. Raises ConfigError.
    """
    said = {name: value for name, value in settings.items() if value is not None}
    weights, gpu = weight_bytes(models), said.get("gpu", 0)
    gpu = gpu if isinstance(gpu, int) else 0
    said.setdefault("max_replicas", max(10, 2 * said.get("replicas", 3)))
    return DeployPlan(**{"memory": default_memory(weights, gpu), "cpu": default_cpu(weights, gpu), **said})
