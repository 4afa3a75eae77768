"""The package as setuptools sees it. Metadata, dependencies and tools are in pyproject.toml.

Only the licence stands here: how pyproject.toml spells it changed between versions of setuptools that are both in use.
"""

from setuptools import setup

setup(license="Apache-2.0")
