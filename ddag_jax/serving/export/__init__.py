"""Export of a trained model: one file for each modality, which runs without this package.

    export(run, out, format="onnx")         out/visible.onnx and out/infrared.onnx
    read_metadata(path)                     what such a file says about itself

A file takes uint8 RGB images [batch, height, width, 3] of the trained size, any number of them, and
returns float32 features [batch, d] in rows of unit length. It normalises the images itself.
"""

from ddag_jax.serving.export.write import Format, export, read_metadata

__all__ = ["Format", "export", "read_metadata"]
