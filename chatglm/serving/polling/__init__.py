"""Upstream's polling API: one request asks, others read the answer so far.

POST /chat ----> record store: busy? known id? --> pool of `max_running` threads --> RequestService, deltas --> record
POST /get_response --> the record as it stands
"""
