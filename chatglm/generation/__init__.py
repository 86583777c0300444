"""One request: its parameters, sampling, the decode loop, text from ids, chat. Imports no family."""
