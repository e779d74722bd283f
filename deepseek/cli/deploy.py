"""`deepseek deploy`: files that bring bundles into containers and clusters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from deepseek.cli.stages import bundle_in

deploy = typer.Typer(
    help="Write files that serve a bundle in containers: Docker, Compose, Kubernetes, Helm.", no_args_is_help=True
)

_Bundle = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A bundle, a run folder, or a folder of bundles.", show_default=False)
]
_Out = Annotated[Path, typer.Option("-o", "--out", help="The folder to write.", show_default=False)]
_Name = Annotated[str | None, typer.Option(help="What its parts are called.", show_default="deepseek")]
_Image = Annotated[str | None, typer.Option(help="The image, with a tag or digest.", show_default="deepseek:VERSION")]
_Gpu = Annotated[int, typer.Option(help="GPUs of one server; 0 serves on the processor.", min=0)]
_Port = Annotated[int | None, typer.Option(help="REST and the page.", show_default="8080")]
_GrpcPort = Annotated[
    int | None, typer.Option("--grpc-port", "--grpc_port", help="gRPC; 0 serves none.", show_default="8081")
]
_Host = Annotated[
    str | None, typer.Option(help="This machine's address that the ports are published at.", show_default="127.0.0.1")
]
_Memory = Annotated[
    str | None, typer.Option(help="Memory of one server, such as 2Gi.", show_default="from the bundle's size")
]
_Cpu = Annotated[
    str | None, typer.Option(help="Cores of one server, such as 2 or 500m.", show_default="from the bundle's size")
]
_Drain = Annotated[
    int | None,
    typer.Option(help="Seconds that running requests may go on when a server is stopped.", show_default="20"),
]
_Redis = Annotated[str | None, typer.Option(help="A Redis for cached answers and sessions: redis://HOST:6379/0.")]
_RedisSecret = Annotated[str | None, typer.Option(help="A Secret whose key 'url' is Redis' address with its password.")]
_Replicas = Annotated[int | None, typer.Option(help="Servers, and the fewest autoscaling leaves.", show_default="3")]
_MaxReplicas = Annotated[int | None, typer.Option(help="The most servers.", show_default="10, or twice --replicas")]
_Namespace = Annotated[str | None, typer.Option(help="The cluster's namespace.", show_default="default")]
_Volume = Annotated[
    str | None, typer.Option(help="A folder of models on this machine, mounted in place of models in the image.")
]
_Claim = Annotated[
    str | None, typer.Option("--claim", help="A PersistentVolumeClaim with the models, in place of the image's.")
]
_Force = Annotated[bool, typer.Option("--force", help="Move aside what is in the folder already.")]


@deploy.command()
def docker(
    bundle: _Bundle,
    out: _Out,
    name: _Name = None,
    image: _Image = None,
    gpu: _Gpu = 0,
    port: _Port = None,
    grpc_port: _GrpcPort = None,
    host: _Host = None,
    memory: _Memory = None,
    cpu: _Cpu = None,
    drain: _Drain = None,
    redis: _Redis = None,
    volume: _Volume = None,
    force: _Force = False,
) -> None:
    """An image: Dockerfile and all that it is built from."""
    _write("docker", locals())


@deploy.command()
def compose(
    bundle: _Bundle,
    out: _Out,
    name: _Name = None,
    image: _Image = None,
    gpu: _Gpu = 0,
    port: _Port = None,
    grpc_port: _GrpcPort = None,
    host: _Host = None,
    memory: _Memory = None,
    cpu: _Cpu = None,
    drain: _Drain = None,
    redis: _Redis = None,
    volume: _Volume = None,
    force: _Force = False,
) -> None:
    """One machine: the server with Redis, Prometheus and Grafana."""
    _write("compose", locals())


@deploy.command()
def k8s(
    bundle: _Bundle,
    out: _Out,
    name: _Name = None,
    namespace: _Namespace = None,
    image: _Image = None,
    gpu: _Gpu = 0,
    replicas: _Replicas = None,
    max_replicas: _MaxReplicas = None,
    port: _Port = None,
    grpc_port: _GrpcPort = None,
    memory: _Memory = None,
    cpu: _Cpu = None,
    drain: _Drain = None,
    redis: _Redis = None,
    redis_secret: _RedisSecret = None,
    claim: _Claim = None,
    force: _Force = False,
) -> None:
    """A cluster: manifests for kubectl."""
    _write("k8s", locals())


@deploy.command()
def helm(
    bundle: _Bundle,
    out: _Out,
    name: _Name = None,
    namespace: _Namespace = None,
    image: _Image = None,
    gpu: _Gpu = 0,
    replicas: _Replicas = None,
    max_replicas: _MaxReplicas = None,
    port: _Port = None,
    grpc_port: _GrpcPort = None,
    memory: _Memory = None,
    cpu: _Cpu = None,
    drain: _Drain = None,
    redis: _Redis = None,
    redis_secret: _RedisSecret = None,
    claim: _Claim = None,
    force: _Force = False,
) -> None:
    """A cluster: a Helm chart."""
    _write("helm", locals())


def _write(kind: str, options: dict[str, Any]) -> None:
    """Write the folder; `options` are the command's, by its parameters' names."""
    from deepseek.deploy.write import deploy as write

    said = dict(options)
    bundle, out, force = bundle_in(said.pop("bundle")), said.pop("out"), said.pop("force")
    said["drain_seconds"] = said.pop("drain")
    if "claim" in said:
        said["volume"] = said.pop("claim")
    plan = write(kind, bundle, out, force=force, **said)
    typer.echo(f"{plan.name}: each server asks for {plan.cpu} cores and {plan.memory}")
    typer.echo(f"written: {out} (begin with {out / 'README.md'})")
