"""Faces for people: today the terminal chat, later the web pages."""
