"""The tensorflow-datasets builder of RegDB."""

from ddag_jax.data.builder import ImageFolderBuilder
from ddag_jax.data.regdb import layout


class Regdb(ImageFolderBuilder):
    """RegDB: one stored split, `everyone`; each trial has subsets of it, `train_1` and `test_1`."""

    DESCRIPTION = "People seen by a visible camera (1) and a thermal one (2), ten images each."
    HOMEPAGE = "http://dm.dongguk.edu/link.html"
    CITATION = (
        "Nguyen, Hong, Kim, Park: Person Recognition System Based on a Combination of Body Images"
        " from Visible Light and Thermal Cameras, Sensors 2017"
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"The dataset is handed out by its authors on request. `manual_dir` is {layout.FOLDER}."
    )
    inspect = staticmethod(layout.inspect)
