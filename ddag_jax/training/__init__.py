"""Train state, train step and the loop around them."""
