"""What rows in the store, reads and growth are measured on: twelve features of each card, of the kinds that a fraud model is given."""

from driftline import Pipeline, Stream, View, f

payments = Stream("payment.v1.avsc", topic="cards-upstream", id="payment_id", key="card", time="at")
card = View(
    of=payments,
    by="card",
    count_1h=f.count("1h"),
    count_24h=f.count("24h"),
    count_7d=f.count("7d"),
    sum_24h=f.sum("amount", "24h"),
    sum_7d=f.sum("amount", "7d"),
    mean_7d=f.mean("amount", "7d"),
    max_7d=f.max("amount", "7d"),
    std_7d=f.std("amount", "7d"),
    declined_24h=f.count(payments.outcome == "declined", "24h"),
    online_7d=f.rate(payments.channel == "online", "7d"),
    last_amount=f.last("amount", within="30d"),
    since_last_s=f.seconds_since(payments, within="30d"),
)
pipeline = Pipeline("cards", owner="benchmarks@example.org", question=payments, inputs=[card], tick="1h", window="1d", retention="31d")
