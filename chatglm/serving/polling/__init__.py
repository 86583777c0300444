"""Upstream's polling API: ask with one request, read the answer so far with others.

Knows: records, their life, the two endpoints. Does not know how an answer is made.

    POST /chat ----> records.py: busy? known? --> pool of `max_running` threads --> desk.submit, deltas --> record
                     at most running + waiting                the executor's queue holds those that wait
    POST /get_response --> the record as it stands
"""
