"""The tensorflow-datasets builder of SYSU-MM01."""

from ddag_jax.data.builder import ImageFolderBuilder
from ddag_jax.data.sysu_mm01 import layout


class SysuMm01(ImageFolderBuilder):
    """SYSU-MM01: splits `train`, `val` and `test`, the dataset's identity lists."""

    DESCRIPTION = "People seen by four visible and two infrared cameras."
    HOMEPAGE = "https://github.com/wuancong/SYSU-MM01"
    CITATION = (
        "Wu, Zheng, Yu, Gong, Lai: RGB-Infrared Cross-Modality Person Re-Identification, ICCV 2017"
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"The dataset is handed out by its authors on request. `manual_dir` is {layout.FOLDER}."
    )
    inspect = staticmethod(layout.inspect)
