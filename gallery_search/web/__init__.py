"""A web page for gallery search: the search itself is plain Python, Gradio only draws it."""

from gallery_search.web.search import Answer, GallerySearch, Query, QuestionError, Shown

__all__ = ["Answer", "GallerySearch", "Query", "QuestionError", "Shown"]
