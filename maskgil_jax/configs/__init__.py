"""The shipped run files as modules: `from maskgil_jax.configs import c2i_b` in a run file of one's own.

A clone holds them in `configs/` at its root, an installed package in this folder.
"""

import pathlib

_HERE = pathlib.Path(__file__).parent
FOLDER = _HERE if (_HERE / "c2i_b.py").is_file() else _HERE.parents[1] / "configs"
__path__ = [str(FOLDER)]
