"""The record store, checked against a simple model of it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from chatglm.serving.polling.record_store import PollingCode, RecordStore

MAX_UNFINISHED, TTL, MAX_RECORDS = 3, 10.0, 5
IDS = [*"abcdefgh"]
KINDS = ["accept", "handle", "append", "finish", "fail", "reject", "wait"]
STEPS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.sampled_from(IDS)),
    max_size=60,
)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_records_match_the_model(steps: list[tuple[str, str]]) -> None:
    clock = Clock()
    records = RecordStore(MAX_UNFINISHED, TTL, MAX_RECORDS, clock)
    unfinished: dict[str, dict[str, object]] = {}
    finished: list[tuple[str, float, dict[str, object]]] = []

    def forget() -> None:
        while finished and (clock.now - finished[0][1] >= TTL or len(finished) + len(unfinished) > MAX_RECORDS):
            finished.pop(0)

    for step, name in steps:
        forget()
        if step == "accept":
            expected = (
                PollingCode.BUSY
                if len(unfinished) == MAX_UNFINISHED
                else PollingCode.EXISTS
                if name in unfinished or name in [each[0] for each in finished]
                else PollingCode.OK
            )
            assert records.accept(name) is expected
            if expected is PollingCode.OK:
                unfinished[name] = {
                    "is_finished": False,
                    "is_handled": False,
                    "response": "",
                    "timestamp": clock.now,
                }
        elif step == "wait":
            clock.now += 3
        elif step == "reject":
            records.reject(name)
            unfinished.pop(name, None)
        else:
            getattr(records, {"fail": "finish"}.get(step, step))(
                name, *{"append": ["x"], "fail": ["broken"]}.get(step, [])
            )
            if record := unfinished.get(name):
                if step == "handle":
                    record["is_handled"] = True
                elif step == "append":
                    record["response"] = f"{record['response']}x"
                else:
                    del unfinished[name]
                    more = {"error": "broken"} if step == "fail" else {}
                    finished.append((name, clock.now, {**record, "is_finished": True, **more}))
        forget()
        known = {**{each[0]: each[2] for each in finished}, **unfinished}
        for each in IDS:
            assert records.read(each) == known.get(each)
        assert len(records) <= MAX_RECORDS
        assert records.num_unfinished == len(unfinished) <= MAX_UNFINISHED
