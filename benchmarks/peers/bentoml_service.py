"""
The model of the score hop behind BentoML: the features of a row are handed over, a score comes back.

    WORK_MODEL=model.onnx bentoml serve benchmarks/peers/bentoml_service.py:Scores --port 3000

`Batched` with its adaptive batching, as its documentation advises for many clients; `Scores` without, which is quicker for one.
"""

from __future__ import annotations

import os

import bentoml
import numpy as np
import numpy.typing as npt
import onnxruntime


class Session:
    """One session, one thread: as driftline scores."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["WORK_MODEL"], options, providers=["CPUExecutionProvider"])
        self.input, self.output = self.session.get_inputs()[0].name, self.session.get_outputs()[-1].name

    def score(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(n, 3) to the probability of each row."""
        (told,) = self.session.run([self.output], {self.input: rows.astype(np.float32)})
        return np.asarray(told, np.float32).reshape(len(rows), -1)[:, -1]


@bentoml.service(workers=1, traffic={"timeout": 20, "max_concurrency": 1_000})
class Scores:
    """Each request by itself."""

    def __init__(self) -> None:
        self.session = Session()

    @bentoml.api
    def score(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(n, 3) to (n,)."""
        return self.session.score(rows)


@bentoml.service(workers=1, traffic={"timeout": 20, "max_concurrency": 1_000})
class Batched:
    """Requests of a moment in one run."""

    def __init__(self) -> None:
        self.session = Session()

    @bentoml.api(batchable=True, batch_dim=(0, 0), max_batch_size=256, max_latency_ms=1_000)
    def score(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(n, 3) to (n,)."""
        return self.session.score(rows)
