"""Readers of weight files: `detect.read(path)` gives named arrays that stay on disk until they are indexed."""
