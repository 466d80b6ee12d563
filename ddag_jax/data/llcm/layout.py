"""Being written."""

from etils import epath

from ddag_jax.data.layout import Layout

FOLDER = ""


def inspect(folder: epath.PathLike) -> tuple[Layout, list[str]]:
    raise NotImplementedError
