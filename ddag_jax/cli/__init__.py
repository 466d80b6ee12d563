"""The mains behind the three scripts and the console commands."""
