"""A web page for gallery search: plain Python searches, Starlette serves, Jinja2 writes HTML."""

MAX_HITS = 200
