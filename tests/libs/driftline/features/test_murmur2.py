"""
Keys go where Kafka's Java clients put them.
"""

from __future__ import annotations

import numpy as np
import pytest

from driftline.errors import Invalid
from driftline.features.murmur2 import murmur2, partitions_of
from driftline.stream.batch import Varlen

KNOWN = {  # from the tests of Kafka's Java client
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


def test_the_hash_is_that_of_the_java_client():
    """
    The values that the Java client's own tests pin down come out, whatever the length of the key's tail.
    """
    assert list(KNOWN.values()) == murmur2(Varlen.of(KNOWN)).tolist()


def test_a_key_has_one_partition_wherever_it_lies_in_the_buffer():
    """
    A key is placed by its bytes alone, not by what lies around them.
    """
    keys = Varlen.of([b"x", b"N14228", b"yy", b"N14228"])
    alone = partitions_of(Varlen.of([b"N14228"]), 7)
    assert alone.tolist() * 2 == partitions_of(keys, 7)[[1, 3]].tolist()


def test_partitions_are_within_their_number():
    """
    Negative hashes, too, give a partition from 0 on.
    """
    placed = partitions_of(Varlen.of(str(n) for n in range(1000)), 6)
    assert set(range(6)) == set(np.unique(placed).tolist())


def test_nothing_is_placed_among_no_partitions():
    """
    A topic without partitions is refused in words.
    """
    with pytest.raises(Invalid, match="0 partitions"):
        partitions_of(Varlen.of(["a"]), 0)
