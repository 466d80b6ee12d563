"""The paper's tables and figures as commands: `python -m ddag_jax.experiments --help`."""
