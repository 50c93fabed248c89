"""
A pipeline's views become the arrays that the kernels walk over.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from driftline.features import tiles
from driftline.features.plan import Plan
from driftline.pipeline import Pipeline, load_pipeline

PIPELINES = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists()) / "pipelines"


@pytest.fixture(scope="module")
def flights() -> Pipeline:
    """The pipeline of the demo."""
    return load_pipeline("flights", PIPELINES)


def test_every_feature_of_a_view_has_its_column_of_the_row(flights: Pipeline) -> None:
    """
    Columns are those of the layout, what the question says left out; ages come last.
    """
    plan = Plan.of(flights)
    assert plan.features[:, 0].tolist() == [column for column, view in enumerate(flights.layout.view_of) if view >= 0]
    assert plan.ages.tolist() == list(range(22, 28))
    assert plan.width == flights.layout.width


def test_a_difference_has_two_terms_with_their_signs(flights: Pipeline) -> None:
    """
    The backlog is scheduled less departed.
    """
    plan = Plan.of(flights)
    _, first, end = plan.features[flights.layout.names.index("backlog_3h")]
    assert plan.terms[first:end, 1].tolist() == [1, -1]


def test_the_aggregates_of_one_view_and_stream_lie_side_by_side(flights: Pipeline) -> None:
    """
    The runs of a stream name its views, and together they have every aggregate once.
    """
    plan = Plan.of(flights)
    covered = [one for _, _, first, end in plan.runs for one in range(first, end)]
    assert sorted(covered) == list(range(len(plan.aggregates)))
    for stream, view, first, end in plan.runs:
        assert flights.streams[stream] in flights.views[view].of
        assert set(plan.aggregates[first:end, tiles.VIEW].tolist()) <= {view}
    assert [plan.runs[plan.first_runs[n] : plan.first_runs[n + 1], 0].tolist() for n in range(4)] == [[0], [1, 1, 1], [2, 2, 2, 2], [3]]


def test_aggregates_do_not_share_words(flights: Pipeline) -> None:
    """
    Places within an entity begin behind its header and rise, and the last one ends with the entity.
    """
    plan = Plan.of(flights)
    for view in range(len(flights.views)):
        mine = plan.aggregates[plan.aggregates[:, tiles.VIEW] == view]
        sizes = [len(tiles.empty_aggregate(int(one[tiles.KIND]), int(one[tiles.KEPT]), int(one[tiles.CELL]))) for one in mine]
        places = mine[:, tiles.AT].tolist()
        assert places == [tiles.HEADER_WORDS + sum(sizes[:n]) for n in range(len(sizes))]
        assert len(plan.layouts[view].empty) == tiles.HEADER_WORDS + sum(sizes)


def test_what_two_aggregates_read_alike_is_read_once(flights: Pipeline) -> None:
    """
    The clipped delay of an arrival feeds four means and one last value, and is one column.
    """
    plan = Plan.of(flights)
    arrivals = [number for number in plan.numbers if number.stream == 2]
    assert sorted(number.column for number in arrivals) == [0, 1]
    assert plan.columns == 4
