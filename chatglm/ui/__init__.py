"""Interfaces for people: a terminal chat and two web pages, all of them renderers of `ChatSession`."""
