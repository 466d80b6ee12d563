"""The tensorflow-datasets builder of LLCM."""

from ddag_jax.data.builder import ImageFolderBuilder
from ddag_jax.data.llcm import layout


class Llcm(ImageFolderBuilder):
    """LLCM: splits `train` and `test`; camera numbers are shared by the two modalities."""

    DESCRIPTION = "People seen at low light by nine cameras, in visible and near-infrared light."
    HOMEPAGE = "https://github.com/ZYK100/LLCM"
    CITATION = (
        "Zhang, Wang: Diverse Embedding Expansion Network and Low-Light Cross-Modality Benchmark"
        " for Visible-Infrared Person Re-Identification, CVPR 2023"
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"The dataset is handed out by its authors on request. `manual_dir` is {layout.FOLDER}."
    )
    inspect = staticmethod(layout.inspect)
