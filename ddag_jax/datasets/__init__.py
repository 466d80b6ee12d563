"""From the folder that a dataset is distributed as to the prepared store."""
