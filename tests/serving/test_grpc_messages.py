"""The messages are those that other implementations of the protocol know, field by field."""

from __future__ import annotations

from typing import Any

import pytest

from l0runtime.serving.grpc_messages import METHODS, SERVICE, message_classes

service_pb2: Any = pytest.importorskip("tritonclient.grpc.service_pb2", reason="tritonclient[grpc] is not installed")


def fields(descriptor: Any) -> dict[str, tuple[int, int, bool, str | None]]:
    """Name to number, type, whether repeated, and the message inside."""
    return {
        field.name: (
            field.number,
            field.type,
            bool(field.is_repeated) if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED,
            None if field.message_type is None else field.message_type.full_name,
        )
        for field in descriptor.fields
    }


def messages(descriptor: Any) -> list[Any]:
    found = [descriptor, *(inner for nested in descriptor.nested_types for inner in messages(nested))]
    return sorted(found, key=lambda message: str(message.full_name))


@pytest.mark.parametrize("name", sorted(message_classes()))
def test_a_message_is_the_one_that_triton_s_clients_have(name: str) -> None:
    ours, theirs = message_classes()[name].DESCRIPTOR, getattr(service_pb2, name).DESCRIPTOR
    for one, other in zip(messages(ours), messages(theirs), strict=True):
        assert one.full_name == other.full_name
        assert fields(one) == fields(other)


def test_the_methods_are_the_service_s() -> None:
    service = service_pb2.DESCRIPTOR.services_by_name[SERVICE.removeprefix("inference.")]
    assert service.full_name == SERVICE
    assert set(METHODS) <= set(service.methods_by_name)


def test_a_message_written_here_is_read_there() -> None:
    made = message_classes()["ModelInferRequest"](model_name="m", id="7", raw_input_contents=[b"ab"])
    made.parameters["p"].int64_param = 5
    tensor = made.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    tensor.contents.fp32_contents.extend([1.5, 2.5])
    found = service_pb2.ModelInferRequest.FromString(made.SerializeToString())
    assert (found.model_name, found.id, list(found.raw_input_contents)) == ("m", "7", [b"ab"])
    assert found.parameters["p"].int64_param == 5
    assert list(found.inputs[0].contents.fp32_contents) == [1.5, 2.5]
