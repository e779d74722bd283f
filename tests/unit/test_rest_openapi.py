"""The OpenAPI document: a valid one, complete, and true: what Schemathesis makes of it never gets a 5xx, and every
answer has the form that the document says.

DEEPSEEK_FUZZ_CASES=2000 runs at least that many cases; by default there are few.
"""

from __future__ import annotations

import contextlib
import os

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from jsonschema import Draft202012Validator

from deepseek.serve import EngineLimits, Service, create_app
from tests.fake_serving import FakeModel
from tests.fake_tensor import FakeTensorModel, LoneInput
from tests.rest_client import client_of

CASES = int(os.environ.get("DEEPSEEK_FUZZ_CASES", "60"))
ROUTES = {
    "/": {"get"},
    "/health": {"get"},
    "/ready": {"get"},
    "/metrics": {"get"},
    "/openapi.json": {"get"},
    "/v1/models": {"get"},
    "/v1/models/{name}": {"get"},
    "/v1/completions": {"post"},
    "/v1/chat/completions": {"post"},
    "/v1/embeddings": {"post"},
    "/v1/models/lone:predict": {"post"},
    "/v1/models/lone/versions/{version}:predict": {"post"},
    "/v1/models/three:predict": {"post"},
    "/v1/models/three/versions/{version}:predict": {"post"},
    "/v2": {"get"},
    "/v2/health/live": {"get"},
    "/v2/health/ready": {"get"},
    "/v2/models/{name}": {"get"},
    "/v2/models/{name}/ready": {"get"},
    "/v2/models/{name}/infer": {"post"},
    "/v2/models/three/infer": {"post"},
    "/v2/models/three/versions/{version}/infer": {"post"},
    "/v2/models/lone/infer": {"post"},
    "/v2/models/lone/versions/{version}/infer": {"post"},
    "/v2/models/{name}/generate": {"post"},
    "/v2/models/{name}/generate_stream": {"post"},
    "/v2/models/{name}/versions/{version}": {"get"},
    "/v2/models/{name}/versions/{version}/ready": {"get"},
    "/v2/models/{name}/versions/{version}/infer": {"post"},
    "/v2/models/{name}/versions/{version}/generate": {"post"},
    "/v2/models/{name}/versions/{version}/generate_stream": {"post"},
    "/v2/repository/index": {"post"},
    "/v2/repository/models/{name}/load": {"post"},
    "/v2/repository/models/{name}/unload": {"post"},
}


def models():
    return {"say": FakeModel("Hello there. ", end=True), "three": FakeTensorModel(), "lone": LoneInput()}


@pytest.fixture(scope="module")
def document():
    with client_of(models()) as client:
        yield client.get("/openapi.json").json()


def test_every_route_is_there_and_no_other(document):
    assert {path: set(item) for path, item in document["paths"].items()} == ROUTES


def test_every_schema_is_one_and_every_reference_leads_somewhere(document):
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    names = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) <= names


def references(value):
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    for item in value if isinstance(value, list) else []:
        yield from references(item)


def test_operation_ids_are_unique_and_answers_have_a_form(document):
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert "200" in operation["responses"]
        assert all("content" in answer for answer in operation["responses"].values())


def test_a_models_own_inputs_are_in_its_predict_schema(document):
    body = document["paths"]["/v1/models/three:predict"]["post"]["requestBody"]["content"]["application/json"]
    instance = body["schema"]["properties"]["instances"]["items"]
    assert set(instance["properties"]) == {"x", "flag", "word"}
    assert instance["properties"]["x"] == {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3}


def test_a_models_own_tensors_are_in_its_infer_schema(document):
    operation = document["paths"]["/v2/models/three/infer"]["post"]
    schemas = document["components"]["schemas"]
    asked = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    told = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    asks, tells = (Draft202012Validator({**document, **schemas[name]}) for name in (asked, told))
    x = {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]}
    flag = {"name": "flag", "datatype": "BOOL", "shape": [2], "data": [True, False]}
    word = {"name": "word", "datatype": "BYTES", "shape": [2, 1], "data": ["ab", "c"]}
    with client_of(models()) as client:
        answer = client.post("/v2/models/three/infer", json={"inputs": [word, x, flag]}).json()
    assert asks.is_valid({"inputs": [word, x, flag]}) and tells.is_valid(answer)
    for wrong in ({**x, "name": "z"}, {**x, "datatype": "FP64"}, {**x, "shape": [2, 4]}, {**x, "shape": [2]}):
        assert not asks.is_valid({"inputs": [word, wrong, flag]})
    assert not asks.is_valid({"inputs": [word, x]})
    for change in ({"name": "echo"}, {"datatype": "INT8"}, {"shape": [2, 3]}, {"data": ["a"]}):
        outputs = [{**answer["outputs"][0], **change}, answer["outputs"][1]]
        assert not tells.is_valid({**answer, "outputs": outputs})


def test_the_document_of_many_models_stays_small():
    many = {f"model{number}": LoneInput() for number in range(300)}
    with client_of(many) as client:
        told = client.get("/openapi.json")
    document = told.json()
    assert len(told.content) < 2 << 20
    assert "/v2/models/model0/infer" in document["paths"]
    for path in ("/v2/models/{name}/infer", "/v1/models/{name}:predict"):
        (name,) = document["paths"][path]["post"]["parameters"][:1]
        assert len(name["schema"]["enum"]) == 300 - 64 and "model299" in name["schema"]["enum"]


@pytest.mark.filterwarnings("ignore")
def test_what_the_document_allows_or_forbids_never_gets_a_5xx_and_every_answer_has_its_form():
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    checks = schemathesis.checks
    checks.load_all_checks()
    wanted = [
        checks.not_a_server_error,
        checks.CHECKS.get_one("status_code_conformance"),
        checks.CHECKS.get_one("content_type_conformance"),
        checks.CHECKS.get_one("response_schema_conformance"),
    ]
    service = Service(models(), EngineLimits(max_active=4))
    app = create_app(service, allow_admin=True)
    service.start()
    service.verify()
    try:
        schema = schemathesis.openapi.from_asgi("/openapi.json", app)
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) == len(ROUTES) - 1  # it leaves the document itself out
        answered: list[int] = []
        for operation in operations:
            if operation.path.endswith("unload"):
                continue  # it would take the models away from the others
            for mode in schemathesis.GenerationMode:
                run(operation.as_strategy(generation_mode=mode), wanted, answered, len(operations))
        assert len(answered) >= CASES
        assert 200 in answered
        assert max(answered) < 500
    finally:
        service.close()


def run(strategy: st.SearchStrategy, checks: list, answered: list[int], operations: int) -> None:
    @settings(
        max_examples=max(2, -(-CASES // operations)),
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def ask(case) -> None:
        response = case.call_and_validate(checks=checks)
        answered.append(response.status_code)

    with contextlib.suppress(Unsatisfiable):  # a route without fields has no wrong requests
        ask()
