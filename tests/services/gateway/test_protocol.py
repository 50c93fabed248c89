"""The Open Inference Protocol: JSON, binary tensors as tritonclient sends them, and every way to ask wrongly."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import numpy as np
import pytest

from driftline.errors import Invalid
from services.gateway.tensors import HEADER, parse_request, write_answer

ROWS = np.array([[0, 1, 2], [np.nan, 4, 5], [3, 4, 5]], np.float32)
SCORES = [0.5, None, pytest.approx(1 / (1 + np.exp(-3)), abs=1e-6)]


def binary(rows: Any = ROWS, **changed: Any) -> tuple[bytes, dict[str, str]]:
    """A request as tritonclient makes it by default: one binary tensor, binary answers wanted."""
    tensor = rows.astype("<f4").tobytes()
    given = {"name": "rows", "shape": list(rows.shape), "datatype": "FP32", "parameters": {"binary_data_size": len(tensor)}}
    header = json.dumps({"inputs": [given | changed], "parameters": {"binary_data_output": True}}).encode()
    return header + tensor, {HEADER: str(len(header)), "Content-Type": "application/octet-stream"}


def as_json(**changed: Any) -> dict[str, Any]:
    """The same rows as JSON, flat, with null for what is missing."""
    data = [None if np.isnan(value) else value for value in ROWS.reshape(-1).tolist()]
    return {"id": "42", "inputs": [{"name": "rows", "shape": [3, 3], "datatype": "FP32", "data": data} | changed]}


def test_the_champion_is_asked_by_the_pipelines_name_in_json(running: Any, rollout: dict[str, str]) -> None:
    """
    Scores in order, null where the model gave no number, and the id that came along.
    """
    answered = running.client("scorer").post(f"/v2/models/{running.pipeline.name}/infer", json=as_json())
    assert answered.status_code == 200, answered.text
    told = answered.json()
    outputs = {one["name"]: one for one in told["outputs"]}
    assert (told["id"], told["model_name"], told["model_version"]) == ("42", running.pipeline.name, "m-1")
    assert outputs["score"]["data"] == SCORES
    assert (outputs["score"]["datatype"], outputs["score"]["shape"]) == ("FP32", [3])
    assert outputs["alert"]["data"] == [True, False, True]


def test_binary_tensors_come_and_go_with_the_length_of_their_header(running: Any, rollout: dict[str, str]) -> None:
    """
    The bytes after the header are the outputs, one after the other, as their sizes say.
    """
    body, headers = binary()
    answered = running.client("scorer").post("/v2/models/m-2/infer", content=body, headers=headers)
    at = int(answered.headers[HEADER])
    told = json.loads(answered.content[:at])
    score, alert = told["outputs"]
    assert (told["model_name"], told["model_version"]) == ("m-2", rollout["m-2"][:12])
    assert [score["parameters"], alert["parameters"]] == [{"binary_data_size": 12}, {"binary_data_size": 3}]
    scores = np.frombuffer(answered.content[at : at + 12], "<f4").tolist()
    assert [None if np.isnan(one) else one for one in scores] == SCORES
    assert answered.content[at + 12 :] == b"\x01\x00\x01"


def test_one_output_can_be_asked_for_by_itself(running: Any, rollout: dict[str, str]) -> None:
    """
    As JSON or as binary, each as it says.
    """
    asked = as_json() | {"outputs": [{"name": "score", "parameters": {"binary_data": False}}]}
    told = running.client("scorer").post("/v2/models/m-1/infer", json=asked).json()
    assert [one["name"] for one in told["outputs"]] == ["score"]


def test_metadata_names_the_features_in_their_order(running: Any, rollout: dict[str, str]) -> None:
    """
    Of the champion, of a released model, of one version; and they are ready.
    """
    viewer = running.client("viewer")
    name, digest = running.pipeline.name, rollout["m-2"]
    champion = viewer.get(f"/v2/models/{name}").json()
    assert champion["inputs"][0] == {
        "name": "rows",
        "datatype": "FP32",
        "shape": [-1, 3],
        "parameters": {"names": list(running.pipeline.layout.names)},
    }
    assert champion["versions"] == ["m-1"]
    for path in (f"{name}/versions/m-2", f"m-2/versions/{digest}", f"m-2/versions/{digest[:12]}", "m-2"):
        assert viewer.get(f"/v2/models/{path}").json()["versions"] in (["m-2"], [digest[:12]])
        assert viewer.get(f"/v2/models/{path}/ready").json()["ready"] is True


def test_the_server_tells_what_it_is_without_a_token(running: Any, rollout: dict[str, str]) -> None:
    """
    As clients ask first.
    """
    client = running.client()
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert (client.get("/v2/health/live").status_code, client.get("/v2/health/ready").status_code) == (200, 200)


@pytest.mark.parametrize("path", ["nobody", "m-9/versions/1", "m-2/versions/ffff"])
def test_a_model_that_there_is_not_is_not_found(running: Any, rollout: dict[str, str], path: str) -> None:
    """
    With the member `error` that the protocol's clients look for.
    """
    missing = running.client("viewer").get(f"/v2/models/{path}")
    assert (missing.status_code, missing.json()["error"]) == (404, missing.json()["detail"])


def test_a_release_without_a_bundle_that_may_be_loaded_is_unavailable(running: Any, rollout: dict[str, str]) -> None:
    """
    m-3 was refused by the gate, and nobody signed a bundle.
    """
    assert running.client("viewer").get("/v2/models/m-3/ready").status_code == 503


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", {}),
        (b"[]", {}),
        (b'{"inputs": []}', {}),
        (json.dumps(as_json(name="others")).encode(), {}),
        (json.dumps(as_json(datatype="INT64")).encode(), {}),
        (json.dumps(as_json(shape=[3, 4])).encode(), {}),
        (json.dumps(as_json(shape=[-3, -3])).encode(), {}),
        (json.dumps(as_json(data=[1, 2])).encode(), {}),
        (json.dumps(as_json(data=["a"] * 9)).encode(), {}),
        (json.dumps(as_json() | {"outputs": [{"name": "secret"}]}).encode(), {}),
        (b"{}", {HEADER: "99"}),
        (b"{}", {HEADER: "-1"}),
        (b"{}", {HEADER: "one"}),
        (binary()[0][:-4], binary()[1]),
        (binary(shape=[2, 3])[0], binary(shape=[2, 3])[1]),
    ],
)
def test_a_request_that_is_wrong_is_refused_in_words(running: Any, rollout: dict[str, str], body: bytes, headers: dict[str, str]) -> None:
    """
    Never a fault of ours, and never what was sent.
    """
    refused = running.client("scorer").post("/v2/models/m-1/infer", content=body, headers=headers)
    assert refused.status_code == 422
    assert "secret" not in refused.json()["error"]


def test_a_compressed_request_is_not_read(running: Any, rollout: dict[str, str]) -> None:
    """
    A small body may stand for a large one.
    """
    refused = running.client("scorer").post("/v2/models/m-1/infer", content=b"x", headers={"Content-Encoding": "gzip"})
    assert refused.status_code == 415


def test_rows_of_rows_are_read_like_flat_ones() -> None:
    """
    The protocol allows both; an answer without binary outputs has no header of lengths.
    """
    nested = json.dumps(as_json(data=[[0, 1, 2], [None, 4, 5], [3, 4, 5]])).encode()
    flat = json.dumps(as_json()).encode()
    assert np.array_equal(parse_request(nested, None, 3).rows, parse_request(flat, None, 3).rows, equal_nan=True)
    asked = parse_request(flat, None, 3)
    assert write_answer(asked, "m", "1", {"score": np.float32([1])})[1] is None
    with pytest.raises(Invalid):
        parse_request(json.dumps(as_json(data=[[0, 1, 2], 3])).encode(), None, 3)


def test_tritonclient_works_unchanged(running: Any, rollout: dict[str, str]) -> None:
    """
    Where it is installed; what it sends by default is what the tests above send by hand.
    """
    if importlib.util.find_spec("tritonclient") is None:
        body, headers = binary()
        assert running.client("scorer").post("/v2/models/m-1/infer", content=body, headers=headers).status_code == 200
        return
    from tritonclient import http

    client = http.InferenceServerClient(running.url.removeprefix("http://"))
    headers = {"Authorization": f"Bearer {running.tokens['scorer']}"}
    rows = http.InferInput("rows", list(ROWS.shape), "FP32")
    rows.set_data_from_numpy(ROWS)
    assert client.is_server_live(headers) and client.is_server_ready(headers) and client.is_model_ready("m-1", headers=headers)
    found = client.infer(running.pipeline.name, [rows], headers=headers).as_numpy("score").tolist()
    assert [None if np.isnan(one) else one for one in found] == SCORES
