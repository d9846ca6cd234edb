"""What a registration looks like: a picture, a page and its figures as JSON."""

from deqreg.report.page import write_page
from deqreg.report.picture import draw
from deqreg.report.summary import Highlight, duration, highlights, title_of, write_json

__all__ = ["Highlight", "draw", "duration", "highlights", "title_of", "write_json", "write_page"]
