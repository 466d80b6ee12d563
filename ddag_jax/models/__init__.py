"""Network blocks that any method may use, from convolution to the two-stream backbone."""
