"""What pyproject.toml cannot express of the build; metadata, dependencies and tools are there."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies the run files of `configs/` into the package, so that `--config NAME` works outside a clone."""

    def run(self):
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "maskgil_jax", "configs")
            folder.mkdir(parents=True, exist_ok=True)
            for path in Path("configs").glob("*.py"):
                shutil.copy2(path, folder)


# The spelling of the licence in pyproject.toml differs between versions of setuptools that are both in use.
setup(license="Apache-2.0", cmdclass={"build_py": BuildWithConfigs})
