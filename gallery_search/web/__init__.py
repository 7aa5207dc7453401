"""A web page for gallery search: plain Python searches, Gradio draws."""

MAX_HITS = 100
