"""What are the messages of the Open Inference Protocol over gRPC?

Written from the public definition of `inference.GRPCInferenceService`. The classes are made from this table when a
server starts, in a descriptor pool of their own: no generated code that fits one version of protobuf only, and no
clash with a client's copy of the same messages in the same process.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"

_INT = "int64"
# message: fields as (number, name, type, label); a type that starts with a capital is a message of this table,
# "map:T" is a map from text to T, and "=name" puts the field into the oneof of that name
_TABLE: dict[str, list[tuple[int, str, str, str]]] = {
    "ServerLiveRequest": [],
    "ServerLiveResponse": [(1, "live", "bool", "")],
    "ServerReadyRequest": [],
    "ServerReadyResponse": [(1, "ready", "bool", "")],
    "ModelReadyRequest": [(1, "name", "string", ""), (2, "version", "string", "")],
    "ModelReadyResponse": [(1, "ready", "bool", "")],
    "ServerMetadataRequest": [],
    "ServerMetadataResponse": [
        (1, "name", "string", ""),
        (2, "version", "string", ""),
        (3, "extensions", "string", "repeated"),
    ],
    "ModelMetadataRequest": [(1, "name", "string", ""), (2, "version", "string", "")],
    "ModelMetadataResponse": [
        (1, "name", "string", ""),
        (2, "versions", "string", "repeated"),
        (3, "platform", "string", ""),
        (4, "inputs", "ModelMetadataResponse.TensorMetadata", "repeated"),
        (5, "outputs", "ModelMetadataResponse.TensorMetadata", "repeated"),
    ],
    "ModelMetadataResponse.TensorMetadata": [
        (1, "name", "string", ""),
        (2, "datatype", "string", ""),
        (3, "shape", _INT, "repeated"),
    ],
    "InferParameter": [
        (1, "bool_param", "bool", "=parameter_choice"),
        (2, "int64_param", _INT, "=parameter_choice"),
        (3, "string_param", "string", "=parameter_choice"),
        (4, "double_param", "double", "=parameter_choice"),
        (5, "uint64_param", "uint64", "=parameter_choice"),
    ],
    "InferTensorContents": [
        (1, "bool_contents", "bool", "repeated"),
        (2, "int_contents", "int32", "repeated"),
        (3, "int64_contents", _INT, "repeated"),
        (4, "uint_contents", "uint32", "repeated"),
        (5, "uint64_contents", "uint64", "repeated"),
        (6, "fp32_contents", "float", "repeated"),
        (7, "fp64_contents", "double", "repeated"),
        (8, "bytes_contents", "bytes", "repeated"),
    ],
    "ModelInferRequest": [
        (1, "model_name", "string", ""),
        (2, "model_version", "string", ""),
        (3, "id", "string", ""),
        (4, "parameters", "map:InferParameter", ""),
        (5, "inputs", "ModelInferRequest.InferInputTensor", "repeated"),
        (6, "outputs", "ModelInferRequest.InferRequestedOutputTensor", "repeated"),
        (7, "raw_input_contents", "bytes", "repeated"),
    ],
    "ModelInferRequest.InferInputTensor": [
        (1, "name", "string", ""),
        (2, "datatype", "string", ""),
        (3, "shape", _INT, "repeated"),
        (4, "parameters", "map:InferParameter", ""),
        (5, "contents", "InferTensorContents", ""),
    ],
    "ModelInferRequest.InferRequestedOutputTensor": [
        (1, "name", "string", ""),
        (2, "parameters", "map:InferParameter", ""),
    ],
    "ModelInferResponse": [
        (1, "model_name", "string", ""),
        (2, "model_version", "string", ""),
        (3, "id", "string", ""),
        (4, "parameters", "map:InferParameter", ""),
        (5, "outputs", "ModelInferResponse.InferOutputTensor", "repeated"),
        (6, "raw_output_contents", "bytes", "repeated"),
    ],
    "ModelInferResponse.InferOutputTensor": [
        (1, "name", "string", ""),
        (2, "datatype", "string", ""),
        (3, "shape", _INT, "repeated"),
        (4, "parameters", "map:InferParameter", ""),
        (5, "contents", "InferTensorContents", ""),
    ],
}
METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")


def message_classes() -> dict[str, Any]:
    """The classes by name, such as "ModelInferRequest"."""
    file = descriptor_pb2.FileDescriptorProto(
        name="l0runtime/open_inference.proto", package="inference", syntax="proto3"
    )
    made: dict[str, Any] = {}
    for name, fields in _TABLE.items():
        outer, _, inner = name.rpartition(".")
        message = made[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=inner)
        made[name] = message
        for field in fields:
            _add_field(message, f"inference.{name}", *field)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{name}"))
        for name in _TABLE
        if "." not in name
    }


def _add_field(message: Any, full_name: str, number: int, name: str, kind: str, label: str) -> None:
    types = descriptor_pb2.FieldDescriptorProto
    field = message.field.add(name=name, number=number, label=types.LABEL_OPTIONAL)
    if label == "repeated":
        field.label = types.LABEL_REPEATED
    elif label.startswith("="):
        if not message.oneof_decl:
            message.oneof_decl.add(name=label[1:])
        field.oneof_index = 0
    if kind.startswith("map:"):
        entry_name = f"{name.title().replace('_', '')}Entry"
        entry = message.nested_type.add(name=entry_name)
        entry.options.map_entry = True
        _add_field(entry, f"{full_name}.{entry_name}", 1, "key", "string", "")
        _add_field(entry, f"{full_name}.{entry_name}", 2, "value", kind.removeprefix("map:"), "")
        field.label = types.LABEL_REPEATED
        field.type, field.type_name = types.TYPE_MESSAGE, f".{full_name}.{entry_name}"
    elif kind[0].isupper():
        field.type, field.type_name = types.TYPE_MESSAGE, f".inference.{kind}"
    else:
        field.type = getattr(types, f"TYPE_{kind.upper()}")
