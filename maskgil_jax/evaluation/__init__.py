"""Evaluation: image sets -> features -> metrics -> report."""
