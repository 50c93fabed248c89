"""What the peers are compared on: of each card how often and how much was paid with it within a day, asked at each payment."""

from driftline import Pipeline, Stream, View, f

payments = Stream("payment.v1.avsc", topic="payments-upstream", id="payment_id", key="card", time="at")
card = View(of=payments, by="card", count_24h=f.count("24h"), sum_24h=f.sum("amount", "24h"))
pipeline = Pipeline(
    "payments",
    owner="benchmarks@example.org",
    question=payments,
    inputs=[card, f.value("amount")],
    tick="1h",
    window="1d",
)
