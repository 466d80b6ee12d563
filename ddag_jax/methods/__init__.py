"""Methods: a network, its losses and its memory between steps, behind one seam."""
