"""The gRPC messages: our reader of .proto files against protoc, and the official field numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from deepseek.errors import ConfigError
from deepseek.serve import rpc
from deepseek.serve.rpc import messages
from deepseek.serve.rpc.proto_text import parse_proto

FOLDER = Path(rpc.__file__).parent
OFFICIAL = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live=1:bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready=1:bool",
    "ModelReadyRequest": "name=1:string version=2:string",
    "ModelReadyResponse": "ready=1:bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name=1:string version=2:string extensions=3:string*",
    "ModelMetadataRequest": "name=1:string version=2:string",
    "ModelMetadataResponse": "name=1:string versions=2:string* platform=3:string "
    "inputs=4:ModelMetadataResponse.TensorMetadata* outputs=5:ModelMetadataResponse.TensorMetadata*",
    "ModelMetadataResponse.TensorMetadata": "name=1:string datatype=2:string shape=3:int64*",
    "ModelInferRequest": "model_name=1:string model_version=2:string id=3:string "
    "parameters=4:ModelInferRequest.ParametersEntry* inputs=5:ModelInferRequest.InferInputTensor* "
    "outputs=6:ModelInferRequest.InferRequestedOutputTensor* raw_input_contents=7:bytes*",
    "ModelInferRequest.ParametersEntry": "key=1:string value=2:InferParameter",
    "ModelInferRequest.InferInputTensor": "name=1:string datatype=2:string shape=3:int64* "
    "parameters=4:ModelInferRequest.InferInputTensor.ParametersEntry* contents=5:InferTensorContents",
    "ModelInferRequest.InferRequestedOutputTensor": "name=1:string "
    "parameters=2:ModelInferRequest.InferRequestedOutputTensor.ParametersEntry*",
    "ModelInferResponse": "model_name=1:string model_version=2:string id=3:string "
    "parameters=4:ModelInferResponse.ParametersEntry* outputs=5:ModelInferResponse.InferOutputTensor* "
    "raw_output_contents=6:bytes*",
    "ModelInferResponse.InferOutputTensor": "name=1:string datatype=2:string shape=3:int64* "
    "parameters=4:ModelInferResponse.InferOutputTensor.ParametersEntry* contents=5:InferTensorContents",
    "InferParameter": "bool_param=1:bool int64_param=2:int64 string_param=3:string double_param=4:double "
    "uint64_param=5:uint64",
    "InferTensorContents": "bool_contents=1:bool* int_contents=2:int32* int64_contents=3:int64* "
    "uint_contents=4:uint32* uint64_contents=5:uint64* fp32_contents=6:float* fp64_contents=7:double* "
    "bytes_contents=8:bytes*",
    "ModelStreamInferResponse": "error_message=1:string infer_response=2:ModelInferResponse",
    "RepositoryIndexRequest": "repository_name=1:string ready=2:bool",
    "RepositoryIndexResponse": "models=1:RepositoryIndexResponse.ModelIndex*",
    "RepositoryIndexResponse.ModelIndex": "name=1:string version=2:string state=3:string reason=4:string",
    "RepositoryModelLoadRequest": "repository_name=1:string model_name=2:string "
    "parameters=3:RepositoryModelLoadRequest.ParametersEntry*",
    "RepositoryModelUnloadRequest": "repository_name=1:string model_name=2:string "
    "parameters=3:RepositoryModelUnloadRequest.ParametersEntry*",
}
"""Messages as KServe's open inference protocol and Triton's extensions publish them: name=number:type, * repeated."""


def compiled(name: str, folder: Path, out: Path) -> descriptor_pb2.FileDescriptorProto:
    """Return what protoc makes of a file."""
    from grpc_tools import protoc

    assert protoc.main(["protoc", f"-I{folder}", f"--descriptor_set_out={out}", name]) == 0
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    return file


@pytest.mark.parametrize("name", messages.FILES)
def test_a_proto_file_is_read_as_protoc_reads_it(name, tmp_path):
    ours = parse_proto(name, (FOLDER / name).read_text(encoding="utf-8"))
    assert ours == compiled(name, FOLDER, tmp_path / "set")


def test_every_form_that_the_reader_knows_is_read_as_protoc_reads_it(tmp_path):
    text = """
    // A comment, { with brackets }.
    syntax = "proto3";
    package a.b;
    message Outer {
      message Inner { message Deep { Inner up = 1; } Deep deep_one = 1; }
      optional int32 maybe_this = 1;
      oneof which { Inner inner = 2; string text = 3; }
      map<int64, Inner> by_number = 4;
      map<string, bytes> by_name_2 = 5;
      repeated Other others = 6;
      optional Inner maybe_that = 7;
      oneof second { bool yes = 8; double no = 9; }
      uint64 u = 100; uint32 v = 15; float f = 16; int64 i = 2047;
    }
    message Other { Outer.Inner inner = 1; }
    service One { rpc A(Outer) returns (Other); rpc B(stream Outer) returns (stream Other); }
    service Two { rpc C(stream Other) returns (Outer); }
    """
    (tmp_path / "forms.proto").write_text(text)
    assert parse_proto("forms.proto", text) == compiled("forms.proto", tmp_path, tmp_path / "set")


def test_messages_have_the_published_fields():
    found = {name: _fields("inference." + name) for name in OFFICIAL}
    assert found == OFFICIAL


def _fields(name: str) -> str:
    kinds = {number: kind for kind, number in descriptor_pb2.FieldDescriptorProto.Type.items()}
    fields = messages.pool().FindMessageTypeByName(name).fields
    told = []
    for field in fields:
        kind = kinds[field.type].removeprefix("TYPE_").lower()
        kind = field.message_type.full_name.removeprefix("inference.") if field.message_type else kind
        told.append(f"{field.name}={field.number}:{kind}{'*' if field.is_repeated else ''}")
    return " ".join(told)


def test_methods_are_the_published_ones():
    service = messages.pool().FindServiceByName("inference.GRPCInferenceService")
    told = {
        method.name: (method.input_type.name, method.output_type.name, method.client_streaming, method.server_streaming)
        for method in service.methods
    }
    plain = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
    plain += ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload")
    assert told == {
        **{name: (name + "Request", name + "Response", False, False) for name in plain},
        "ModelStreamInfer": ("ModelInferRequest", "ModelStreamInferResponse", True, True),
    }


def test_another_copy_of_the_protocol_in_the_process_is_no_conflict(tmp_path):
    from google.protobuf import descriptor_pool

    other = 'syntax = "proto3"; package inference; message ModelInferRequest { int32 different = 1; }'
    descriptor_pool.Default().AddSerializedFile(parse_proto("other_inference.proto", other).SerializeToString())
    assert messages.ModelInferRequest(model_name="m").model_name == "m"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("message A {}", "f.proto:1: message"),
        ('syntax = "proto3"; package a; import "b.proto";', "f.proto:1: import"),
        ('syntax = "proto3";\npackage a;\nmessage A { int32 x = y; }', "f.proto:3: y"),
        ('syntax = "proto3"; package a; message A { Missing x = 1; }', "Missing"),
        ('syntax = "proto3"; package a; message A {', "f.proto"),
        ('syntax = "proto3"; package a; message A { int32 x = 1 [deprecated = true]; }', "'['"),
        ("§", "'§'"),
    ],
)
def test_what_the_reader_does_not_know_is_refused_with_its_place(text, told):
    with pytest.raises(ConfigError) as caught:
        parse_proto("f.proto", text)
    assert told in str(caught.value)
