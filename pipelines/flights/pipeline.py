"""
Will this flight arrive at least 15 minutes late? Asked an hour before its scheduled departure, answered when it lands.
"""

from driftline import Budget, Gate, Label, LightGBM, Pipeline, Retrain, Rollout, Stream, View, f

# What arrives, from topics that exist already. `time` is when it happened, `visible` when anyone could know of it.
flights = Stream("flight.v1.avsc", topic="flights", id="flight_id", key="tail", time="asked_at")
departures = Stream("departure.v1.avsc", topic="departures", id="flight_id", key="tail", time="departed_at")
arrivals = Stream("arrival.v1.avsc", topic="arrivals", id="flight_id", key="tail", time="arrived_at")
weather = Stream("weather.v1.avsc", topic="weather", id="report_id", key="origin", time="hour", visible="published_at")

departure_delay = f.clip("departure_delay_min", -15, 240)
arrival_delay = f.clip("arrival_delay_min", -30, 240)

# The tail number is the key, so its state is in the flight's own partition; the rest is small and broadcast to all.
aircraft = View(
    of=[departures, arrivals],
    by="tail",
    last_departure_age_s=f.seconds_since(departures, within="7d"),
    last_arrival_age_s=f.seconds_since(arrivals, within="7d"),
    last_arrival_delay=f.last(arrival_delay, within="7d"),
    departures_12h=f.count(departures, "12h"),
    arrival_delay_7d=f.mean(arrival_delay, "7d"),
)
airport = View(
    of=[flights, departures],
    by="origin",
    broadcast=True,
    departures_1h=f.count(departures, "1h"),
    departure_delay_1h=f.mean(departure_delay, "1h"),
    departure_late_4h=f.rate(departures.departure_delay_min >= 15, "4h"),
    backlog_3h=f.count(flights, "3h", ending="60m ago") - f.count(departures, "3h"),
)
carrier = View(
    of=[departures, arrivals],
    by="carrier",
    broadcast=True,
    carrier_departure_delay_6h=f.mean(departure_delay, "6h"),
    carrier_arrival_late_24h=f.rate(arrivals.arrival_delay_min >= 15, "24h"),
)
destination = View(
    of=arrivals,
    by="destination",
    broadcast=True,
    destination_arrival_delay_3h=f.mean(arrival_delay, "3h"),
    destination_arrival_delay_24h=f.mean(arrival_delay, "24h"),
    destination_late_7d=f.rate(arrivals.arrival_delay_min >= 15, "7d"),
)
line = View(
    of=arrivals,
    by=["carrier", "origin", "destination", "scheduled_departure"],
    broadcast=True,
    line_arrival_delay_28d=f.mean(arrival_delay, "28d"),
)
sky = View(
    of=weather,
    by="origin",
    broadcast=True,
    visibility=f.last("visibility_mi", within="6h"),
    precipitation=f.last("precipitation_in", within="6h"),
    wind=f.last("wind_mph", within="6h"),
    humidity=f.last("humidity_pct", within="6h"),
)

pipeline = Pipeline(
    "flights",
    owner="ops-research@example.org",
    question=flights,
    inputs=[
        aircraft,
        airport,
        carrier,
        destination,
        line,
        sky,
        f.minute_of_day("departs_at", zone="America/New_York"),
        f.weekday("departs_at", zone="America/New_York"),
        f.value("duration_min"),
    ],
    label=Label("late", of=arrivals, when=arrivals.arrival_delay_min >= 15, horizon="36h", if_silent="positive"),
    decide=Budget(alert_rate=0.10),
    model=LightGBM(trees=100, leaves=15, leaf_rows_min=200, learning_rate=0.1, row_sample=0.8, column_sample=0.7, l2=5.0, seed=7),
    slices=["origin", "carrier"],
    gate=Gate("log_loss", on="7d", rows_min=5_000, positives_min=500, confidence=0.95),
    retrain=Retrain(first_after="14d", quality_run_length="180d", new_labels=1.5, every="28d", cooldown="7d"),
    rollout=Rollout(shadow="3d", shares=[0.25, 1.00], hold="1d", frozen_shadow=True),
    tick="10m",
    retention="60d",
    predictions="json",
)
