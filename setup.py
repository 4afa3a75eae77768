"""The package as setuptools sees it; metadata, dependencies and tools are in pyproject.toml. Here is what it cannot say."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """An installed package brings the run files of `configs/` along, so that `maskgil demo` works outside a clone."""

    def run(self):
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "maskgil_jax", "configs")
            folder.mkdir(parents=True, exist_ok=True)
            for path in Path("configs").glob("*.py"):
                shutil.copy2(path, folder)


# The licence stands here since its spelling in pyproject.toml changed between versions of setuptools that are both in use.
setup(license="Apache-2.0", cmdclass={"build_py": BuildWithConfigs})
