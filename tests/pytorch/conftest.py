"""The modules of the stand-ins import one another by bare names, as theirs do: no doctests."""

collect_ignore = ["stand_in", "stand_in_agw"]
