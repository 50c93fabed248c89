"""
The one encoding of a feature row: little-endian float32 at places fixed by the feature-set version, then the age of each view.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from driftline.errors import Invalid
from driftline.stream.batch import Varlen

FLOAT_BYTES = 4
DIRECT = -1

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RowLayout:
    """
    Where each feature lies. `view_of` has, for each feature, the place of its view in `views`, or -1 for what the question itself says.

    A missing feature is NaN; so is the age, in seconds, of a view that knows nothing of its entity.
    """

    version: str
    names: tuple[str, ...]
    views: tuple[str, ...]
    view_of: tuple[int, ...]

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return len(self.names) + len(self.views)

    @property
    def row_bytes(self) -> int:
        """Length of a row."""
        return FLOAT_BYTES * self.width

    def matrix(self, rows: Varlen) -> Matrix:
        """The features of n rows, (n, F), without a copy where the rows lie end to end. Raises Invalid for a row of another length."""
        return self._numbers(rows)[:, : len(self.names)]

    def ages(self, rows: Varlen) -> Matrix:
        """The age of each view in n rows, (n, V), in seconds. Raises Invalid for a row of another length."""
        return self._numbers(rows)[:, len(self.names) :]

    def pack(self, features: Matrix, ages: Matrix) -> Varlen:
        """n rows from features (n, F) and ages (n, V)."""
        return self.pack_whole(np.concatenate([features, ages], axis=1))

    def pack_whole(self, numbers: Matrix) -> Varlen:
        """n rows from features and ages side by side, (n, F + V)."""
        if numbers.ndim != 2 or numbers.shape[1] != self.width:  # a matrix
            raise Invalid(f"a row of version {self.version} has {self.width} numbers; the shape {numbers.shape} does not")
        data = np.ascontiguousarray(numbers, "<f4").view(np.uint8).reshape(-1)
        starts = np.arange(len(numbers), dtype=np.int64) * self.row_bytes
        return Varlen(data, starts, starts + self.row_bytes)

    def _numbers(self, rows: Varlen) -> Matrix:
        lengths = rows.ends - rows.starts
        if (lengths != self.row_bytes).any():
            wrong = int(lengths[lengths != self.row_bytes][0])
            raise Invalid(f"a row of version {self.version} has {self.row_bytes} bytes; one has {wrong}")
        return np.ascontiguousarray(self._bytes(rows)).view("<f4").reshape(len(rows), self.width)

    def _bytes(self, rows: Varlen) -> npt.NDArray[np.uint8]:
        if len(rows) == 0:
            return np.zeros((0, self.row_bytes), np.uint8)
        first = int(rows.starts[0])
        if (np.diff(rows.starts) == self.row_bytes).all() and first % FLOAT_BYTES == 0:
            whole: npt.NDArray[np.uint8] = rows.data[first : first + len(rows) * self.row_bytes]
            return whole.reshape(len(rows), self.row_bytes)
        gathered: npt.NDArray[np.uint8] = rows.data[rows.starts[:, None] + np.arange(self.row_bytes)]
        return gathered
