"""
Requests and answers of the Open Inference Protocol v2, as JSON and with the extension for binary tensors: a JSON header, whose length
`Inference-Header-Content-Length` says, and after it the bytes of the tensors in their order.

Pure: bytes in, arrays out, and back. What is wrong with a request raises Invalid, which says so without repeating it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from driftline.errors import Invalid

INPUT = "rows"
DATATYPES: Mapping[str, Any] = {"FP32": np.dtype("<f4"), "BOOL": np.dtype("?")}
NAMES = {dtype: name for name, dtype in DATATYPES.items()}
HEADER = "Inference-Header-Content-Length"

Matrix = npt.NDArray[np.float32]


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[_Output] | None = None


_DECODER = msgspec.json.Decoder(_Request)


@dataclass(frozen=True, slots=True)
class Asked:
    """Rows to score, float32 (n, F), and which outputs are wanted (None: all), each with whether as binary."""

    id: str
    rows: Matrix
    outputs: tuple[tuple[str, bool], ...] | None
    binary: bool


def parse_request(body: bytes, header_bytes: int | None, features: int) -> Asked:
    """What is asked of a model of so many features. Raises Invalid."""
    if header_bytes is not None and not 0 <= header_bytes <= len(body):
        raise Invalid(f"{HEADER} says more than the body has")
    header, tensors = (body, b"") if header_bytes is None else (body[:header_bytes], body[header_bytes:])
    try:
        request = _DECODER.decode(header)
    except msgspec.ValidationError as error:
        raise Invalid(f"the request is not as the protocol says: {_place(error)}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid("the request is not valid JSON") from error
    if [one.name for one in request.inputs] != [INPUT]:
        raise Invalid(f'the model takes one input, "{INPUT}"')
    rows = _rows(request.inputs[0], tensors, features)
    binary = request.parameters.get("binary_data_output") is True
    outputs = (
        None if request.outputs is None else tuple((one.name, one.parameters.get("binary_data", binary) is True) for one in request.outputs)
    )
    return Asked(request.id, rows, outputs, binary)


def _place(error: msgspec.ValidationError) -> str:
    """Where msgspec found it, without what it found."""
    _, _, place = str(error).partition(" - at ")
    return place.strip("`") or "the whole of it"


def _rows(given: _Input, tensors: bytes, features: int) -> Matrix:
    shape = given.shape
    if given.datatype != "FP32":
        raise Invalid(f'"{INPUT}" is of the datatype FP32')
    if len(shape) != 2 or shape[1] != features or shape[0] < 1:
        raise Invalid(f'"{INPUT}" is of the shape [n, {features}]')
    size = given.parameters.get("binary_data_size")
    if size is not None:
        if size != len(tensors) or size != 4 * shape[0] * features:
            raise Invalid(f'"{INPUT}" has other bytes than its shape and binary_data_size say')
        return np.frombuffer(tensors, "<f4").reshape(shape)
    if given.data is None or tensors:
        raise Invalid(f'"{INPUT}" has neither data nor binary_data_size, or bytes that nobody asked for')
    return _numbers(given.data, shape)


def _numbers(data: list[Any], shape: Sequence[int]) -> Matrix:
    """A list of numbers, or a list of rows of them; null is missing, which is NaN."""
    flat = [value for row in data for value in row] if data and isinstance(data[0], list) and _are_lists(data) else data
    if len(flat) != shape[0] * shape[1] or not all(value is None or type(value) in (int, float) for value in flat):
        raise Invalid(f'"{INPUT}" has other data than numbers of the shape that it says')
    with np.errstate(over="ignore"):
        numbers = np.array([np.nan if value is None else float(value) for value in flat], np.float64).astype(np.float32)
    return numbers.reshape(shape)


def _are_lists(data: Sequence[Any]) -> bool:
    return all(isinstance(row, list) for row in data)


def write_answer(asked: Asked, model: str, version: str, results: Mapping[str, npt.NDArray[Any]]) -> tuple[bytes, int | None]:
    """
    The answer's body, and the length of its header, None where it is JSON alone. Raises Invalid for an output that there is not.
    """
    wanted = asked.outputs if asked.outputs is not None else tuple((name, asked.binary) for name in results)
    if unknown := [name for name, _ in wanted if name not in results]:
        raise Invalid(f"there are the outputs {', '.join(results)}; {len(unknown)} others were asked for")
    outputs, tensors = [], []
    for name, binary in wanted:
        result = results[name]
        told: dict[str, Any] = {"name": name, "datatype": NAMES[result.dtype], "shape": list(result.shape)}
        if binary:
            tensors.append(result.tobytes())
            told["parameters"] = {"binary_data_size": len(tensors[-1])}
        else:
            told["data"] = result.tolist()
        outputs.append(told)
    body = {"model_name": model, "model_version": version, "outputs": outputs} | ({"id": asked.id} if asked.id else {})
    header = msgspec.json.encode(body)
    return (b"".join([header, *tensors]), len(header)) if tensors else (header, None)
