"""A web page for gallery search: the search itself is plain Python, Gradio only draws it."""

from occluded_reid.webpage.search import Answer, GallerySearch, Query, QuestionError, Shown

__all__ = ["Answer", "GallerySearch", "Query", "QuestionError", "Shown"]
