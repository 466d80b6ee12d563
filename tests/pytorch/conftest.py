"""The stand-in's modules import one another by bare names, as the reference's do: no doctests."""

collect_ignore = ["stand_in"]
