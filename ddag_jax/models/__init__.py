"""The network, section 3.1-3.3: one file a box of the paper's Fig. 2."""
