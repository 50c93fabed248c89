"""One stream, one view: the smallest pipeline that keeps state."""

from driftline import Pipeline, Stream, View, f

asks = Stream("ask.v1.avsc", topic="one-asks", id="ask_id", key="card", time="at", lateness="40ms", duplicates=("5ms", 1))
card = View(
    of=asks,
    by="card",
    asked_120=f.count("120ms"),
    sum_240=f.sum("amount", "240ms"),
    last_amount=f.last("amount", within="90ms"),
)
pipeline = Pipeline("one", owner="tests@example.org", question=asks, inputs=[card, f.value("amount")], tick="50ms", window="1d")
