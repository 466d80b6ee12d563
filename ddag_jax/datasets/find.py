"""The published datasets by name."""

from ddag_jax.config import NamedDataset
from ddag_jax.datasets.dataset import Dataset
from ddag_jax.datasets.folder import FOLDER
from ddag_jax.datasets.llcm import LLCM
from ddag_jax.datasets.regdb import REGDB
from ddag_jax.datasets.sysu_mm01 import SYSU_MM01
from ddag_jax.errors import UserError

DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in (SYSU_MM01, REGDB, LLCM)}
_NAMED = {**DATASETS, FOLDER.name: FOLDER}


def find_dataset(dataset: str | NamedDataset) -> Dataset:
    """Return the published dataset of a name, that of own images, or the given `Dataset` itself.

    Raises:
      UserError: there is no dataset of this name, or the value is not a `Dataset`.
    """
    if isinstance(dataset, str):
        if dataset not in _NAMED:
            raise UserError(
                f"{dataset}: not a published dataset ({', '.join(DATASETS)}) and not {FOLDER.name},"
                " for own images; of a Dataset of your own, name the configuration file whose"
                " data.dataset it is (evaluate.py --config FILE)"
            )
        return _NAMED[dataset]
    if not isinstance(dataset, Dataset):
        raise UserError(
            f"data.dataset: {dataset.name} is a {type(dataset).__name__}; give a name or a"
            " ddag_jax.datasets.dataset.Dataset"
        )
    return dataset
