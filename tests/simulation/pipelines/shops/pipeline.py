"""Two streams, a view in the key's own partition and one that every partition keeps, and a label that comes late."""

from driftline import Label, Pipeline, Stream, View, f

asks = Stream("ask.v1.avsc", topic="shops-asks", id="ask_id", key="card", time="at", lateness="40ms", duplicates=("80ms", 3))
facts = Stream(
    "fact.v1.avsc",
    topic="shops-facts",
    id="fact_id",
    key="card",
    time="at",
    visible="seen_at",
    lateness="40ms",
    duplicates=("80ms", 3),
)
card = View(of=[asks, facts], by="card", asked_120=f.count(asks, "120ms"), spent_240=f.sum(asks.amount, "240ms"))
shop = View(
    of=facts,
    by="shop",
    broadcast=True,
    told_120=f.count("120ms"),
    last_amount=f.last("amount", within="200ms"),
)
pipeline = Pipeline(
    "shops",
    owner="tests@example.org",
    question=asks,
    inputs=[card, shop, f.value("amount")],
    label=Label("good", of=facts, when=facts.amount > 5, horizon="200ms", if_silent="negative", revisions="150ms"),
    slices=["shop"],
    tick="50ms",
    window="1d",
)
