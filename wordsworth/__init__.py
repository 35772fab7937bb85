"""Label image buckets with Vision Transformers, from Python.

The folders pipeline/, vit_model/ and jobs/ are this package's own: installed, they lie in it; in a checkout they lie beside it.
"""

from pathlib import Path

_BESIDE = Path(__file__).resolve().parents[1]
if (
    all((_BESIDE / name / "__init__.py").is_file() for name in ("pipeline", "vit_model", "jobs"))
    and (_BESIDE / "pyproject.toml").is_file()
):
    # A checkout, which may be a Ray job's working directory without an installation.
    __path__.append(str(_BESIDE))
