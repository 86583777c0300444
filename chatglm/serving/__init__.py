"""HTTP faces: upstream's `POST /`, Server-Sent Events, an OpenAI-compatible API, and upstream's polling API.

Knows: HTTP, JSON, status codes. Does not know models, tokens or how an answer is made: that is one `pipeline.submit`.

    arguments.py  settings.py  command.py     from flags to a running server
    desk.py  answer.py  merging.py            requests in, deltas out; admission, draining
    bodies.py  options.py  errors.py          what a request may hold, and what a bad one gets; both doors
    application.py                            FastAPI: upstream_door.py  sse_door.py  openai_door.py  status_door.py
    polling/                                  Flask: records, the thread pool, the two endpoints of upstream
"""
