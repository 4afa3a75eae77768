"""Converts weight files of other projects. A file passes four stations: `readers`, `families`, `planner`, `writer`."""
