"""The HTTP servers: upstream's `POST /`, Server-Sent Events, an OpenAI-compatible API, and upstream's polling API.

    commands -> server (uvicorn) -> app: middleware -> routes, openai/      -\\
             -> polling/ (upstream's stream_api.py): record store, threads  --> service -> Pipeline.submit / complete
"""
