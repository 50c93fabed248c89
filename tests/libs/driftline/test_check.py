"""
Every mistake that a person can make in a pipeline file is worded, with its line.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from driftline.errors import Invalid
from driftline.pipeline import check, load_pipeline

GOOD = """\
from driftline import Label, Pipeline, Stream, View, f

payments = Stream("payment.avsc", topic="payments", id="payment_id", key="card_id", time="paid_at")
chargebacks = Stream("chargeback.avsc", topic="chargebacks", id="chargeback_id", key="card_id", time="told_at")

card = View(
    of=payments,
    by="card_id",
    spent_24h=f.sum("amount", "24h"),
    payments_24h=f.count("24h"),
)
shop = View(of=[payments, chargebacks], by="shop", broadcast=True, fraud_7d=f.rate(chargebacks.is_fraud == True, "6d"))  # noqa

pipeline = Pipeline(
    "fraud",
    owner="somebody@example.org",
    question=payments,
    inputs=[card, shop, f.value("amount"), f.weekday("paid_at")],
    label=Label("fraud", of=chargebacks, when=chargebacks.is_fraud == True, horizon="45d"),  # noqa
    slices=["shop"],
)
"""
TIME = {"type": "long", "logicalType": "timestamp-millis"}
SCHEMAS = {
    "payment": {
        "payment_id": "string",
        "card_id": "string",
        "shop": "string",
        "paid_at": TIME,
        "amount": "double",
        "memo": ["null", "string"],
    },
    "chargeback": {
        "chargeback_id": "string",
        "payment_id": "string",
        "card_id": "string",
        "shop": "string",
        "told_at": TIME,
        "is_fraud": "boolean",
    },
}


def write(root: Path, text: str, name: str = "fraud") -> Path:
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "pipeline.py").write_text(text)
    for schema, fields in SCHEMAS.items():
        record = {"type": "record", "name": schema.title(), "fields": [{"name": key, "type": kind} for key, kind in fields.items()]}
        (folder / f"{schema}.avsc").write_text(json.dumps(record))
    return folder


def problems(root: Path, old: str, new: str) -> list[str]:
    """The problems of the good file with `old` written as `new`."""
    assert old in GOOD
    write(root, GOOD.replace(old, new))
    return [str(problem) for problem in check("fraud", root)]


def test_a_file_without_mistakes_has_no_problem(tmp_path: Path) -> None:
    """
    The file that the others are made from by one mistake each is good.
    """
    write(tmp_path, GOOD)
    assert check("fraud", tmp_path) == []


def test_a_misspelt_field_is_named_with_the_nearest_one_its_type_and_its_line(tmp_path: Path) -> None:
    """
    The message has file, line, view and the words as written, and what was probably meant.
    """
    (problem,) = problems(tmp_path, 'f.sum("amount", "24h")', 'f.sum("ammount", "24h")')
    assert problem == (
        f'{tmp_path}/fraud/pipeline.py:9: View "card": f.sum("ammount", "24h")\n'
        '  the stream "payments" has no field "ammount". Did you mean "amount" (double)?'
    )


def test_a_window_that_the_log_cannot_rebuild_is_refused_with_the_retention_that_would_do(tmp_path: Path) -> None:
    """
    Window and lateness must fit into the retention of the events.
    """
    (problem,) = problems(tmp_path, 'f.count("24h")', 'f.count("30d")')
    assert 'pipeline.py:10: View "card": f.count("30d")\n  the topic fraud-events keeps 7 days, so a window of 30 days' in problem
    assert 'Shorten the window, or set retention="31d" (window + lateness) on the pipeline.' in problem


def test_an_offset_counts_towards_the_retention(tmp_path: Path) -> None:
    """
    A window that ended days ago reaches back as far as both together.
    """
    (problem,) = problems(tmp_path, 'f.count("24h")', 'f.count("24h", ending="7d ago")')
    assert "a window that reaches back 8 days could not be rebuilt" in problem


def test_a_foreign_import_is_refused_before_it_is_made(tmp_path: Path) -> None:
    """
    Nothing but driftline may be imported, and the file is not even run.
    """
    (problem,) = problems(tmp_path, "\npayments =", "\nimport lightgbm\npayments =")
    assert "pipeline.py:3: import lightgbm\n  this file is loaded by every process, and not every process has lightgbm." in problem
    (problem,) = problems(tmp_path, "\npayments =", "\nfrom .other import thing\npayments =")
    assert "pipeline.py:3: from .other import thing" in problem


def test_an_input_that_the_label_decides_is_refused(tmp_path: Path) -> None:
    """
    What only the label stream knows is not known when the question is asked.
    """
    (problem,) = problems(tmp_path, 'f.value("amount")', 'f.value("is_fraud")')
    assert (
        'pipeline.py:18: inputs: f.value("is_fraud")\n  "is_fraud" is decided by the label stream "chargebacks", up to 45 days after'
        in problem
    )
    assert 'Build a view on "chargebacks" instead; it sees only what is already known.' in problem


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('id="payment_id", ', "", "it has no id: nothing says by which field to tell a record from its copy"),
        (', time="paid_at"', "", "it has no time: nothing says by which field to order records"),
        ('key="card_id", time="paid_at"', 'time="paid_at"', "it has no key: nothing says by which field to place a record in a partition"),
        ('time="paid_at"', 'time="payd_at"', 'has no field "payd_at". Did you mean "paid_at" (timestamp-millis)?'),
        ('time="paid_at"', 'time="memo"', "it is string?; to order records it must be timestamp-millis or long, never null."),
        ('"payment.avsc"', '"payments.avsc"', "there is no such file beside pipeline.py. There are chargeback.avsc, payment.avsc."),
        ('topic="chargebacks"', 'topic="payments"', 'the topic "payments" is the stream "payments" already'),
        ('time="paid_at")', 'time="paid_at", duplicates=("2d", 0))', "between 1 and 4096 ids can be remembered for a key"),
    ],
)
def test_a_stream_that_cannot_be_read_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    """
    A stream needs a schema, a topic of its own, and fields for id, key and time.
    """
    (problem,) = problems(tmp_path, old, new)
    assert "pipeline.py:" in problem
    assert 'Stream "' in problem
    assert words in problem


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('payments_24h=f.count("24h")', 'amount=f.count("24h")', "there is a feature of this name in"),
        ('f.count("24h")', 'f.count("25ms")', "so 25 ms must be a multiple of 12"),
        ('f.count("24h")', 'f.count("0h")', "so 0 ms must be a multiple of 12, above 0"),
        ('f.count("24h")', 'f.count(chargebacks, "24h")', 'the stream "chargebacks" is not one that the view is built on'),
        ('f.count("24h")', "24", "it is no aggregate"),
        ('f.count("24h")', 'f.count("amount", "24h")', "f.count takes a stream or a condition, as in f.count(payments, ...)"),
        ('f.sum("amount", "24h")', 'f.sum("memo", "24h")', '"memo" is string; f.sum takes numbers'),
        ('f.sum("amount", "24h")', 'f.sum(payments, "24h")', "f.sum takes a field"),
        ('f.sum("amount", "24h")', 'f.mean(payments.amount > 3, "24h")', "f.mean takes a field"),
        ('is_fraud == True, "6d"', 'is_fraud == "yes", "6d"', "\"is_fraud\" is boolean, which cannot be compared with 'yes'"),
        ('f.rate(chargebacks.is_fraud == True, "6d")', 'f.count("6d")', '"payments", "chargebacks": say which of them is meant'),
        (
            'f.rate(chargebacks.is_fraud == True, "6d")',
            'f.distinct("shop", "6d")',
            'have a field "shop": say which is meant, as in payments.shop',
        ),
        (
            'f.rate(chargebacks.is_fraud == True, "6d")',
            'f.rate(payments.memo > "a", "6d")',
            "is text, which is equal or not equal, never >",
        ),
        ("of=payments,\n", "of=[],\n", "it is built on no stream of this file"),
        ('by="card_id"', 'by="card"', 'Did you mean "card_id" (string)?\n  A view finds its entity by fields'),
        ('of=[payments, chargebacks], by="shop"', 'of=chargebacks, by="amount"', 'the stream "chargebacks" has no field "amount"'),
        (
            'of=[payments, chargebacks], by="shop"',
            'of=chargebacks, by="chargeback_id"',
            'the stream "payments" (the question) has no field',
        ),
        ('by="card_id"', 'by="amount"', "an entity is named by text or whole numbers"),
        ('by="card_id"', 'by="shop"', "its entity does not contain the key of the question"),
        ('    spent_24h=f.sum("amount", "24h"),\n    payments_24h=f.count("24h"),\n', "", "it has no features"),
        ("inputs=[card, shop, ", "inputs=[card, ", "it is not among the inputs. Add it there, or delete it."),
    ],
)
def test_a_view_that_cannot_be_folded_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    """
    A view needs streams, an entity that it shares with the question, and features of fields that its streams have.
    """
    found = problems(tmp_path, old, new)
    assert words in "\n".join(found)
    assert len(found) == 1


def test_a_view_may_not_have_a_name_with_a_meaning_of_its_own(tmp_path: Path) -> None:
    """
    Rows of the state and reason codes would mix it up with theirs.
    """
    write(tmp_path, GOOD.replace("card = View", "ids = View").replace("[card,", "[ids,"))
    (problem,) = check("fraud", tmp_path)
    assert '"ids" has a meaning of its own' in str(problem)


def test_a_view_needs_a_name(tmp_path: Path) -> None:
    """
    A view that is written among the inputs has none.
    """
    (problem,) = problems(tmp_path, "inputs=[card, ", 'inputs=[View(of=payments, by="card_id", n=f.count("24h")), card, ')
    assert "a view needs a name" in problem


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('f.value("amount")', 'f.value("amuont")', 'the stream "payments" has no field "amuont". Did you mean "amount" (double)?'),
        ('f.value("amount")', 'f.value("memo")', '"memo" is string?; an input is a number or a boolean'),
        ('f.weekday("paid_at")', 'f.weekday("amount")', '"amount" is double; f.weekday takes a timestamp'),
        ('f.weekday("paid_at")', 'f.weekday("paid_at", zone="Mars")', 'there is no time zone "Mars"'),
        ('f.weekday("paid_at")', 'f.value("amount")', "there is a feature of this name in inputs already"),
        ('f.weekday("paid_at")', "3", "3 is neither a view nor an input of the question"),
        (
            'inputs=[card, shop, f.value("amount"), f.weekday("paid_at")]',
            "inputs=[card, shop, *[payments]]",
            "is neither a view nor an input",
        ),
        ('slices=["shop"]', 'slices=["shoop"]', 'Did you mean "shop" (string)?'),
        ('slices=["shop"]', 'slices=["amount"]', "it is a double; slices are told apart by text"),
        ('slices=["shop"]', 'tick="7h"', "is no whole number of ticks"),
        ("question=payments", "question=3", "it is no stream of this file"),
        ('Pipeline(\n    "fraud"', 'Pipeline(\n    "frauds"', 'it lies in the folder "fraud"; name both the same'),
        ("when=chargebacks.is_fraud", "when=chargebacks.fraud", 'the stream "chargebacks" has no field "fraud"'),
        ("of=chargebacks, when", "of=3, when", "it is told by no stream of this file"),
        ('horizon="45d"', 'horizon="0d"', "it must be longer than nothing"),
    ],
)
def test_a_pipeline_that_cannot_be_run_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    """
    Inputs, slices, ticks, question and label are checked against the streams.
    """
    assert words in "\n".join(problems(tmp_path, old, new))


def test_a_label_stream_must_name_the_question_and_lie_in_its_partition(tmp_path: Path) -> None:
    """
    Without the question's id nobody knows what is told; under another key it is told in another partition.
    """
    write(tmp_path, GOOD)
    path = tmp_path / "fraud" / "chargeback.avsc"
    path.write_text(path.read_text().replace('"payment_id"', '"payment"'))
    (problem,) = check("fraud", tmp_path)
    assert 'the stream "chargebacks" has no field "payment_id", which is the id of the question' in str(problem)
    (problem,) = problems(tmp_path, 'id="chargeback_id", key="card_id"', 'id="chargeback_id", key="shop"')
    assert "outcome and answer would lie in different partitions" in str(problem)


def test_the_labels_own_field_is_no_input_even_on_the_questions_stream(tmp_path: Path) -> None:
    """
    Where the question's own stream tells the label, the field that it tells by is not an input.
    """
    text = GOOD.replace("of=chargebacks, when=chargebacks.is_fraud == True", "of=payments, when=payments.amount > 100")
    write(tmp_path, text)
    (problem,) = check("fraud", tmp_path)
    assert '"amount" is decided by the label stream "payments"' in str(problem)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("{", "the file is not JSON"),
        ('{"type": "string"}', "the schema is no Avro record with fields"),
        ('{"type": "record", "name": "P", "fields": [3]}', "the schema is no Avro record with fields"),
        (
            '{"type": "record", "name": "P", "fields": [{"name": "a", "type": {"type": "map", "values": "int"}}]}',
            'the type of "a" cannot be read',
        ),
    ],
)
def test_a_schema_that_cannot_be_read_is_refused(tmp_path: Path, schema: str, words: str) -> None:
    """
    A stream's schema is a record of plain fields.
    """
    (write(tmp_path, GOOD) / "payment.avsc").write_text(schema)
    (problem,) = check("fraud", tmp_path)
    assert words in str(problem)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("x = (", 1, "this is no Python"),
        ("from driftline import Stream\n\nStream(3)", 3, "TypeError"),
        ('from driftline import f\nx = f.count("yesterday")', 2, "'yesterday' is no duration"),
        ('from driftline import Gate\nx = Gate("accuracy")', 2, 'models are compared by "log_loss"'),
        ("from driftline import Stream\nnobody", 2, "NameError"),
        ("x = 3", 1, "declare one, pipeline = Pipeline(...)"),
    ],
)
def test_a_file_that_cannot_be_run_says_where_it_stopped(tmp_path: Path, text: str, line: int, words: str) -> None:
    """
    Whatever Python or a constructor objects to is told with its line, not with a traceback.
    """
    write(tmp_path, text)
    (problem,) = check("fraud", tmp_path)
    assert (line, True) == (problem.line, words in problem.text)


def test_all_problems_are_told_at_once_and_loading_says_the_same(tmp_path: Path) -> None:
    """
    One run names everything, in the order of the file, and a service that cannot start says the same words.
    """
    write(tmp_path, GOOD.replace('"amount", "24h"', '"ammount", "24h"').replace('f.count("24h")', 'f.count("30d")'))
    found = check("fraud", tmp_path)
    assert [problem.line for problem in found] == [9, 10]
    with pytest.raises(Invalid) as refused:
        load_pipeline("fraud", tmp_path)
    assert "\n\n".join(map(str, found)) == str(refused.value)


def test_a_pipeline_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    """
    A misspelt name shows what there is to choose from.
    """
    write(tmp_path, GOOD)
    with pytest.raises(Invalid, match=r"there is no pipeline 'frod' in .*; there are fraud"):
        check("frod", tmp_path)
