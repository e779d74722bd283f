"""What a deployment may be called and ask for, and what it asks for when nobody says."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.deploy.names import amount, check_image, check_label, check_subdomain, memory_bytes, redis_port
from deepseek.deploy.plan import DeployPlan, models_in, plan_for
from deepseek.deploy.sizing import default_cpu, default_memory
from deepseek.errors import BundleError, ConfigError
from tests.toy_bundle import toy_bundle

GIB = 1 << 30


def plan(**settings: object) -> DeployPlan:
    return DeployPlan(**{"memory": "1Gi", "cpu": "1", **settings})


@pytest.mark.parametrize("name", ["a", "a1", "deepseek-7b", "0", "x" * 40])
def test_names_that_fit(name):
    assert plan(name=name).name == name


@pytest.mark.parametrize(
    "name", ["", "A", "a_b", "-a", "a-", "a.b", "x" * 41, "ä", "a b", "a\n", "../x", "{{ .Values.x }}", "$(id)"]
)
def test_names_that_do_not_fit(name):
    with pytest.raises(ConfigError, match="RFC 1123"):
        plan(name=name)
    with pytest.raises(ConfigError, match="RFC 1123"):
        plan(namespace=name if len(name) != 41 else name * 2)


@given(st.text(max_size=70))
def test_a_label_is_what_the_rfc_says(text):
    wanted = re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", text, re.ASCII) is not None
    try:
        check_label(text, "name")
    except ConfigError:
        assert not wanted
    else:
        assert wanted


@pytest.mark.parametrize(
    "image", ["m:1", "team/m:1.0-cpu", "r.example:5000/team/m:v1", f"r.example/m@sha256:{'0' * 64}"]
)
def test_images_that_fit(image):
    assert check_image(image) == image


@pytest.mark.parametrize(
    "image", ["m", "m:latest", "r.example:5000/m", "M:1", "m:", "m:1 ", "m:1\n", "", "m:a/b", "-m:1"]
)
def test_images_that_do_not_fit(image):
    with pytest.raises(ConfigError):
        check_image(image)


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", Decimal("0.5")), ("2", 2), ("1.5Gi", 3 * GIB // 2), ("512Mi", 1 << 29), ("1G", 10**9), ("2Ti", 2 << 40)],
)
def test_quantities_are_kubernetes_own(text, value):
    assert amount(text, "memory") == value


@pytest.mark.parametrize("text", ["", "0", "0Mi", "-1", "1e9", "1 Gi", "2GB", "two", "NaN", "1" * 30, "٣"])
def test_quantities_that_are_none(text):
    with pytest.raises(ConfigError):
        amount(text, "memory")


def test_docker_gets_bytes_since_its_g_is_another():
    assert memory_bytes("1Gi") == f"{GIB}b"
    assert memory_bytes("1G") == "1000000000b"


def test_the_port_of_redis_and_no_password():
    assert redis_port("redis://cache.data:6380/0") == 6380
    assert redis_port("rediss://cache/1") == 6379
    for url in (
        "http://cache",
        "cache:6379",
        "redis://",
        "redis://h:port",
        "unix:///x",
        "redis://h/0\n",
        "redis://[::1",
    ):
        with pytest.raises(ConfigError):
            redis_port(url)
    for url in ("redis://u:hidden@h", "redis://:hidden@h:6379/0", "redis://h/0?password=hidden"):
        with pytest.raises(ConfigError, match="Secret") as caught:
            redis_port(url)
        assert "hidden" not in str(caught.value)


def test_a_secrets_name_is_a_subdomain():
    assert check_subdomain("a.b-c", "name") == "a.b-c"
    for name in ("", "A", "a..b", "a_b", "." * 3, "x" * 254):
        with pytest.raises(ConfigError):
            check_subdomain(name, "name")


@pytest.mark.parametrize(
    "settings",
    [
        {"port": 80},
        {"port": 70000},
        {"grpc_port": 8080},
        {"grpc_port": 443},
        {"replicas": 0},
        {"replicas": 11},
        {"gpu": -1},
        {"drain_seconds": -1},
        {"memory": "lots"},
        {"cpu": "0"},
        {"redis_secret": "No Name"},
        {"nmae": "x"},
    ],
)
def test_settings_that_can_not_work(settings):
    with pytest.raises(ConfigError):
        plan(**settings)


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_larger_models_never_ask_for_less(one, other):
    small, large = sorted((one, other))
    for gpu in (0, 1):
        asked = [amount(default_memory(weights, gpu), "memory") for weights in (small, large)]
        assert asked[0] <= asked[1]
        assert asked[1] > large * (Decimal("1.5") if gpu else Decimal("2.5"))
        assert int(default_cpu(small, gpu)) <= int(default_cpu(large, gpu))


def test_defaults_come_from_the_files(tmp_path):
    toy_bundle(tmp_path / "models" / "small")
    assert plan_for(models_in(tmp_path / "models")).memory == "1Gi"
    toy_bundle(tmp_path / "models" / "large", weights=4 * GIB)
    both = plan_for(models_in(tmp_path / "models"))
    assert (both.memory, both.cpu, both.threads, both.replicas) == ("11Gi", "4", 4, 3)
    said = plan_for(models_in(tmp_path / "models"), memory="20Gi", cpu="1500m", replicas=8, name=None)
    assert (said.memory, said.threads, said.max_replicas, said.name) == ("20Gi", 2, 16, "deepseek")


def test_what_is_no_bundle(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(BundleError):
            models_in(path)
    single = tmp_path / "model.pt"
    single.write_bytes(b"x")
    with pytest.raises(BundleError, match="one file"):
        models_in(single)
    bundle = toy_bundle(tmp_path / "models" / "a")
    (bundle / "model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        models_in(tmp_path / "models")
    (bundle / "config.yaml").write_text("x: 1\n")
    with pytest.raises(BundleError, match="format_version"):
        models_in(bundle)


def test_versions_are_models_too(tmp_path):
    toy_bundle(tmp_path / "models" / "a" / "1")
    toy_bundle(tmp_path / "models" / "a" / "2", weights=GIB)
    assert models_in(tmp_path / "models") == {"a": Path(tmp_path / "models" / "a")}
    assert plan_for(models_in(tmp_path / "models")).memory == default_memory(GIB + 1000)
